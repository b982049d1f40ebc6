package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

// redraw is how often the live table is drawn, as Docker's client does.
const redraw = 500 * time.Millisecond

type statsFlags struct {
	all, once, noTrunc, machine bool
	format                      string
}

func newStatsCommand(a *app) *cobra.Command {
	var f statsFlags
	cmd := &cobra.Command{
		Use:   "stats [OPTIONS] [CONTAINER...]",
		Short: "Display a live stream of container(s) resource usage statistics",
		Args:  argCount(0, -1),
		RunE:  func(cmd *cobra.Command, args []string) error { return a.stats(cmd.Context(), args, f) },
	}
	fs := cmd.Flags()
	fs.BoolVarP(&f.all, "all", "a", false, "Show all containers (default shows just running)")
	fs.StringVar(&f.format, "format", "", "Format output using a Go template, 'table TEMPLATE' or 'json'")
	fs.BoolVar(&f.machine, "machine", false, "Show the virtual machine itself as well, as this host sees it")
	fs.BoolVar(&f.once, "no-stream", false, "Disable streaming stats and only pull the first result")
	fs.BoolVar(&f.noTrunc, "no-trunc", false, "Do not truncate output")
	return cmd
}

func (a *app) stats(ctx context.Context, names []string, f statsFlags) error {
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	for _, n := range names { // a name that is wrong is told before anything is drawn
		if _, err := docker.ContainerInspect(ctx, n, client.ContainerInspectOptions{}); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	b := &board{docker: docker, once: f.once, seen: map[string]*watched{}}
	defer b.wg.Wait()
	defer cancel()
	if f.machine {
		b.machine = &meter{ask: a.machineUsage, notes: a.err}
		if isTable(f.format) && !f.once {
			b.machine.notes = nil // they are below the table
		}
		b.wg.Go(func() { b.machine.watch(ctx, f.once) })
	}
	if f.once {
		if err := b.follow(ctx, names, f.all); err != nil {
			return err
		}
		b.wg.Wait()
		rows, err := b.rows(!f.noTrunc)
		rows, _, failed := b.machine.add(rows)
		return errors.Join(writeStats(a.out, f.format, rows), err, failed)
	}
	return a.liveStats(ctx, b, names, f)
}

// liveStats draws the table until ctx ends.
func (a *app) liveStats(ctx context.Context, b *board, names []string, f statsFlags) error {
	t := time.NewTicker(redraw)
	defer t.Stop()
	fmt.Fprint(a.out, "\033[2J")
	for {
		if err := b.follow(ctx, names, f.all); err != nil {
			return err
		}
		rows, err := b.rows(!f.noTrunc)
		if err != nil && len(names) > 0 && len(rows) == 0 {
			return err
		}
		rows, note, err := b.machine.add(rows)
		if err != nil {
			return err
		}
		var page bytes.Buffer
		if err := writeStats(&page, f.format, rows); err != nil {
			return err
		}
		if note != "" && isTable(f.format) {
			page.WriteString(note + "\n")
		}
		// Each line is cleared to its end, and what is below the last one.
		text := "\033[H" + strings.ReplaceAll(page.String(), "\n", "\033[K\n") + "\033[J"
		if _, err := io.WriteString(a.out, text); err != nil {
			return err
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// board collects the figures of containers.
type board struct {
	docker  *client.Client
	once    bool
	machine *meter // nil: nobody asked
	wg      sync.WaitGroup

	mu    sync.Mutex
	order []string
	seen  map[string]*watched // by ID or, where the user gave them, names
}

// watched is one container's last sample.
type watched struct {
	name string
	last *container.StatsResponse // nil: none yet
	err  error
	over bool // it is gone
}

// follow begins to watch the containers that it doesn't yet: those named, or
// those that there are.
func (b *board) follow(ctx context.Context, names []string, all bool) error {
	if len(names) == 0 {
		list, err := b.docker.ContainerList(ctx, client.ContainerListOptions{All: all})
		if err != nil {
			return err
		}
		for _, c := range slices.Backward(list.Items) { // the oldest first
			names = append(names, c.ID)
		}
		b.forget(names)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range names {
		if b.seen[n] != nil {
			continue
		}
		w := &watched{name: n}
		b.seen[n] = w
		b.order = append(b.order, n)
		b.wg.Go(func() { b.watch(ctx, w) })
	}
	return nil
}

// forget drops those that are no longer listed.
func (b *board) forget(listed []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.order = slices.DeleteFunc(b.order, func(id string) bool {
		if slices.Contains(listed, id) {
			return false
		}
		delete(b.seen, id)
		return true
	})
}

func (b *board) watch(ctx context.Context, w *watched) {
	set := func(s *container.StatsResponse, err error, over bool) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if s != nil {
			w.last = s
		}
		w.err, w.over = err, over
	}
	res, err := b.docker.ContainerStats(ctx, w.name, client.ContainerStatsOptions{Stream: !b.once, IncludePreviousSample: b.once})
	if err != nil {
		set(nil, err, true)
		return
	}
	defer res.Body.Close()
	for dec := json.NewDecoder(res.Body); ; {
		s := new(container.StatsResponse)
		err := dec.Decode(s)
		if errors.Is(err, io.EOF) {
			set(nil, nil, !b.once)
			return
		}
		if err != nil {
			set(nil, err, true)
			return
		}
		set(s, nil, false)
	}
}

// rows are what is known, in order.
func (b *board) rows(trunc bool) ([]statsRow, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var rows []statsRow
	var err error
	for _, n := range b.order {
		w := b.seen[n]
		if w.err != nil {
			err = w.err
		}
		if !w.over {
			rows = append(rows, newStatsRow(w, trunc))
		}
	}
	return rows, err
}

// isTable says whether a format is for people.
func isTable(format string) bool { return format == "" || strings.HasPrefix(format, "table") }

func writeStats(w io.Writer, format string, rows []statsRow) error {
	return writeRows(w, format, "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}", statsRow{
		BlockIO: "BLOCK I/O", CPUPerc: "CPU %", Container: "CONTAINER", ID: "CONTAINER ID", MemPerc: "MEM %",
		MemUsage: "MEM USAGE / LIMIT", Name: "NAME", NetIO: "NET I/O", PIDs: "PIDS",
	}, rows)
}

// statsRow has the fields of Docker's templates.
type statsRow struct{ BlockIO, CPUPerc, Container, ID, MemPerc, MemUsage, Name, NetIO, PIDs string }

func newStatsRow(w *watched, trunc bool) statsRow {
	r := statsRow{Container: w.name, ID: "--", Name: "--", CPUPerc: "--", MemUsage: "-- / --", MemPerc: "--", NetIO: "--", BlockIO: "--", PIDs: "--"}
	s := w.last
	if s == nil {
		return r
	}
	r.ID, r.Name = s.ID, strings.TrimPrefix(s.Name, "/")
	if trunc {
		r.ID = shortID(s.ID)
	}
	memory := usedMemory(&s.MemoryStats)
	percent := 0.0
	if s.MemoryStats.Limit > 0 {
		percent = 100 * memory / float64(s.MemoryStats.Limit)
	}
	var rx, tx, read, written float64
	for _, n := range s.Networks {
		rx, tx = rx+float64(n.RxBytes), tx+float64(n.TxBytes)
	}
	for _, e := range s.BlkioStats.IoServiceBytesRecursive {
		switch {
		case strings.HasPrefix(strings.ToLower(e.Op), "r"):
			read += float64(e.Value)
		case strings.HasPrefix(strings.ToLower(e.Op), "w"):
			written += float64(e.Value)
		}
	}
	r.CPUPerc = fmt.Sprintf("%.2f%%", cpuPercent(s))
	r.MemUsage = units.BytesSize(memory) + " / " + units.BytesSize(float64(s.MemoryStats.Limit))
	r.MemPerc = fmt.Sprintf("%.2f%%", percent)
	r.NetIO = twoSizes(rx, tx)
	r.BlockIO = twoSizes(read, written)
	r.PIDs = fmt.Sprint(s.PidsStats.Current)
	return r
}

// usedMemory is without the files that the kernel would let go of first.
func usedMemory(m *container.MemoryStats) float64 {
	if idle := m.Stats["inactive_file"]; idle < m.Usage {
		return float64(m.Usage - idle)
	}
	return float64(m.Usage)
}

// cpuPercent is the share of one processor between two samples.
func cpuPercent(s *container.StatsResponse) float64 {
	used := float64(s.CPUStats.CPUUsage.TotalUsage) - float64(s.PreCPUStats.CPUUsage.TotalUsage)
	all := float64(s.CPUStats.SystemUsage) - float64(s.PreCPUStats.SystemUsage)
	if used <= 0 || all <= 0 {
		return 0
	}
	return 100 * used / all * float64(s.CPUStats.OnlineCPUs)
}
