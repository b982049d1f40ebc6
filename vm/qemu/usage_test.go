package qemu

import (
	"strings"
	"testing"
	"time"

	"sampan/vm"
)

// realStat is QEMU's, with a name as bad as a name can be.
const realStat = "4127 (qemu) x (y)) S 3980 4127 3980 0 -1 4194560 108513 0 12 0 1234 66 0 0 20 0 9 0 812345 3406217216 91234 18446744073709551615 1 1 0 0 0 0 268444224 0 16963 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n"

func TestParseStat(t *testing.T) {
	var u vm.Usage
	if err := parseStat(realStat, &u); err != nil || u != (vm.Usage{CPU: 13 * time.Second, Threads: 9}) {
		t.Errorf("%+v, %v", u, err)
	}
	for text, want := range map[string]string{
		"":                        "no name",
		"4127 qemu S 1 2":         "no name",
		"4127 (qemu) S 3980 4127": "3 fields after the name",
		"4127 (qemu)":             "0 fields",
		strings.Replace(realStat, "1234", "x", 1):                               `field 14 is "x"`,
		strings.Replace(realStat, " 66 ", " -66 ", 1):                           `field 15 is "-66"`,
		strings.Replace(realStat, "20 0 9 0", "20 0 99999999999999999999 0", 1): `field 20 is`,
	} {
		if err := parseStat(text, &u); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestParseStatus(t *testing.T) {
	var u vm.Usage
	if err := parseStatus("Name:\tqemu\nVmHWM:\t  400000 kB\nVmRSS:\t  364936 kB\nRssShmem:\t 1 kB\nThreads:\t9\n", &u); err != nil || u.Memory != 364936<<10 {
		t.Errorf("%+v, %v", u, err)
	}
	for text, want := range map[string]string{
		"":                               "no memory",
		"Name:\tqemu\nState:\tZ\n":       "no memory",
		"VmRSS:\t12\n":                   "VmRSS is",
		"VmRSS:\t12 MB\n":                "VmRSS is",
		"VmRSS:\t-12 kB\n":               "VmRSS is",
		"VmRSS:\t kB\n":                  "VmRSS is",
		"VmRSS:\t9223372036854775807 kB": "VmRSS is",
	} {
		if err := parseStatus(text, &u); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestParseIO(t *testing.T) {
	s, err := parseIO("rchar: 11\nwchar: 12\nsyscr: 1\nsyscw: 2\nread_bytes: 4096\nwrite_bytes: 8192\ncancelled_write_bytes: 5\n")
	if err != nil || *s != (vm.Storage{Read: 4096, Written: 8192}) {
		t.Errorf("%+v, %v", s, err)
	}
	for text, want := range map[string]string{
		"":                               "no ",
		"read_bytes: 1\n":                "no write_bytes",
		"write_bytes: 1\nread_bytes: x":  `read_bytes is "x"`,
		"read_bytes: 1\nwrite_bytes: -1": `write_bytes is "-1"`,
	} {
		if s, err := parseIO(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v, want %q", text, s, err, want)
		}
	}
}
