package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/docker/go-units"
)

// machineRow is the name of the machine's row, which no container can have.
const machineRow = "(machine)"

// usageInterval is how far two samples of the machine's usage are apart, as
// those of containers are.
const usageInterval = time.Second

// machineUsage is what the daemon counts of the machine. Counters begin with
// the state.
type machineUsage struct {
	State  string        `json:"state"`
	Since  time.Time     `json:"since"`
	Age    time.Duration `json:"age"`
	Memory int64         `json:"memory"` // bytes that it was given
	// Hypervisor is absent where the daemon can't tell, as on macOS.
	Hypervisor *struct {
		CPU     time.Duration `json:"cpu"`
		Memory  int64         `json:"memory"` // bytes resident
		Threads int           `json:"threads"`
		Storage *struct {
			Read    int64 `json:"read"`
			Written int64 `json:"written"`
		} `json:"storage"`
	} `json:"hypervisor"`
	Network *struct {
		Received uint64 `json:"received"`
		Sent     uint64 `json:"sent"`
	} `json:"network"`
}

// machineUsage asks the daemon, which boots nothing for it.
func (a *app) machineUsage(ctx context.Context) (*machineUsage, error) {
	resp, err := a.machineCall(ctx, true, http.MethodGet, "/usage", nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	u := new(machineUsage)
	if err := json.NewDecoder(resp.Body).Decode(u); err != nil {
		return nil, fmt.Errorf("usage of the machine: %w", err)
	}
	return u, nil
}

// meter samples the machine's usage.
type meter struct {
	ask   func(context.Context) (*machineUsage, error)
	notes io.Writer // is told when the machine doesn't run; nil: nobody

	mu        sync.Mutex
	last, now *machineUsage // nil: none yet
	err       error
}

// watch takes samples until ctx ends, or two.
func (m *meter) watch(ctx context.Context, once bool) {
	t := time.NewTicker(usageInterval)
	defer t.Stop()
	for n := 1; ; n++ {
		u, err := m.ask(ctx)
		m.mu.Lock()
		if m.err = err; err == nil {
			m.last, m.now = m.now, u
			if m.notes != nil && !u.running() && (m.last == nil || m.last.running()) {
				fmt.Fprintln(m.notes, u.note())
			}
		}
		m.mu.Unlock()
		if once && (n == 2 || err != nil || !u.running()) {
			return
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// add appends the machine's row. Where there is none, since the machine doesn't
// run, note says so. A nil meter adds nothing.
func (m *meter) add(rows []statsRow) (_ []statsRow, note string, err error) {
	if m == nil {
		return rows, "", nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return rows, "", m.err
	}
	if m.now != nil && !m.now.running() {
		return rows, m.now.note(), nil
	}
	return append(rows, newMachineRow(m.last, m.now)), "", nil
}

func (u *machineUsage) note() string {
	return fmt.Sprintf("The virtual machine is %s: there are no figures of it, and it was not booted for them.", u.State)
}

// running says whether the machine runs, be it on its way out.
func (u *machineUsage) running() bool { return u.State == "running" || u.State == "stopping" }

// newMachineRow has -- for every figure that is not there.
func newMachineRow(last, now *machineUsage) statsRow {
	r := statsRow{
		Container: machineRow, Name: machineRow, ID: "--",
		CPUPerc: "--", MemUsage: "-- / --", MemPerc: "--", NetIO: "--", BlockIO: "--", PIDs: "--",
	}
	if now == nil {
		return r
	}
	if n := now.Network; n != nil {
		r.NetIO = twoSizes(float64(n.Received), float64(n.Sent))
	}
	limit := units.BytesSize(float64(now.Memory))
	r.MemUsage = "-- / " + limit
	h := now.Hypervisor
	if h == nil {
		return r
	}
	r.MemUsage = units.BytesSize(float64(h.Memory)) + " / " + limit
	if now.Memory > 0 {
		r.MemPerc = fmt.Sprintf("%.2f%%", 100*float64(h.Memory)/float64(now.Memory))
	}
	r.PIDs = fmt.Sprint(h.Threads)
	if h.Storage != nil {
		r.BlockIO = twoSizes(float64(h.Storage.Read), float64(h.Storage.Written))
	}
	if last != nil && last.Hypervisor != nil && last.Since.Equal(now.Since) && now.Age > last.Age {
		r.CPUPerc = fmt.Sprintf("%.2f%%", 100*float64(h.CPU-last.Hypervisor.CPU)/float64(now.Age-last.Age))
	}
	return r
}

// twoSizes is an amount in and one out, in powers of 1000, as Docker shows them.
func twoSizes(in, out float64) string {
	return units.HumanSizeWithPrecision(in, 3) + " / " + units.HumanSizeWithPrecision(out, 3)
}
