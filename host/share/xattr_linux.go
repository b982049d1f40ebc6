package share

import (
	"bytes"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// maxAttrList is the longest list of names that Linux gives out.
const maxAttrList = 64 << 10

// passes tells whether an extended attribute of the guest is one of the host.
// Others (security.capability, ACLs, trusted.*) would act on the host.
func passes(name string) bool {
	return strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, attrPrefix)
}

// GetXAttr reads an extended attribute, or with an empty dest its size.
func (f *fileSystem) GetXAttr(_ <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	if !passes(name) {
		return 0, fuse.ENODATA
	}
	n, code := f.use(in.NodeId)
	if !code.Ok() {
		if code == fuse.EROFS {
			code = fuse.ENODATA
		}
		return 0, code
	}
	defer f.put(n)
	if !n.hasAttrs() {
		return 0, fuse.ENODATA
	}
	size, err := unix.Getxattr(n.proc, name, dest)
	return uint32(max(size, 0)), status(err)
}

// ListXAttr lists the names that GetXAttr knows.
func (f *fileSystem) ListXAttr(_ <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	n, code := f.use(in.NodeId)
	if code == fuse.EROFS {
		return 0, fuse.OK
	}
	if !code.Ok() {
		return 0, code
	}
	defer f.put(n)
	if !n.hasAttrs() {
		return 0, fuse.OK
	}
	all := make([]byte, maxAttrList)
	size, err := unix.Listxattr(n.proc, all)
	if err != nil {
		return 0, status(err)
	}
	var names []byte
	for name := range bytes.SplitAfterSeq(all[:size], []byte{0}) {
		if len(name) > 1 && passes(string(name[:len(name)-1])) {
			names = append(names, name...)
		}
	}
	if len(dest) == 0 {
		return uint32(len(names)), fuse.OK
	}
	if len(names) > len(dest) {
		return uint32(len(names)), fuse.ERANGE
	}
	return uint32(copy(dest, names)), fuse.OK
}

// SetXAttr sets an extended attribute.
func (f *fileSystem) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	n, code := f.change(in.NodeId)
	if !code.Ok() {
		return code
	}
	defer f.put(n)
	if !passes(name) || !n.hasAttrs() {
		return fuse.ENOTSUP
	}
	if int(in.Size) > len(data) {
		return fuse.EINVAL
	}
	defer f.events.file(n, attributes)()
	return status(retry(func() error { return unix.Setxattr(n.proc, name, data[:in.Size], int(in.Flags)) }))
}

// RemoveXAttr removes an extended attribute.
func (f *fileSystem) RemoveXAttr(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	n, code := f.change(in.NodeId)
	if !code.Ok() {
		return code
	}
	defer f.put(n)
	if !passes(name) || !n.hasAttrs() {
		return fuse.ENODATA
	}
	defer f.events.file(n, attributes)()
	return status(retry(func() error { return unix.Removexattr(n.proc, name) }))
}
