package engine

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	apinet "github.com/moby/moby/api/types/network"
)

// ListOptions select and shape what List returns.
type ListOptions struct {
	All     bool // not only those that run
	Limit   int  // the newest so many, whatever their state; 0: no limit
	Size    bool
	Filters Filters
}

// view is a container at one moment.
type view struct {
	rec   record
	ends  []*endpoint // while it runs
	bound apinet.PortMap
}

func (c *ctr) view() view {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := view{rec: c.rec}
	if c.run != nil {
		v.ends, v.bound = c.run.endpoints(), c.run.portMap()
	}
	return v
}

// List returns containers, the newest first.
func (e *Engine) List(ctx context.Context, o ListOptions) ([]container.Summary, error) {
	match, err := e.listFilter(o)
	if err != nil {
		return nil, err
	}
	var views []view
	for _, c := range e.all() {
		views = append(views, c.view())
	}
	slices.SortFunc(views, func(a, b view) int {
		return cmp.Or(b.rec.Created.Compare(a.rec.Created), strings.Compare(a.rec.ID, b.rec.ID))
	})
	list := []container.Summary{}
	names := linkNames(views)
	named := e.imageNames()
	for _, v := range views {
		if o.Limit > 0 && len(list) == o.Limit {
			break
		}
		if !match(v) {
			continue
		}
		s := v.summary(time.Now())
		s.Image = named(s.Image, s.ImageID)
		s.Names = append(s.Names, names[s.ID]...)
		slices.Sort(s.Names)
		if o.Size {
			if s.SizeRw, s.SizeRootFs, err = e.sizes(ctx, &v.rec, true); err != nil {
				if errdefs.IsConflict(err) || errdefs.IsNotFound(err) {
					continue // it is being removed
				}
				return nil, err
			}
		}
		list = append(list, s)
	}
	return list, nil
}

// imageNames tells by which name a container's image is shown: the one that it was
// created with, unless that is no longer the image's.
func (e *Engine) imageNames() func(name, id string) string {
	known := map[string]string{} // each is looked up once
	return func(name, id string) string {
		now, ok := known[name]
		if !ok {
			if img, err := e.cfg.Image(name); err == nil {
				now = img.ID
			}
			known[name] = now
		}
		if now != id {
			return id
		}
		return name
	}
}

// listFilter is the condition of a list.
func (e *Engine) listFilter(o ListOptions) (func(view) bool, error) {
	f := o.Filters
	if err := f.allow("id", "name", "label", "status", "exited", "ancestor", "volume", "network", "before", "since", "publish", "expose", "health", "is-task"); err != nil {
		return nil, err
	}
	if len(f["is-task"]) > 0 {
		return nil, unsupported("the filter is-task")
	}
	published, err := portFilter("publish", f["publish"])
	if err != nil {
		return nil, err
	}
	exposed, err := portFilter("expose", f["expose"])
	if err != nil {
		return nil, err
	}
	var before, since time.Time
	for key, t := range map[string]*time.Time{"before": &before, "since": &since} {
		if len(f[key]) > 0 {
			c, err := e.find(f[key][0])
			if err != nil {
				return nil, err
			}
			*t = c.rec.Created
		}
	}
	exited, byCode, err := f.integer("exited")
	if err != nil {
		return nil, err
	}
	for _, h := range f["health"] {
		switch container.HealthStatus(h) {
		case container.NoHealthcheck, container.Starting, container.Healthy, container.Unhealthy:
		default:
			return nil, invalid("Unrecognised filter value for health: %s", h)
		}
	}
	for _, s := range f["status"] {
		if !slices.Contains([]string{"created", "running", "paused", "restarting", "removing", "exited", "dead"}, s) {
			return nil, invalid("invalid filter 'status=%s'", s)
		}
	}
	ancestors, err := e.ancestors(f["ancestor"])
	if err != nil {
		return nil, err
	}
	all := o.All || o.Limit > 0 || len(f["status"]) > 0 || byCode || !before.IsZero() || !since.IsZero()
	return func(v view) bool {
		r := &v.rec
		status := r.State.Status
		running := status == container.StateRunning || status == container.StatePaused || status == container.StateRestarting
		var volumes []string
		for _, m := range r.Mounts {
			volumes = append(volumes, m.Name, m.Destination)
		}
		var networks []string
		for _, a := range r.Networks {
			networks = append(networks, a.Name, a.ID)
		}
		return (all || running) &&
			f.prefix("id", r.ID) && f.contains("name", r.Name, "/"+r.Name) && f.labels("label", r.Config.Labels) &&
			f.equal("status", string(status)) && f.equal("volume", volumes...) && f.equal("network", networks...) &&
			f.equal("health", string(healthOf(r.State.Health))) &&
			(!byCode || status == container.StateExited && r.State.ExitCode == exited) &&
			(before.IsZero() || r.Created.Before(before)) && (since.IsZero() || r.Created.After(since)) &&
			(published == nil || v.published(published)) && (exposed == nil || slices.ContainsFunc(slices.Collect(maps.Keys(v.bound)), exposed)) &&
			(ancestors == nil || slices.Contains(ancestors, r.ImageID))
	}, nil
}

