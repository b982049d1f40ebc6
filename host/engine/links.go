package engine

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"sampan/proto"
)

// Links are what containers of the default network, which resolves no names,
// have of each other: --link NAME:ALIAS gives a container a line in its hosts
// file, and variables that tell the other's address, ports and environment. In
// networks of one's own a link is an alias, which their name server knows.

// link is a container's name for another one of the default network.
type link struct {
	Alias string
	ID    string // the other's
	Name  string // the other's when the link was made
}

// linked is what a starting container is given of a link's other end.
type linked struct {
	link
	addr     netip.Addr
	hostname string
	ports    []network.Port
	env      []string
}

// planLinks finds the containers that a new one is linked to, and takes the
// links out of its HostConfig.
func (e *Engine) planLinks(rec *record) error {
	h := rec.HostConfig
	if h.NetworkMode.IsUserDefined() { // aliases there
		return nil
	}
	for _, text := range h.Links {
		name, alias, err := parseLink(text)
		if err != nil {
			return err
		}
		other, err := e.linkTarget(name)
		if err != nil {
			return err
		}
		// Of two with one alias Docker keeps the first.
		if !slices.ContainsFunc(rec.Links, func(l link) bool { return l.Alias == alias }) {
			rec.Links = append(rec.Links, link{Alias: alias, ID: other.ID, Name: other.Name})
		}
	}
	h.Links = nil
	return nil
}

// parseLink reads NAME[:ALIAS], or what inspect shows: /NAME:/CONTAINER/ALIAS.
func parseLink(s string) (name, alias string, err error) {
	name, alias, ok := strings.Cut(s, ":")
	if !ok {
		alias = name
	}
	if name == "" || alias == "" || strings.Contains(alias, ":") || strings.ContainsAny(alias, " \t\n") {
		return "", "", invalid("bad format for links: %s", s)
	}
	if rest, ok := strings.CutPrefix(name, "/"); ok {
		name, alias = rest, path.Base(alias)
	}
	return name, alias, nil
}

// linkTarget is the container that a link leads to: where the named one is in
// another's network, that other one.
func (e *Engine) linkTarget(name string) (*record, error) {
	for range 100 {
		c, err := e.find(name)
		if err != nil {
			// Not found would mean the image to clients.
			return nil, invalid("could not get container for %s: %s", name, err)
		}
		rec := c.view().rec
		mode := rec.HostConfig.NetworkMode
		switch {
		case mode.IsHost():
			return nil, errHostLink
		case !mode.IsContainer():
			return &rec, nil
		}
		name = mode.ConnectedContainer()
	}
	return nil, invalid("could not get container for %s: networks of containers lead in a circle", name)
}

var errHostLink = invalid("conflicting options: host type networking can't be used with links. This would result in undefined behavior")

// inDefault says whether a container is in the network where links count.
func (r *record) inDefault() bool {
	return slices.ContainsFunc(r.Networks, func(a attachment) bool { return a.ID == builtinID(network.NetworkBridge) })
}

// links finds out what a container that is to start has of its links. All their
// other ends must run.
func (e *Engine) links(rec *record) ([]linked, error) {
	if !rec.inDefault() {
		return nil, nil
	}
	var list []linked
	for _, l := range rec.Links {
		c, err := e.find(l.ID)
		if err != nil {
			return nil, errNotLinked(l.Name, rec, l)
		}
		v := c.view()
		if len(v.ends) == 0 {
			return nil, errNotLinked(v.rec.Name, rec, l)
		}
		l.Name = v.rec.Name
		addr := v.address()
		if !addr.IsValid() {
			return nil, errdefs.ErrInternal.WithMessage(fmt.Sprintf("Cannot link to /%s, as it does not belong to the default network", l.Name))
		}
		list = append(list, linked{
			link: l, addr: addr, hostname: v.rec.Config.Hostname,
			ports: slices.Collect(maps.Keys(v.rec.Config.ExposedPorts)), env: v.rec.Config.Env,
		})
	}
	return list, nil
}

func errNotLinked(other string, rec *record, l link) error {
	return errdefs.ErrInternal.WithMessage(fmt.Sprintf("Cannot link to a non running container: /%s AS /%s/%s", other, rec.Name, l.Alias))
}

// address of a running container in the default network.
func (v view) address() netip.Addr {
	for _, ep := range v.ends {
		if ep.net.ID != builtinID(network.NetworkBridge) {
			continue
		}
		for _, a := range ep.addrs {
			if a.Addr().Is4() {
				return a.Addr()
			}
		}
	}
	return netip.Addr{}
}

// hosts is the link's line of the hosts file.
func (l *linked) hosts() string {
	line := fmt.Sprintf("%s\t%s %s", l.addr, l.Alias, l.hostname)
	if l.Alias != l.Name {
		line += " " + l.Name
	}
	return line
}

