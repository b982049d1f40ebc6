package engine

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"github.com/moby/moby/api/types/events"
)

const (
	keptEvents   = 256  // for since, as Docker keeps
	queuedEvents = 1024 // for one listener
)

// bus hands events to any number of listeners. One that does not keep up is
// cut off: nobody waits for it.
type bus struct {
	mu     sync.Mutex
	kept   []events.Message
	subs   map[chan events.Message]struct{}
	closed bool
}

func newBus() *bus { return &bus{subs: map[chan events.Message]struct{}{}} }

func (b *bus) publish(m events.Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	if len(b.kept) == keptEvents {
		copy(b.kept, b.kept[1:])
		b.kept = b.kept[:keptEvents-1]
	}
	b.kept = append(b.kept, m)
	for c := range b.subs {
		select {
		case c <- m:
		default:
			delete(b.subs, c)
			close(c)
		}
	}
}

func (b *bus) subscribe() (past []events.Message, c chan events.Message, stop func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c = make(chan events.Message, queuedEvents)
	past = append(past, b.kept...)
	if b.closed {
		close(c)
		return past, c, func() {}
	}
	b.subs[c] = struct{}{}
	return past, c, func() {
		b.mu.Lock()
		delete(b.subs, c)
		b.mu.Unlock()
	}
}

func (b *bus) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.subs {
		close(c)
	}
	b.subs, b.closed = nil, true
}

func (e *Engine) emit(t events.Type, a events.Action, id string, attrs map[string]string) {
	now := time.Now()
	e.events.publish(events.Message{
		Type: t, Action: a, Scope: "local", Time: now.Unix(), TimeNano: now.UnixNano(),
		Actor: events.Actor{ID: id, Attributes: attrs},
	})
}

// Emit tells the listeners of something that happened to an image.
func (e *Engine) Emit(t events.Type, a events.Action, id string, attrs map[string]string) {
	e.emit(t, a, id, attrs)
}

// emitContainer adds what Docker tells of a container: labels, image, name.
func (e *Engine) emitContainer(c *ctr, a events.Action, extra map[string]string) {
	c.mu.Lock()
	attrs := map[string]string{}
	maps.Copy(attrs, c.rec.Config.Labels)
	attrs["image"], attrs["name"] = c.rec.Config.Image, c.rec.Name
	c.mu.Unlock()
	maps.Copy(attrs, extra)
	e.emit(events.ContainerEventType, a, c.id, attrs)
}

// errTooSlow ends a stream of events.
var errTooSlow = errors.New("events came faster than they were read")

// Events calls emit with events that match, those since a time (zero: only new
// ones) until a time (zero: for ever), ctx ends or the daemon does. ready is
// called before the first event, when none can be missed any more.
func (e *Engine) Events(ctx context.Context, since, until time.Time, f Filters, ready func(), emit func(events.Message) error) error {
	if err := f.allow("type", "event", "container", "image", "volume", "network", "label", "scope", "daemon", "plugin", "service", "node", "secret", "config"); err != nil {
		return err
	}
	past, c, stop := e.events.subscribe()
	defer stop()
	ready()
	if !since.IsZero() || !until.IsZero() {
		for _, m := range past {
			at := time.Unix(0, m.TimeNano)
			if at.Before(since) || !until.IsZero() && at.After(until) || !f.event(m) {
				continue
			}
			if err := emit(m); err != nil {
				return err
			}
		}
	}
	var end <-chan time.Time
	if !until.IsZero() {
		t := time.NewTimer(time.Until(until))
		defer t.Stop()
		end = t.C
	}
	for {
		select {
		case m, open := <-c:
			if !open {
				if e.ctx.Err() != nil {
					return nil
				}
				return errTooSlow
			}
			if !f.event(m) {
				continue
			}
			if err := emit(m); err != nil {
				return err
			}
		case <-end:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

func (f Filters) event(m events.Message) bool {
	object := func(t events.Type) bool {
		return len(f[string(t)]) == 0 || m.Type == t && f.match(string(t), func(want string) bool {
			return want == m.Actor.Attributes["name"] || len(want) > 0 && len(m.Actor.ID) >= len(want) && m.Actor.ID[:len(want)] == want
		})
	}
	image := len(f["image"]) == 0 || f.equal("image", m.Actor.ID, m.Actor.Attributes["name"], m.Actor.Attributes["image"])
	action := string(m.Action)
	return f.equal("type", string(m.Type)) &&
		f.match("event", func(want string) bool {
			return want == action || len(action) > len(want) && action[:len(want)+1] == want+":"
		}) &&
		object(events.ContainerEventType) && object(events.VolumeEventType) && object(events.NetworkEventType) &&
		image && f.equal("scope", m.Scope) && f.labels("label", m.Actor.Attributes)
}
