package share

import (
	"errors"
	"strconv"
	"strings"
)

const (
	// attrPrefix begins the names of extended attributes that the guest
	// neither sees nor sets.
	attrPrefix = "user.sampan."
	// recordAttr holds a record.
	recordAttr = attrPrefix + "stat"
	// maxRecord is the longest record in bytes.
	maxRecord = 64
)

// unset is the owner or group of a record that has none: that of the caller.
const unset = ^uint32(0)

// record is what the guest set on a file, as kept in an extended attribute:
//
//	1:UID:GID:MODE:HOSTMODE
//
// UID and GID are decimal, or "-" when the guest never gave any; the modes are
// octal with permission, setuid, setgid and sticky bits. MODE counts as long as
// the host's file has HOSTMODE; any other shows that the host changed it since.
type record struct {
	uid, gid       uint32
	mode, hostMode uint32
}

var errRecord = errors.New("malformed ownership record")

// append adds the text of r to b.
func (r record) append(b []byte) []byte {
	id := func(b []byte, v uint32) []byte {
		if v == unset {
			return append(b, "-:"...)
		}
		return append(strconv.AppendUint(b, uint64(v), 10), ':')
	}
	b = append(b, "1:"...)
	b = id(b, r.uid)
	b = id(b, r.gid)
	b = append(strconv.AppendUint(append(b, '0'), uint64(r.mode), 8), ':')
	return strconv.AppendUint(append(b, '0'), uint64(r.hostMode), 8)
}

// parseRecord reads a record. Anybody on the host can write the attribute.
func parseRecord(text []byte) (record, error) {
	f := strings.Split(string(text), ":")
	if len(text) > maxRecord || len(f) != 5 || f[0] != "1" {
		return record{}, errRecord
	}
	var bad error
	id := func(s string) uint32 {
		if s == "-" {
			return unset
		}
		v, err := strconv.ParseUint(s, 10, 32)
		if err != nil || uint32(v) == unset {
			bad = errRecord
		}
		return uint32(v)
	}
	mode := func(s string) uint32 {
		v, err := strconv.ParseUint(s, 8, 32)
		if err != nil || v > 0o7777 {
			bad = errRecord
		}
		return uint32(v)
	}
	r := record{uid: id(f[1]), gid: id(f[2]), mode: mode(f[3]), hostMode: mode(f[4])}
	return r, bad
}

// visible is the mode that the guest sees on a file with the host's mode, both
// without the file's type.
func (r record) visible(hostMode uint32) uint32 {
	mode := hostMode
	if r.mode != unset && r.hostMode == hostMode {
		mode = r.mode
	}
	if r.uid == unset {
		mode &^= 0o6000 // a program must not change to whoever looked last
	}
	return mode
}

// noRecord is what a file without a record has.
func noRecord() record {
	return record{uid: unset, gid: unset, mode: unset, hostMode: unset}
}

// onHost is the mode that a file gets on the host when the guest wants mode.
func onHost(mode uint32, dir bool) uint32 {
	if dir {
		return mode&0o777 | 0o700
	}
	return mode&0o777 | 0o600
}

// withoutSetID is mode as a change of owner or content leaves it.
func withoutSetID(mode uint32) uint32 {
	mode &^= 0o4000
	if mode&0o010 != 0 {
		mode &^= 0o2000
	}
	return mode
}
