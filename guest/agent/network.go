package agent

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"

	"sampan/proto"
)

// Paths of files that networks have a part in.
const (
	hostsFile  = "/etc/hosts"
	resolvConf = "/etc/resolv.conf"
)

// maxEdited bounds those files, which a container can let grow.
const maxEdited = 1 << 20

// containerNamespace begins the path of a namespace that is another container's
// (agent.proto, StartRequest.spec).
const containerNamespace = "container:"

// shareable are the namespaces that can be another container's, by their names
// in /proc/PID/ns.
var shareable = map[specs.LinuxNamespaceType]string{
	specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc", specs.PIDNamespace: "pid",
}

// shareNamespaces finds the containers whose namespaces a spec names.
func (s *Service) shareNamespaces(spec *specs.Spec) (ids []string, err error) {
	for i := range spec.Linux.Namespaces {
		ns := &spec.Linux.Namespaces[i]
		id, ok := strings.CutPrefix(ns.Path, containerNamespace)
		if !ok {
			continue
		}
		file := shareable[ns.Type]
		if file == "" {
			return nil, errorf(codes.InvalidArgument, "spec: %s namespace of another container", ns.Type)
		}
		_, pid, err := s.runningPid(id)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
		ns.Path = fmt.Sprintf("/proc/%d/ns/%s", pid, file)
	}
	return ids, nil
}

// errorOf replaces an error of a start by the better reason that a container
// whose namespace was to be shared has ended meanwhile.
func (s *Service) errorOf(err error, shared []string) error {
	if err != nil {
		for _, id := range shared {
			if _, ended := s.running(id); ended != nil {
				return ended
			}
		}
	}
	return err
}

// runningPid finds a running container and its first process.
func (s *Service) runningPid(id string) (*container, int, error) {
	c, err := s.running(id)
	if err != nil {
		return nil, 0, err
	}
	h := c.first.running()
	if h == nil {
		return nil, 0, errorf(codes.FailedPrecondition, "container %s is not running", id)
	}
	return c, h.Pid(), nil
}

// Connect implements proto.AgentService.
func (s *Service) Connect(_ context.Context, req *proto.ConnectRequest) (*proto.Empty, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	c, pid, err := s.runningPid(req.Container)
	if err != nil {
		return nil, err
	}
	if err := s.later(); err != nil {
		return nil, failed("connect container "+c.id, err)
	}
	resolves, err := s.network.Connect(c.id, pid, req.Endpoint, req.Resolver)
	if err != nil {
		return nil, failed("connect container "+c.id, err)
	}
	if resolves {
		err = c.edit(resolvConf, func([]byte) []byte { return req.ResolvConf })
	}
	if err == nil && len(req.Hosts) > 0 {
		err = c.edit(hostsFile, func(text []byte) []byte {
			return append(text, strings.Join(req.Hosts, "\n")+"\n"...)
		})
	}
	if err != nil {
		return nil, failed("connect container "+c.id, err)
	}
	return &proto.Empty{}, nil
}

// Disconnect implements proto.AgentService.
func (s *Service) Disconnect(_ context.Context, req *proto.DisconnectRequest) (*proto.Empty, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	c, _, err := s.runningPid(req.Container)
	if err != nil {
		return nil, err
	}
	addrs := s.network.Addresses(c.id, req.Network)
	if err := s.network.Disconnect(c.id, req.Network); err != nil {
		return nil, failed("disconnect container "+c.id, err)
	}
	err = c.edit(hostsFile, func(text []byte) []byte { return withoutAddresses(text, addrs) })
	if err != nil {
		return nil, failed("disconnect container "+c.id, err)
	}
	return &proto.Empty{}, nil
}

// Publish implements proto.AgentService.
func (s *Service) Publish(_ context.Context, req *proto.PublishRequest) (*proto.Empty, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	c, _, err := s.runningPid(req.Container)
	if err != nil {
		return nil, err
	}
	if err := s.network.Publish(c.id, req.Published); err != nil {
		return nil, failed("publish ports of container "+c.id, err)
	}
	return &proto.Empty{}, nil
}

// Relink implements proto.AgentService.
func (s *Service) Relink(_ context.Context, req *proto.RelinkRequest) (*proto.Empty, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	c, _, err := s.runningPid(req.Container)
	if err != nil {
		return nil, err
	}
	err = c.edit(hostsFile, func(text []byte) []byte { return relinked(text, req.Alias, req.Address) })
	if err != nil {
		return nil, failed("relink container "+c.id, err)
	}
	return &proto.Empty{}, nil
}

// RemoveNetwork implements proto.AgentService.
func (s *Service) RemoveNetwork(_ context.Context, req *proto.NetworkRequest) (*proto.Empty, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	if err := s.network.Remove(req.Id); err != nil {
		return nil, failed("remove network", err)
	}
	return &proto.Empty{}, nil
}

// edit changes one of the files made for the container, in place: it's mounted
// there. One that isn't ours is left alone. What it says is the container's, and
// how much; what it is is not: its name is in a directory of the agent's.
func (c *container) edit(path string, change func([]byte) []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.root == nil {
		return nil
	}
	at, ok := c.root.files[path]
	if !ok {
		return nil
	}
	f, err := os.Open(at)
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxEdited+1))
	if err != nil {
		return err
	}
	if len(text) > maxEdited {
		return fmt.Errorf("%s: more than %d bytes", path, maxEdited)
	}
	return os.WriteFile(at, change(text), 0o644)
}

// relinked gives the line of a hosts file whose first name is alias another
// address; without one it drops the line.
func relinked(text []byte, alias, addr string) []byte {
	var b strings.Builder
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) > 1 && fields[1] == alias && !strings.HasPrefix(fields[0], "#") {
			if addr == "" {
				continue
			}
			line = addr + "\t" + strings.Join(fields[1:], " ") + "\n"
		}
		b.WriteString(line)
	}
	return []byte(b.String())
}

// withoutAddresses drops the lines of a hosts file that tell of addresses.
func withoutAddresses(text []byte, addrs []netip.Addr) []byte {
	lines := strings.SplitAfter(string(text), "\n")
	lines = slices.DeleteFunc(lines, func(line string) bool {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			return false
		}
		a, err := netip.ParseAddr(fields[0])
		return err == nil && slices.Contains(addrs, a)
	})
	return []byte(strings.Join(lines, ""))
}
