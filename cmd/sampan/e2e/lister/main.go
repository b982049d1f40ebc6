//go:build linux

// Command lister prints all there is to know about every file below a folder, a
// line each, so that two trees can be compared.
package main

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: lister DIR")
		os.Exit(2)
	}
	if err := list(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "lister:", err)
		os.Exit(1)
	}
}

func list(root string) error {
	first := map[uint64]string{} // inode → its first name
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		rel := "." + strings.TrimPrefix(path, root)
		line := fmt.Sprintf("%q mode %o owner %d:%d", rel, st.Mode, st.Uid, st.Gid)
		if !fi.IsDir() { // a directory's own size and links are the file system's affair
			line += fmt.Sprintf(" links %d size %d", st.Nlink, st.Size)
			if name, ok := first[st.Ino]; ok {
				line += fmt.Sprintf(" same as %q", name)
			} else if st.Nlink > 1 {
				first[st.Ino] = rel
			}
		}
		if d.Name() != "implied" {
			line += fmt.Sprintf(" time %d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
		}
		switch fi.Mode().Type() {
		case 0:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" sha256 %x", sha256.Sum256(data))
		case fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" to %q", target)
		case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
			line += fmt.Sprintf(" device %d", st.Rdev)
		}
		attrs, err := xattrs(path)
		if err != nil {
			return err
		}
		fmt.Println(line + attrs)
		return nil
	})
}

// xattrs are those that belong to the file, not to overlayfs.
func xattrs(path string) (string, error) {
	names := make([]byte, 64<<10)
	n, err := llistxattr(path, names)
	if err == syscall.EOPNOTSUPP {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("list xattrs of %q: %w", path, err)
	}
	list := strings.Split(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00")
	sort.Strings(list)
	var out strings.Builder
	for _, name := range list {
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := lgetxattr(path, name, value)
		if err != nil {
			return "", fmt.Errorf("xattr %s of %q: %w", name, path, err)
		}
		fmt.Fprintf(&out, " %s=%q", name, value[:n])
	}
	return out.String(), nil
}
