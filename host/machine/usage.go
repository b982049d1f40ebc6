package machine

import (
	"time"

	"sampan/vm"
)

// Usage is what the machine uses as its host sees it. Counters begin with the
// machine.
type Usage struct {
	State State `json:"state"`
	// Since is when the state was entered; another one is another machine.
	Since time.Time `json:"since"`
	// Age of the state, when the figures were taken, on a clock that nobody sets.
	Age time.Duration `json:"age"`
	// Memory is what the machine was given, in bytes.
	Memory int64 `json:"memory"`
	// Hypervisor is absent when the machine doesn't run, or its driver can't tell.
	Hypervisor *vm.Usage `json:"hypervisor,omitempty"`
	// Network is absent when the machine doesn't run, or has none.
	Network *Traffic `json:"network,omitempty"`
}

// Traffic is what a machine's network card has carried, in bytes of Ethernet
// frames.
type Traffic struct {
	Received uint64 `json:"received"`
	Sent     uint64 `json:"sent"`
}

// Counter is a Network that counts what it carries.
type Counter interface {
	// Traffic is what all machines up to now have received and sent.
	Traffic() (received, sent uint64)
}

// Usage tells what the machine uses. It never boots the machine, nor asks it.
func (m *Machine) Usage() Usage {
	m.mu.Lock()
	u := Usage{State: m.state, Since: m.since, Memory: m.cfg.Memory}
	g := m.guest
	m.mu.Unlock()
	if g != nil {
		u.Hypervisor, u.Network = m.hypervisor(g), g.traffic()
	}
	u.Age = time.Since(u.Since)
	return u
}

func (m *Machine) hypervisor(g *Guest) *vm.Usage {
	meter, ok := g.vm.(vm.Meter)
	if !ok {
		return nil
	}
	u, err := meter.Usage()
	if err != nil { // most of all: it has just ended
		m.cfg.Log.Debug("usage of the machine", "error", err)
		return nil
	}
	return &u
}

// countFrom makes the session's traffic begin now.
func (g *Guest) countFrom(n Network) {
	c, ok := n.(Counter)
	if !ok {
		return
	}
	received, sent := c.Traffic()
	g.counter, g.before = c, Traffic{received, sent}
}

func (g *Guest) traffic() *Traffic {
	if g.counter == nil {
		return nil
	}
	received, sent := g.counter.Traffic()
	return &Traffic{received - g.before.Received, sent - g.before.Sent}
}
