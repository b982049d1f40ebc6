package bundle

import (
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"
)

// A tree is the content of an archive: paths without a leading slash.
// Directories above an entry exist by themselves, with mode 0755.
type tree map[string]entry

type entry struct {
	mode   uint32 // file type and permissions, as in stat(2)
	data   []byte // of a file, or a symbolic link's target
	device [2]uint32
}

func (t tree) dir(name string, perm uint32) { t.add(name, entry{mode: syscall.S_IFDIR | perm}) }
func (t tree) file(name string, perm uint32, b []byte) {
	t.add(name, entry{mode: syscall.S_IFREG | perm, data: b})
}
func (t tree) link(name, target string) {
	t.add(name, entry{mode: syscall.S_IFLNK | 0o777, data: []byte(target)})
}
func (t tree) char(name string, perm, major, minor uint32) {
	t.add(name, entry{mode: syscall.S_IFCHR | perm, device: [2]uint32{major, minor}})
}

func (t tree) add(name string, e entry) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	for d := path.Dir(name); d != "."; d = path.Dir(d) {
		if _, ok := t[d]; !ok {
			t[d] = entry{mode: syscall.S_IFDIR | 0o755}
		}
	}
	t[name] = e
}

// writeCPIO writes the newc format that the kernel unpacks into its initramfs
// (Documentation/driver-api/early-userspace/buffer-format.rst). Everything
// belongs to root and has the time 0; equal trees make equal archives.
func (t tree) writeCPIO(w io.Writer) error {
	for i, name := range slices.Sorted(maps.Keys(t)) {
		if err := writeEntry(w, uint32(i+1), name, t[name]); err != nil {
			return fmt.Errorf("archive %s: %w", name, err)
		}
	}
	return writeEntry(w, 0, "TRAILER!!!", entry{})
}

func writeEntry(w io.Writer, ino uint32, name string, e entry) error {
	nlink := 1
	if e.mode&syscall.S_IFMT == syscall.S_IFDIR {
		nlink = 2
	}
	// magic, ino, mode, uid, gid, nlink, mtime, size, dev major and minor,
	// rdev major and minor, length of the name with its NUL, checksum
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		ino, e.mode, 0, 0, nlink, 0, len(e.data), 0, 0, e.device[0], e.device[1], len(name)+1, 0, name)
	for _, part := range []string{header, string(e.data)} {
		if _, err := io.WriteString(w, part); err != nil {
			return err
		}
		if _, err := w.Write(make([]byte, -len(part)&3)); err != nil {
			return err
		}
	}
	return nil
}