// variables are those that Docker makes of a link: of the lowest port, of runs of
// three ports and more, of each port, the name, and the other's environment.
func (l *linked) variables(owner string) []string {
	prefix := strings.ReplaceAll(strings.ToUpper(l.Alias), "-", "_")
	ports := slices.SortedFunc(slices.Values(l.ports), func(a, b network.Port) int {
		return cmp.Or(cmp.Compare(a.Num(), b.Num()), strings.Compare(string(a.Proto()), string(b.Proto())))
	})
	url := func(p network.Port) string {
		return fmt.Sprintf("%s://%s", p.Proto(), netip.AddrPortFrom(l.addr, p.Num()))
	}
	var env []string
	set := func(name string, value any) { env = append(env, fmt.Sprintf("%s_%s=%v", prefix, name, value)) }
	of := func(p network.Port) string {
		return fmt.Sprintf("PORT_%d_%s", p.Num(), strings.ToUpper(string(p.Proto())))
	}
	if len(ports) > 0 {
		set("PORT", url(ports[0]))
	}
	for i := 0; i < len(ports); {
		end := i + 1
		for end < len(ports) && ports[end].Num() <= ports[end-1].Num()+1 {
			end++
		}
		if first, last := ports[i], ports[end-1]; end-i > 2 {
			set(of(first)+"_START", url(first))
			set(of(first)+"_PORT_START", first.Num())
			set(of(first)+"_END", url(last))
			set(of(first)+"_PORT_END", last.Num())
		}
		i = end
	}
	for _, p := range ports {
		set(of(p), url(p))
		set(of(p)+"_ADDR", l.addr)
		set(of(p)+"_PORT", p.Num())
		set(of(p)+"_PROTO", p.Proto())
	}
	set("NAME", "/"+owner+"/"+l.Alias)
	for _, kv := range l.env {
		if name, value, ok := strings.Cut(kv, "="); ok && name != "HOME" && name != "PATH" {
			set("ENV_"+name, value)
		}
	}
	return env
}

// withVariables is a container's configuration with variables before its own.
func withVariables(cfg *container.Config, env []string) *container.Config {
	if len(env) == 0 {
		return cfg
	}
	own := *cfg
	own.Env = slices.Concat(env, cfg.Env)
	return &own
}

// relink tells those that have a link to a container that has started its
// address, which may be another than it had when they started.
func (e *Engine) relink(id string, v view) {
	addr := v.address()
	if !addr.IsValid() {
		return
	}
	for _, c := range e.all() {
		c.mu.Lock()
		links, r := c.rec.Links, c.run
		linking := c.rec.inDefault()
		c.mu.Unlock()
		if r == nil || !linking {
			continue
		}
		for _, l := range links {
			if l.ID != id {
				continue
			}
			_, err := r.guest.Relink(e.ctx, &proto.RelinkRequest{Container: c.id, Alias: l.Alias, Address: addr.String()})
			if err != nil {
				e.log.Warn("a container does not know the new address of a link", "id", c.id, "link", l.Alias, "error", message(err))
			}
		}
	}
}

// Unlink takes a link away: CONTAINER/ALIAS.
func (e *Engine) Unlink(ctx context.Context, name string) error {
	owner, alias, ok := strings.Cut(strings.TrimPrefix(name, "/"), "/")
	if !ok {
		if _, err := e.find(name); err != nil {
			return err
		}
		return conflict("Conflict, cannot remove the default link name of the container")
	}
	c, err := e.find(owner)
	if err != nil {
		return notFound("No such container: %s", name)
	}
	return e.withContainer(ctx, owner, func(*ctr) error {
		c.mu.Lock()
		r, before := c.run, c.rec.Links
		c.rec.Links = slices.DeleteFunc(slices.Clone(before), func(l link) bool { return l.Alias == alias })
		var err error
		if len(c.rec.Links) == len(before) {
			err = notFound("No such container: %s", name)
		} else if err = e.save(c); err != nil {
			c.rec.Links = before
		}
		linking := c.rec.inDefault()
		c.mu.Unlock()
		if err != nil || r == nil || !linking {
			return err
		}
		_, err = r.guest.Relink(ctx, &proto.RelinkRequest{Container: c.id, Alias: alias})
		return err
	})
}

// linkEnd is the container that another, by its name, has a link to; nil without
// one.
func (e *Engine) linkEnd(owner, alias string) *ctr {
	e.mu.Lock()
	c := e.containers[e.names[owner]]
	e.mu.Unlock()
	if c == nil {
		return nil
	}
	for _, l := range c.view().rec.Links {
		if l.Alias == alias {
			e.mu.Lock()
			defer e.mu.Unlock()
			return e.containers[l.ID]
		}
	}
	return nil
}

// linkNames are the further names of containers, by their IDs.
func linkNames(views []view) map[string][]string {
	names := map[string][]string{}
	for _, v := range views {
		for _, l := range v.rec.Links {
			names[l.ID] = append(names[l.ID], "/"+v.rec.Name+"/"+l.Alias)
		}
	}
	return names
}

// shownLinks are a container's links as inspect has them.
func (e *Engine) shownLinks(rec *record) []string {
	list := slices.Clone(rec.HostConfig.Links)
	for _, l := range rec.Links {
		name := l.Name
		if c, err := e.find(l.ID); err == nil {
			name = c.view().rec.Name
		}
		list = append(list, fmt.Sprintf("/%s:/%s/%s", name, rec.Name, l.Alias))
	}
	slices.Sort(list)
	return list
}
