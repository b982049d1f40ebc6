package machine

import (
	"context"
	"errors"
	"testing"
	"time"

	"sampan/proto"
	"sampan/vm"
	"sampan/vm/fake"
)

// metered is a driver whose machines tell what they use.
type metered struct {
	fake.Driver
	usage func() (vm.Usage, error)
}

type meteredMachine struct {
	vm.Machine
	usage func() (vm.Usage, error)
}

func (m meteredMachine) Usage() (vm.Usage, error) { return m.usage() }

func (d *metered) Boot(ctx context.Context, cfg vm.Config) (vm.Machine, error) {
	m, err := d.Driver.Boot(ctx, cfg)
	return meteredMachine{m, d.usage}, err
}

// counted is a network that carries 100 and 10 bytes whenever it is asked.
type counted struct{ received, sent uint64 }

func (n *counted) Attach() (*vm.NIC, *proto.Uplink, func(), error) {
	return nil, nil, nil, errors.New("not in this test")
}

func (n *counted) Traffic() (received, sent uint64) {
	n.received += 100
	n.sent += 10
	return n.received, n.sent
}

func TestUsage(t *testing.T) {
	d := &metered{Driver: fake.Driver{Guest: guest(proto.Version, nil)}}
	var failure error
	d.usage = func() (vm.Usage, error) { return vm.Usage{CPU: time.Second, Memory: 5, Threads: 3}, failure }
	m, _ := newMachine(t, nil, func(c *Config) { c.Driver = d })
	if u := m.Usage(); u.State != Stopped || u.Hypervisor != nil || u.Network != nil || m.Running() != nil {
		t.Errorf("stopped: %+v", u)
	}
	g, err := m.Guest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	u := m.Usage()
	if u.State != Running || u.Hypervisor == nil || u.Hypervisor.CPU != time.Second || u.Network != nil || u.Memory == 0 {
		t.Errorf("running: %+v", u)
	}
	if later := m.Usage(); !later.Since.Equal(u.Since) || later.Age <= u.Age {
		t.Errorf("aged %s, then %s", u.Age, later.Age)
	}
	failure = errors.New("gone")
	if u := m.Usage(); u.State != Running || u.Hypervisor != nil {
		t.Errorf("when the driver fails: %+v", u)
	}
	// What earlier machines have received and sent is not this one's.
	n := &counted{received: 5000, sent: 500}
	g.countFrom(n)
	if got := g.traffic(); got == nil || *got != (Traffic{100, 10}) {
		t.Errorf("traffic: %+v", got)
	}
}

// A driver that can't tell leaves figures out, and fails nothing.
func TestUsageUntold(t *testing.T) {
	m, _ := newMachine(t, guest(proto.Version, nil), nil)
	if _, err := m.Guest(t.Context()); err != nil {
		t.Fatal(err)
	}
	if u := m.Usage(); u.State != Running || u.Hypervisor != nil {
		t.Errorf("%+v", u)
	}
}
