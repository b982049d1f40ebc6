package machine

import (
	"cmp"
	"regexp"
	"slices"
	"sync"
	"time"

	"sampan/proto"
)

// Stage is a point in a boot.
type Stage struct {
	Name string        `json:"name"`
	At   time.Duration `json:"at"` // nanoseconds since the boot began
}

// stages are one boot's, by the host's monotonic clock:
//
//	bundle      the files are found, the data disk is there
//	process     the hypervisor runs             (vm.Config.Stage)
//	devices     it is connected to our devices  (vm.Config.Stage)
//	verified    the files are unpacked and verified, and the guest runs
//	kernel      the console's first byte        (vm.Config.Stage)
//	init …      what the agent tells (guest/boot), init being its first action
//	agent       its call has arrived
//	configured  the machine serves
//	container   the first container's process has been executed
type stages struct {
	begin time.Time

	mu   sync.Mutex
	list []Stage
}

func (s *stages) reached(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, Stage{name, time.Since(s.begin)})
}

// all lists the stages in the order in which they were reached.
func (s *stages) all() []Stage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.list)
}

const maxGuestStages = 32

var stageName = regexp.MustCompile(`^[a-z]{1,16}$`)

// addGuest puts the guest's stages among the host's. Theirs are in the kernel's
// uptime; both clocks are known at one moment, that of the agent's call, which
// the guest calls proto.StageConnected and the host "agent". Only its distance
// from the others counts: early in the boot, before it has found a clock source,
// the kernel loses ticks under emulation, and so its uptime is short. What can't
// be true is left out: a guest is not believed without need.
func (s *stages) addGuest(guest []*proto.BootStage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	called := slices.IndexFunc(s.list, func(st Stage) bool { return st.Name == "agent" })
	connected := slices.IndexFunc(guest, func(st *proto.BootStage) bool { return st.Name == proto.StageConnected })
	if called < 0 || connected < 0 || len(guest) > maxGuestStages {
		return
	}
	call, uptime := s.list[called].At, time.Duration(guest[connected].UptimeNano)
	if uptime < 0 || uptime > call {
		return
	}
	for i, st := range guest {
		at := call - uptime + time.Duration(st.UptimeNano)
		if i == connected || st.UptimeNano < 0 || at > call || !stageName.MatchString(st.Name) {
			continue
		}
		s.list = append(s.list, Stage{st.Name, at})
	}
	slices.SortStableFunc(s.list, func(a, b Stage) int { return cmp.Compare(a.At, b.At) })
}
