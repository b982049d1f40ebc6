package main

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/docker/go-connections/nat"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/spf13/pflag"
)

// listVar adds a flag that may be given more than once.
func listVar(fs *pflag.FlagSet, list *[]string, name, letter, usage string) {
	checkedVar(fs, list, name, letter, usage, nil)
}

// checkedVar adds one whose values are checked as soon as they are read.
func checkedVar(fs *pflag.FlagSet, list *[]string, name, letter, usage string, check func(string) error) {
	fs.VarP(listValue{list, check}, name, letter, usage)
}

type listValue struct {
	list  *[]string
	check func(string) error // optional
}

func (v listValue) String() string { return "" }
func (v listValue) Type() string   { return "list" }
func (v listValue) Set(s string) error {
	if v.check != nil {
		if err := v.check(s); err != nil {
			return err
		}
	}
	*v.list = append(*v.list, s)
	return nil
}

// ports reads the published and the exposed ports; both are exposed in cfg.
func (f *createFlags) ports(cfg *container.Config) (network.PortMap, error) {
	_, bindings, err := nat.ParsePortSpecs(f.publish)
	if err != nil {
		return nil, err
	}
	cfg.ExposedPorts = network.PortSet{}
	out := network.PortMap{}
	for p, list := range bindings {
		port, err := network.ParsePort(string(p))
		if err != nil {
			return nil, err
		}
		cfg.ExposedPorts[port] = struct{}{}
		for _, b := range list {
			var ip netip.Addr
			if b.HostIP != "" {
				if ip, err = netip.ParseAddr(b.HostIP); err != nil {
					return nil, fmt.Errorf("invalid IP address: %s", b.HostIP)
				}
			}
			out[port] = append(out[port], network.PortBinding{HostIP: ip, HostPort: b.HostPort})
		}
	}
	for _, e := range f.expose {
		if strings.Contains(e, ":") {
			return nil, fmt.Errorf("invalid port format for --expose: %s", e)
		}
		r, err := network.ParsePortRange(e)
		if err != nil {
			return nil, fmt.Errorf("invalid range format for --expose: %w", err)
		}
		for port := range r.All() {
			cfg.ExposedPorts[port] = struct{}{}
		}
	}
	return out, nil
}

// environment reads files of variables, then adds those of the command line.
// A name without a value is taken from our own environment. When it isn't set
// there, the command line takes the variable away from the image's, and a
// file's line has no effect.
func environment(files, list []string, getenv func(string) (string, bool)) ([]string, error) {
	var out []string
	for _, name := range files {
		more, err := environmentFile(name, getenv)
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	for _, kv := range list {
		key, _, ok := strings.Cut(kv, "=")
		if key == "" {
			return nil, fmt.Errorf("invalid environment variable: %s", kv)
		}
		if !ok {
			if value, set := getenv(key); set {
				kv = key + "=" + value
			}
		}
		out = append(out, kv)
	}
	return out, nil
}

// environmentFile has Docker's words for all that is wrong in one, labels too.
func environmentFile(name string, getenv func(string) (string, bool)) (out []string, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	defer func() {
		if err != nil {
			err = fmt.Errorf("invalid env file (%s): %w", name, err)
		}
	}()
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for n := 1; sc.Scan(); n++ {
		line := sc.Text()
		if n == 1 {
			line = strings.TrimPrefix(line, "\ufeff")
		}
		if !utf8.ValidString(line) {
			return nil, fmt.Errorf("invalid utf8 bytes at line %d", n)
		}
		line = strings.TrimLeftFunc(line, unicode.IsSpace)
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		switch {
		case key == "":
			return nil, fmt.Errorf("no variable name on line '%s'", line)
		case strings.ContainsFunc(key, unicode.IsSpace):
			return nil, fmt.Errorf("variable '%s' contains whitespaces", key)
		case !ok:
			if value, ok = getenv(key); !ok {
				continue
			}
		}
		out = append(out, key+"="+value)
	}
	if errors.Is(sc.Err(), bufio.ErrTooLong) {
		return nil, errors.New("a line is longer than 1 MiB")
	}
	return out, sc.Err()
}

// keyValues reads "KEY[=VALUE]".
func keyValues(list []string) map[string]string {
	out := map[string]string{}
	for _, kv := range list {
		key, value, _ := strings.Cut(kv, "=")
		out[key] = value
	}
	return out
}
