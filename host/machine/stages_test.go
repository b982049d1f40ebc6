package machine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"sampan/proto"
)

func TestStages(t *testing.T) {
	at := func(name string, uptime time.Duration) *proto.BootStage {
		return &proto.BootStage{Name: name, UptimeNano: int64(uptime)}
	}
	host := []Stage{{"bundle", 10}, {"process", 50}, {"kernel", 300}, {"agent", 1000}}
	const plain = "bundle 10 process 50 kernel 300 agent 1000"
	var many []*proto.BootStage
	for range maxGuestStages {
		many = append(many, at("init", 1))
	}
	for _, tt := range []struct {
		name  string
		guest []*proto.BootStage
		want  string
	}{
		{"aligned", []*proto.BootStage{at("init", 500), at("disk", 700), at("connected", 800)},
			"bundle 10 process 50 kernel 300 init 700 disk 900 agent 1000"},
		{"none", nil, plain},
		{"no meeting", []*proto.BootStage{at("init", 500)}, plain},
		{"before the boot", []*proto.BootStage{at("init", 500), at("connected", 1001)}, plain},
		{"after the call", []*proto.BootStage{at("init", 801), at("connected", 800)},
			"bundle 10 process 50 kernel 300 agent 1000"},
		{"negative", []*proto.BootStage{at("init", -1), at("connected", 800)},
			"bundle 10 process 50 kernel 300 agent 1000"},
		{"no names", []*proto.BootStage{at("", 1), at("\x1b[2J", 1), at(strings.Repeat("x", 17), 1), at("connected", 800)},
			"bundle 10 process 50 kernel 300 agent 1000"},
		{"too many", append(many, at("connected", 800)), plain},
	} {
		s := &stages{list: append([]Stage(nil), host...)}
		s.addGuest(tt.guest)
		var got []string
		for _, st := range s.all() {
			got = append(got, fmt.Sprintf("%s %d", st.Name, st.At))
		}
		if g := strings.Join(got, " "); g != tt.want {
			t.Errorf("%s: %s\nwant %s", tt.name, g, tt.want)
		}
	}
}

// The first container is the boot's last stage, and told once.
func TestFirstContainer(t *testing.T) {
	m, _ := newMachine(t, guest(proto.Version, nil), nil)
	g := mustGuest(t, m)
	g.AgentService = starter{g.AgentService}
	for _, id := range []string{"refused", "one", "two"} {
		if _, err := g.Start(t.Context(), &proto.StartRequest{Id: id}); (err != nil) != (id == "refused") {
			t.Fatalf("%s: %v", id, err)
		}
		last := m.Status(t.Context()).Boot[len(m.Status(t.Context()).Boot)-1].Name
		if want := map[bool]string{true: "configured", false: "container"}[id == "refused"]; last != want {
			t.Errorf("after %s the last stage is %q, want %q", id, last, want)
		}
	}
	if n := len(m.Status(t.Context()).Boot); n != 7 {
		t.Errorf("%d stages: %v", n, m.Status(t.Context()).Boot)
	}
}

// starter starts any container but one.
type starter struct{ proto.AgentService }

func (starter) Start(_ context.Context, req *proto.StartRequest) (*proto.StartResponse, error) {
	if req.Id == "refused" {
		return nil, errors.New("refused")
	}
	return &proto.StartResponse{}, nil
}
