package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/docker/go-units"
	"golang.org/x/net/http/httpproxy"

	"sampan/host/engine"
	"sampan/host/image"
)

// config is $SAMPAN_HOME/config.toml. Every field is optional.
type config struct {
	Machine machineConfig `toml:"machine"`
	Network networkConfig `toml:"network"`
	Images  imagesConfig  `toml:"images"`
	// Registries by HOST or HOST:PORT.
	Registries map[string]registryConfig `toml:"registries"`
	Proxies    proxiesConfig             `toml:"proxies"`
}

// proxiesConfig goes before HTTP_PROXY, HTTPS_PROXY and NO_PROXY of the
// environment, each for itself; the keys are those of Docker's daemon.json.
type proxiesConfig struct {
	HTTP  string `toml:"http-proxy"`
	HTTPS string `toml:"https-proxy"`
	No    string `toml:"no-proxy"`
}

func (c proxiesConfig) validate() error {
	for key, proxy := range map[string]string{"http-proxy": c.HTTP, "https-proxy": c.HTTPS} {
		u, err := url.Parse(proxy)
		if proxy != "" && (err != nil || u.Host == "" || !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme)) {
			return fmt.Errorf("proxies.%s: want http://HOST:PORT, https:// or socks5://", key) // it may have a password
		}
	}
	return nil
}

func (c proxiesConfig) proxies() *httpproxy.Config {
	p := httpproxy.FromEnvironment()
	p.HTTPProxy = cmp.Or(c.HTTP, p.HTTPProxy)
	p.HTTPSProxy = cmp.Or(c.HTTPS, p.HTTPSProxy)
	p.NoProxy = cmp.Or(c.No, p.NoProxy)
	return p
}

type imagesConfig struct {
	// MaxLayer bounds one layer, uncompressed, e.g. "64GiB".
	MaxLayer size `toml:"max-layer"`
	// MaxFiles bounds the files of one layer.
	MaxFiles int `toml:"max-files"`
	// KeepCompressed keeps those compressed layers that can't be made again.
	KeepCompressed bool `toml:"keep-compressed"`
}

type registryConfig struct {
	// Mirrors are asked before the registry: "https://HOST".
	Mirrors []string `toml:"mirrors"`
	// Insecure allows plain HTTP and any certificate.
	Insecure bool `toml:"insecure"`
}

// registries are those of the file, and the folders of certificates.
func (c config) registries(home string) image.Registries {
	r := image.Registries{Hosts: map[string]image.Registry{}, Certs: []string{"/etc/docker/certs.d", filepath.Join(home, "certs.d")}, Proxies: c.Proxies.proxies()}
	for host, reg := range c.Registries {
		r.Hosts[host] = image.Registry{Mirrors: reg.Mirrors, Insecure: reg.Insecure}
	}
	return r
}

type machineConfig struct {
	// CPUs of the guest; the host's by default.
	CPUs int `toml:"cpus"`
	// Memory of the guest, e.g. "2GiB".
	Memory size `toml:"memory"`
	// Disk is the size of a new data disk, e.g. "64GiB"; it takes no space
	// before it is used.
	Disk size `toml:"disk"`
	// Idle is how long the machine runs on when nothing needs it, e.g. "5m";
	// "0s": for ever.
	Idle duration `toml:"idle"`
	// Accelerator is "auto", "kvm" or "tcg" (Linux).
	Accelerator string `toml:"accelerator"`
}

type networkConfig struct {
	// Uplink is the subnet between host and guest, an IPv4 /24; by default one
	// that the host has no route to.
	Uplink netip.Prefix `toml:"uplink"`
	// Pools are where networks get their subnets from; by default Docker's.
	Pools []poolConfig `toml:"pools"`
	// Mirror says that what containers of --network host listen on is there on
	// the host's loopback too.
	Mirror bool `toml:"mirror"`
}

// poolConfig is a range of addresses, and how large a network's part is, in bits.
type poolConfig struct {
	Base netip.Prefix `toml:"base"`
	Size int          `toml:"size"`
}

func (c networkConfig) pools() []engine.Pool {
	var list []engine.Pool
	for _, p := range c.Pools {
		list = append(list, engine.Pool(p))
	}
	return list
}

type size int64

func (s *size) UnmarshalText(b []byte) error {
	n, err := units.RAMInBytes(string(b))
	*s = size(n)
	return err
}

type duration time.Duration

func (d *duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = duration(v)
	return err
}

// readConfig returns the defaults with the file's values over them. A missing
// file is no error; a key that means nothing is.
func readConfig(path string) (config, error) {
	c := config{Machine: machineConfig{
		CPUs:   runtime.NumCPU(),
		Memory: 2 << 30,
		Disk:   64 << 30,
		Idle:   duration(5 * time.Minute),
	}, Network: networkConfig{Mirror: true}, Images: imagesConfig{KeepCompressed: true}}
	meta, err := toml.DecodeFile(path, &c)
	if errors.Is(err, os.ErrNotExist) {
		return c, nil
	} else if err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	if extra := meta.Undecoded(); len(extra) > 0 {
		return c, fmt.Errorf("%s: unknown key %q", path, extra[0].String())
	}
	m := c.Machine
	switch {
	case m.CPUs < 1:
		return c, fmt.Errorf("%s: machine.cpus is %d: want at least 1", path, m.CPUs)
	case m.Memory < 256<<20:
		return c, fmt.Errorf("%s: machine.memory is %d bytes: want at least 256MiB", path, m.Memory)
	case m.Disk < 1<<30:
		return c, fmt.Errorf("%s: machine.disk is %d bytes: want at least 1GiB", path, m.Disk)
	case m.Idle < 0:
		return c, fmt.Errorf("%s: machine.idle is negative", path)
	case c.Images.MaxLayer < 0 || c.Images.MaxFiles < 0:
		return c, fmt.Errorf("%s: a limit of images is negative", path)
	}
	if err := errors.Join(c.registries("").Validate(), c.Proxies.validate()); err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	if u := c.Network.Uplink; u.IsValid() && (!u.Addr().Is4() || u.Bits() != 24) {
		return c, fmt.Errorf("%s: network.uplink is %s: want an IPv4 /24", path, u)
	}
	for i, p := range c.Network.pools() {
		if err := p.Validate(); err != nil {
			return c, fmt.Errorf("%s: network.pools, number %d: %w", path, i+1, err)
		}
	}
	switch m.Accelerator {
	case "", "auto", "kvm", "tcg":
	default:
		return c, fmt.Errorf("%s: machine.accelerator is %q: want auto, kvm or tcg", path, m.Accelerator)
	}
	c.Machine.Memory &^= 1<<20 - 1
	return c, nil
}
