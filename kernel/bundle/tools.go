package bundle

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// applets of busybox that get a name of their own in /bin.
var applets = strings.Fields(`
	[ ash awk basename cat chmod chown clear cp cut date dd df diff dirname
	dmesg du echo egrep env expr false find free getopt grep gunzip gzip head
	hexdump hostname id ifconfig ionice ip kill killall less ln ls lsmod
	md5sum mkdir mknod more mount mv nc netstat nslookup od pidof ping
	printf ps pwd readlink realpath rm rmdir route sed seq sh
	sha256sum sleep sort stat strings stty sync sysctl tail tar tee test time
	timeout top touch tr traceroute true tty umount uname uniq uptime vi watch wc
	wget which whoami xargs yes zcat`)

// addTools puts busybox and the ext4 tools with their libraries into t, from
// the unpacked packages in root. triplet is the architecture's library
// directory, e.g. x86_64-linux-gnu.
func addTools(t tree, root, triplet string) error {
	busybox, err := firstFile(root, "usr/bin/busybox", "bin/busybox")
	if err != nil {
		return err
	}
	t.file("bin/busybox", 0o755, busybox)
	for _, a := range applets {
		t.link("bin/"+a, "busybox")
	}
	for _, name := range []string{"mke2fs", "e2fsck"} {
		data, err := firstFile(root, "usr/sbin/"+name, "sbin/"+name)
		if err != nil {
			return err
		}
		t.file("sbin/"+name, 0o755, data)
		if err := addLibraries(t, root, triplet, data); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	t.link("sbin/mkfs.ext4", "mke2fs")
	conf, err := firstFile(root, "etc/mke2fs.conf")
	if err != nil {
		return err
	}
	t.file("etc/mke2fs.conf", 0o644, conf)
	return nil
}

// addLibraries adds the shared libraries that the program or library in data
// asks for, and the loader, and what those ask for.
func addLibraries(t tree, root, triplet string, data []byte) error {
	f, err := elf.NewFile(strings.NewReader(string(data)))
	if err != nil {
		return err
	}
	names, err := f.ImportedLibraries()
	if err != nil {
		return err
	}
	want := map[string]string{} // where it goes → its name
	for _, n := range names {
		want["lib/"+triplet+"/"+n] = n
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			buf := make([]byte, p.Filesz)
			if _, err := p.ReadAt(buf, 0); err != nil {
				return err
			}
			loader := strings.Trim(string(buf), "\x00/")
			want[loader] = path.Base(loader)
		}
	}
	for dst, name := range want {
		if strings.HasPrefix(name, "ld-linux") && strings.Contains(dst, triplet) {
			continue // libc names its loader, which the program already did
		}
		if _, ok := t[dst]; ok {
			continue
		}
		lib, err := firstFile(root, "usr/lib/"+triplet+"/"+name, "lib/"+triplet+"/"+name, "usr/lib64/"+name, "lib64/"+name, "usr/lib/"+name)
		if err != nil {
			return fmt.Errorf("library %s: %w", name, err)
		}
		t.file(dst, 0o755, lib)
		if err := addLibraries(t, root, triplet, lib); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// firstFile reads the first of names that exists below root.
func firstFile(root string, names ...string) ([]byte, error) {
	for _, n := range names {
		data, err := os.ReadFile(filepath.Join(root, n))
		if err == nil {
			return data, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s: not in the packages", names[0])
}