// portFilter reads PORT[-PORT][/PROTOCOL]; nil when there is none to read.
func portFilter(key string, values []string) (func(apinet.Port) bool, error) {
	if len(values) == 0 {
		return nil, nil
	}
	var ranges []apinet.PortRange
	for _, v := range values {
		r, err := apinet.ParsePortRange(v)
		if err != nil {
			return nil, invalid("invalid filter '%s=%s'", key, v)
		}
		ranges = append(ranges, r)
	}
	return func(p apinet.Port) bool {
		return slices.ContainsFunc(ranges, func(r apinet.PortRange) bool {
			return p.Proto() == r.Proto() && p.Num() >= r.Start() && p.Num() <= r.End()
		})
	}, nil
}

// published says whether one of the ports of the host, or of the container, that
// it publishes matches. As with Docker, one that doesn't run publishes none.
func (v view) published(match func(apinet.Port) bool) bool {
	for port, bindings := range v.bound {
		if len(bindings) > 0 && match(port) {
			return true
		}
		for _, b := range bindings {
			if p, err := apinet.ParsePort(b.HostPort + "/" + string(port.Proto())); err == nil && match(p) {
				return true
			}
		}
	}
	return false
}

// ancestors are the images that a filter names; one that doesn't exist has no
// containers.
func (e *Engine) ancestors(refs []string) ([]string, error) {
	if len(refs) == 0 {
		return nil, nil
	}
	ids := []string{}
	for _, ref := range refs {
		if img, err := e.cfg.Image(ref); err == nil {
			ids = append(ids, img.ID)
		}
	}
	return ids, nil
}

func (v view) summary(now time.Time) container.Summary {
	r := &v.rec
	s := container.Summary{
		ID: r.ID, Names: []string{"/" + r.Name}, Image: r.Config.Image, ImageID: r.ImageID,
		Command: commandLine(r.Args), Created: r.Created.Unix(), Ports: v.ports(),
		Labels: r.Config.Labels, State: r.State.Status, Status: r.State.text(now),
		NetworkSettings: &container.NetworkSettingsSummary{Networks: v.networks()},
		Mounts:          v.mounts(),
	}
	if h := r.State.Health; h != nil {
		s.Health = &container.HealthSummary{Status: h.Status, FailingStreak: h.FailingStreak}
	}
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	s.HostConfig.NetworkMode = string(r.HostConfig.NetworkMode)
	s.HostConfig.Annotations = r.HostConfig.Annotations
	return s
}

// text is what ps shows of a state.
func (s *state) text(now time.Time) string {
	since := func(t time.Time) string { return units.HumanDuration(now.Sub(t)) }
	switch s.Status {
	case container.StateRunning:
		up := "Up " + since(s.StartedAt)
		switch {
		case s.Health == nil:
			return up
		case s.Health.Status == container.Starting:
			return up + " (health: starting)"
		}
		return up + " (" + string(s.Health.Status) + ")"
	case container.StatePaused:
		return "Up " + since(s.StartedAt) + " (Paused)"
	case container.StateRestarting:
		return fmt.Sprintf("Restarting (%d) %s ago", s.ExitCode, since(s.FinishedAt))
	case container.StateExited:
		return fmt.Sprintf("Exited (%d) %s ago", s.ExitCode, since(s.FinishedAt))
	case container.StateRemoving:
		return "Removal In Progress"
	}
	return "Created"
}

// ports of a running container, in order.
func (v view) ports() []container.PortSummary {
	list := []container.PortSummary{}
	for port, bindings := range v.bound {
		p := container.PortSummary{PrivatePort: port.Num(), Type: string(port.Proto())}
		if len(bindings) == 0 {
			list = append(list, p)
		}
		for _, b := range bindings {
			number, err := strconv.ParseUint(b.HostPort, 10, 16)
			if err != nil {
				continue // never stored so
			}
			p.IP, p.PublicPort = b.HostIP, uint16(number)
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b container.PortSummary) int {
		return cmp.Or(cmp.Compare(a.PrivatePort, b.PrivatePort), cmp.Compare(a.PublicPort, b.PublicPort), strings.Compare(a.Type, b.Type), a.IP.Compare(b.IP))
	})
	return list
}

// mounts that are shown.
func (v view) mounts() []container.MountPoint {
	list := []container.MountPoint{}
	for _, m := range v.rec.Mounts {
		if !m.Hidden {
			list = append(list, m.MountPoint)
		}
	}
	return list
}

// networks are the container's endpoints by network.
func (v view) networks() map[string]*apinet.EndpointSettings {
	list := map[string]*apinet.EndpointSettings{}
	for _, a := range v.rec.Networks {
		ep := a.Asked.Copy()
		ep.NetworkID = a.ID
		if userDefined(a.Name) {
			ep.DNSNames = dnsNames(&v.rec, a)
		}
		for _, end := range v.ends {
			if end.net.ID == a.ID {
				end.describe(ep)
			}
		}
		list[a.Name] = ep
	}
	return list
}

// commandLine is a command as Docker shows it: only spaces are told apart.
func commandLine(args []string) string {
	shown := make([]string, len(args))
	for i, arg := range args {
		if shown[i] = arg; i > 0 && strings.Contains(arg, " ") {
			shown[i] = "'" + arg + "'"
		}
	}
	return strings.Join(shown, " ")
}
