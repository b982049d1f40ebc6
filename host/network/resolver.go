package network

import (
	"bufio"
	"bytes"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// fileCheck is how often the host's files are looked at for changes: at most
// once in so long, when there are questions.
const fileCheck = time.Second

// resolvConf is what the host's /etc/resolv.conf says (resolv.conf(5)).
type resolvConf struct {
	servers  []netip.AddrPort
	timeout  time.Duration
	attempts int
}

// hostsTable is what the host's /etc/hosts says (hosts(5)).
type hostsTable struct {
	addrs map[string][]netip.Addr // by name
	names map[string][]string     // by name below in-addr.arpa or ip6.arpa
}

// resolverFiles are the host's own, read again when they change.
type resolverFiles struct {
	mu     sync.Mutex
	resolv watchedFile
	hosts  watchedFile
	c      resolvConf
	h      hostsTable
}

func newResolverFiles(resolv, hosts string) *resolverFiles {
	f := &resolverFiles{resolv: watchedFile{path: resolv}, hosts: watchedFile{path: hosts}}
	if resolv == "" {
		f.resolv.path = "/etc/resolv.conf"
	}
	if hosts == "" {
		f.hosts.path = "/etc/hosts"
	}
	return f
}

// watchedFile is a file that was read at some time.
type watchedFile struct {
	path    string
	checked time.Time
	info    os.FileInfo // nil: missing, or never read
}

// changed returns the file's content when it is another than last time.
func (w *watchedFile) changed() ([]byte, bool) {
	first := w.checked.IsZero()
	if !first && time.Since(w.checked) < fileCheck {
		return nil, false
	}
	w.checked = time.Now()
	info, err := os.Stat(w.path)
	if err != nil {
		gone := w.info != nil
		w.info = nil
		return nil, gone || first
	}
	if old := w.info; old != nil && os.SameFile(old, info) && old.ModTime().Equal(info.ModTime()) && old.Size() == info.Size() {
		return nil, false
	}
	b, err := os.ReadFile(w.path)
	if err != nil {
		return nil, first
	}
	w.info = info
	return b, true
}

func (f *resolverFiles) conf() resolvConf {
	f.mu.Lock()
	defer f.mu.Unlock()
	if b, ok := f.resolv.changed(); ok {
		f.c = parseResolvConf(b)
	}
	return f.c
}

func (f *resolverFiles) table() hostsTable {
	f.mu.Lock()
	defer f.mu.Unlock()
	if b, ok := f.hosts.changed(); ok {
		f.h = parseHosts(b)
	}
	return f.h
}

// addresses of a name, in lower case; nil when the file doesn't have it.
func (f *resolverFiles) addresses(name string) []netip.Addr { return f.table().addrs[name] }

// namesOf an address, given as a name below in-addr.arpa or ip6.arpa.
func (f *resolverFiles) namesOf(arpa string) []string { return f.table().names[arpa] }

// parseResolvConf reads what matters to who forwards. Without a name server
// there is one on loopback, as for the C library.
func parseResolvConf(b []byte) resolvConf {
	c := resolvConf{timeout: 5 * time.Second, attempts: 2}
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(fields[1]); err == nil && len(c.servers) < 3 {
				c.servers = append(c.servers, netip.AddrPortFrom(a, dnsPort))
			}
		case "options":
			for _, o := range fields[1:] {
				name, value, _ := strings.Cut(o, ":")
				n, err := strconv.Atoi(value)
				switch {
				case err != nil || n < 1:
				case name == "timeout":
					c.timeout = time.Duration(min(n, 30)) * time.Second
				case name == "attempts":
					c.attempts = min(n, 5)
				}
			}
		}
	}
	if len(c.servers) == 0 {
		c.servers = []netip.AddrPort{netip.AddrPortFrom(loopback4, dnsPort)}
	}
	return c
}

// parseHosts reads a table of hosts. The names of loopback that every system
// has are left out: a container has its own.
func parseHosts(b []byte) hostsTable {
	t := hostsTable{addrs: map[string][]netip.Addr{}, names: map[string][]string{}}
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		line, _, _ := strings.Cut(sc.Text(), "#")
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		a, err := netip.ParseAddr(fields[0])
		if err != nil || a.Zone() != "" {
			continue
		}
		a = a.Unmap()
		for _, name := range fields[1:] {
			name = strings.ToLower(strings.TrimSuffix(name, "."))
			if name == "localhost" || strings.HasPrefix(name, "ip6-") || a.IsMulticast() {
				continue
			}
			t.addrs[name] = append(t.addrs[name], a)
			if !a.IsLoopback() {
				key := arpa(a)
				t.names[key] = append(t.names[key], name)
			}
		}
	}
	return t
}

// arpa is the name that an address has in the tree of addresses.
func arpa(a netip.Addr) string {
	const digits = "0123456789abcdef"
	var b strings.Builder
	bytes := net.IP(a.AsSlice())
	for i := len(bytes) - 1; i >= 0; i-- {
		if a.Is4() {
			b.WriteString(strconv.Itoa(int(bytes[i])) + ".")
			continue
		}
		b.WriteString(string(digits[bytes[i]&15]) + "." + string(digits[bytes[i]>>4]) + ".")
	}
	if a.Is4() {
		return b.String() + "in-addr.arpa"
	}
	return b.String() + "ip6.arpa"
}
