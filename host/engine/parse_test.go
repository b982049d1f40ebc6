package engine

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestParseBind(t *testing.T) {
	for _, c := range []struct{ spec, want, err string }{
		{"/a:/b", "bind /a /b rw", ""},
		{"/a/../c:/b/:ro", "bind /c /b ro", ""},
		{"/a:/b:ro,z,rprivate", "bind /a /b ro", ""},
		{"vol:/b", "volume vol /b rw", ""},
		{"vol:/b:nocopy", "volume vol /b rw", ""},
		{"/a", "", "invalid volume specification"},
		{"/a:b", "", "mount path must be absolute"},
		{"/a:/", "", "destination can't be '/'"},
		{"/a:/b:bad", "", "invalid mode: bad"},
		{"/a:/b:nocopy", "", "nocopy is only for volumes"},
		{"v:/b", "", "includes invalid characters for a local volume name"},
		{"a:b:c:d", "", "invalid volume specification"},
		{"", "", "invalid volume specification"},
		{"/run/docker.sock:/x", "bind /run/docker.sock /x rw", ""},
	} {
		m, err := parseBind(c.spec)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q: %v, want %q", c.spec, err, c.err)
			}
			continue
		}
		access := map[bool]string{true: "rw", false: "ro"}[m.RW]
		if got := string(m.Type) + " " + m.Source + m.Name + " " + m.Destination + " " + access; got != c.want || err != nil {
			t.Errorf("%q: %q, %v; want %q", c.spec, got, err, c.want)
		}
	}
}

// Whatever comes: a clean absolute destination that isn't the root, or an error.
func FuzzParseBind(f *testing.F) {
	for _, s := range []string{"/a:/b:ro", "v1:/..", ":", "/a:/b/../..", "a:/b:nocopy,z"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := parseBind(s)
		if err == nil && (!strings.HasPrefix(m.Destination, "/") || m.Destination == "/" || strings.Contains(m.Destination+"/", "/../")) {
			t.Errorf("%q: destination %q", s, m.Destination)
		}
	})
}

func FuzzParseFilters(f *testing.F) {
	f.Add(`{"label":{"a=b":true,"c":false}}`)
	f.Add(`{"label":["a"]}`)
	f.Add(`{"name":["("]}`)
	f.Fuzz(func(t *testing.T, s string) {
		filters, err := ParseFilters(s)
		if err != nil {
			return
		}
		for k := range filters {
			filters.contains(k, "x")
			filters.labels(k, map[string]string{"a": "b"})
		}
	})
}

func TestParseTime(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	for s, want := range map[string]time.Time{
		"1h":                   now.Add(-time.Hour),
		"1600000000":           time.Unix(1_600_000_000, 0),
		"1600000000.5":         time.Unix(1_600_000_000, 500_000_000),
		"1600000000.000000001": time.Unix(1_600_000_000, 1),
		"2020-01-02T03:04:05Z": time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC),
	} {
		if got, err := ParseTime(s, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v; want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"x", "1.-5", "1.0000000001", "2020-13-01T00:00:00Z"} {
		if got, err := ParseTime(s, now); err == nil {
			t.Errorf("%q: %v", s, got)
		}
	}
}

func TestParseExtraHost(t *testing.T) {
	gw := netip.MustParseAddr("192.168.127.254")
	for s, want := range map[string]string{
		"a:1.2.3.4": "a 1.2.3.4", "a=::1": "a ::1", "a:[::1]": "a ::1", "h:host-gateway": "h 192.168.127.254",
		"a": "", ":1.2.3.4": "", "a:x": "",
	} {
		name, ip, err := parseExtraHost(s, gw)
		if got := strings.TrimSpace(name + " " + ip); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", s, got, err, want)
		}
	}
}

func TestSignalNumber(t *testing.T) {
	for s, want := range map[string]int{"": 15, "9": 9, "KILL": 9, "SIGkill": 9, "RTMIN+3": 37, "RTMAX-1": 63, "0": 0, "65": 0, "NOPE": 0, "-1": 0} {
		got, err := signalNumber(s, 15)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %d, %v; want %d", s, got, err, want)
		}
	}
}
