package engine

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"sync"
	"time"

	"sampan/proto"
)

// purge is something that the guest's data disk still has to lose. One field
// is set.
type purge struct {
	Container string `json:"container,omitempty"`
	Volume    string `json:"volume,omitempty"` // a volume's directory
}

// purgeList is what the next boot removes from the data disk.
type purgeList struct {
	path string
	tmp  string // folder where it grows

	mu   sync.Mutex
	todo []purge
	busy sync.Mutex // held while the guest is called
}

func loadPurges(path, tmp string) (*purgeList, error) {
	p := &purgeList{path: path, tmp: tmp}
	if err := readJSON(path, &p.todo); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return p, nil
}

// add stores what is to be removed; it outlives a power cut.
func (p *purgeList) add(items ...purge) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.replace(append(slices.Clone(p.todo), items...))
}

func (p *purgeList) replace(todo []purge) error {
	if err := writeJSON(p.tmp, p.path, todo, true); err != nil {
		return err
	}
	p.todo = todo
	return nil
}

// has says whether something is to be removed.
func (p *purgeList) has(item purge) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Contains(p.todo, item)
}

// run removes what is listed. What fails stays on the list.
func (p *purgeList) run(ctx context.Context, g Guest) error {
	p.mu.Lock()
	todo := slices.Clone(p.todo)
	p.mu.Unlock()
	if len(todo) == 0 {
		return nil
	}
	p.busy.Lock()
	defer p.busy.Unlock()
	var errs []error
	done := map[purge]bool{}
	for _, item := range todo {
		if err := item.do(ctx, g); err != nil {
			errs = append(errs, err)
			continue
		}
		done[item] = true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	left := slices.DeleteFunc(slices.Clone(p.todo), func(i purge) bool { return done[i] })
	return errors.Join(append(errs, p.replace(left))...)
}

func (i purge) do(ctx context.Context, g Guest) error {
	if i.Volume != "" {
		_, err := g.RemoveVolume(ctx, &proto.VolumeRequest{Name: i.Volume})
		return err
	}
	_, err := g.Remove(ctx, &proto.RemoveRequest{Id: i.Container, Purge: true})
	return err
}

// discard removes something from the data disk: now if the machine runs, else
// at its next boot.
func (e *Engine) discard(ctx context.Context, item purge) error {
	if g := e.machine.Running(); g != nil {
		err := item.do(ctx, g)
		if err == nil {
			return nil
		}
		e.log.Warn("removal is left for the next boot", "item", item, "error", err)
	}
	return e.purges.add(item)
}

// layersTimeout bounds how long the guest may take to answer LayersRemoved.
const layersTimeout = 10 * time.Second

// LayersRemoved tells the guest that layers may have been deleted: those that
// it keeps mounted for the next container would hold their space. It neither
// boots the machine nor waits for it.
func (e *Engine) LayersRemoved() {
	g := e.machine.Running()
	if g == nil {
		return
	}
	e.wg.Go(func() {
		ctx, cancel := context.WithTimeout(e.ctx, layersTimeout)
		defer cancel()
		if _, err := g.Status(ctx, &proto.Empty{}); err != nil { // it looks at its layers then
			e.log.Warn("removed layers may stay mounted in the guest", "error", err)
		}
	})
}
