package share

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// hostUser is an ordinary user of the host that no account needs to exist for.
const hostUser = 12345

// TestMain lets the test binary be the process that serves, as another user.
func TestMain(m *testing.M) {
	if dir := os.Getenv("SAMPAN_SHARE_SERVE"); dir != "" {
		serveChild(dir)
		return
	}
	os.Exit(m.Run())
}

// serveChild serves dir, writable and read-only, on the mount behind
// descriptor 3, and ends with it.
func serveChild(dir string) {
	tree := NewTree(Options{Forbidden: []string{filepath.Join(dir, "secret")}})
	for _, ro := range []bool{false, true} {
		if _, err := tree.Export(dir, ro); err != nil {
			fmt.Println(err)
			return
		}
	}
	server, err := fuse.NewServer(tree.server.fs(), "/dev/fd/3", &fuse.MountOptions{
		MaxWrite:          maxData,
		ExtraCapabilities: fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_HANDLE_KILLPRIV_V2,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("ready")
	go func() { // ends with the test, however that ends
		io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	server.Serve()
}

// mounted is a host directory, and how a guest sees its exports.
type mounted struct {
	host, rw, ro string
	uid          int // whom files belong to on the host
}

// forUsers runs a test with a server that is root, and with one that is not.
func forUsers(t *testing.T, test func(t *testing.T, m mounted)) {
	if os.Geteuid() != 0 {
		t.Skip("mounting FUSE without a helper needs root; the VM's tests cover other users")
	}
	for name, uid := range map[string]int{"root": 0, "user": hostUser} {
		t.Run(name, func(t *testing.T) { test(t, mountAs(t, uid, "")) })
	}
}

// mountAs serves as a user; the folder is on a file system of its own if one is
// named.
func mountAs(t *testing.T, uid int, fsType string) mounted {
	t.Helper()
	base, err := os.MkdirTemp("", "share")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(base) })
	host, mnt := filepath.Join(base, "host"), filepath.Join(base, "mnt")
	check(t, os.Chmod(base, 0o755))
	check(t, os.Mkdir(mnt, 0o755))
	check(t, os.Mkdir(host, 0o755))
	if fsType != "" {
		check(t, unix.Mount(fsType, host, fsType, 0, ""))
		t.Cleanup(func() { unix.Unmount(host, unix.MNT_DETACH) })
		check(t, os.Chmod(host, 0o755))
	}
	check(t, os.Mkdir(filepath.Join(host, "secret"), 0o755))
	for _, p := range []string{host, filepath.Join(host, "secret")} {
		check(t, os.Chown(p, uid, uid))
	}
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	check(t, err)
	defer dev.Close()
	opts := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other", dev.Fd())
	check(t, unix.Mount("sampan", mnt, "fuse", unix.MS_NODEV, opts))
	t.Cleanup(func() { unix.Unmount(mnt, unix.MNT_DETACH) })
	exe := filepath.Join(base, "serve")
	bin, err := os.ReadFile("/proc/self/exe")
	check(t, err)
	check(t, os.WriteFile(exe, bin, 0o755))
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "SAMPAN_SHARE_SERVE="+host)
	cmd.ExtraFiles = []*os.File{dev}
	cmd.Stderr = os.Stderr
	// No Pdeathsig: it follows the thread, and as() ends threads.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	_, err = cmd.StdinPipe()
	check(t, err)
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	t.Cleanup(func() { unix.Unmount(mnt, unix.MNT_DETACH); cmd.Process.Kill(); cmd.Wait() })
	buf := make([]byte, 256)
	n, _ := out.Read(buf)
	if string(buf[:n]) != "ready\n" {
		t.Fatalf("server: %q", buf[:n])
	}
	return mounted{host: host, rw: filepath.Join(mnt, exportName(exportKey(host, false), 1)),
		ro: filepath.Join(mnt, exportName(exportKey(host, true), 2)), uid: uid}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// as runs do like a process of the guest with a uid, which is the gid too.
func as(t *testing.T, uid int, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and the thread ends with the goroutine
		if uid != 0 {
			unix.Setfsgid(uid)
			unix.Setfsuid(uid)
		}
		do()
	}()
	<-done
}

func lstat(t *testing.T, path string) (st unix.Stat_t) {
	t.Helper()
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return st
}

// want checks owner and mode.
func want(t *testing.T, path string, uid int, mode uint32) {
	t.Helper()
	st := lstat(t, path)
	if int(st.Uid) != uid || int(st.Gid) != uid || st.Mode&0o7777 != mode {
		t.Errorf("%s: %d:%d %o, want %d %o", path, st.Uid, st.Gid, st.Mode&0o7777, uid, mode)
	}
}

func TestOwners(t *testing.T) {
	forUsers(t, func(t *testing.T, m mounted) {
		in := func(name string) string { return filepath.Join(m.rw, name) }
		at := func(name string) string { return filepath.Join(m.host, name) }
		for _, uid := range []int{0, 1000} {
			name := fmt.Sprint("made", uid)
			as(t, uid, func() {
				check(t, os.WriteFile(in(name), []byte("x"), 0o644))
				check(t, os.Mkdir(in(name+".d"), 0o755))
				want(t, in(name), uid, 0o644)
				check(t, os.Chmod(in(name), 0))
			})
			want(t, at(name), m.uid, 0o600)
			want(t, at(name+".d"), m.uid, 0o755)
			as(t, 1001, func() {
				want(t, in(name), uid, 0)
				if _, err := os.ReadFile(in(name)); !os.IsPermission(err) {
					t.Errorf("uid 1001 reads %s of mode 0: %v", name, err)
				}
			})
			as(t, 0, func() {
				if _, err := os.ReadFile(in(name)); err != nil {
					t.Errorf("root reads mode 0: %v", err)
				}
			})
		}
		// What the host made belongs to whoever looks.
		check(t, os.WriteFile(at("hosts"), []byte("old"), 0o600))
		check(t, os.Chown(at("hosts"), m.uid, m.uid))
		for _, uid := range []int{1000, 0, 1001} {
			as(t, uid, func() {
				want(t, in("hosts"), uid, 0o600)
				check(t, os.WriteFile(in("hosts"), []byte("new"), 0))
				check(t, os.Chmod(in("hosts"), 0o600))
			})
		}
		// chown is remembered, and drops setuid, which the host never sees.
		as(t, 0, func() {
			check(t, os.Chmod(in("hosts"), 0o4755|os.ModeSetuid))
			check(t, os.Chown(in("hosts"), 7, 7))
			want(t, in("hosts"), 7, 0o755)
			check(t, os.Chmod(in("hosts"), 0o755|os.ModeSetuid))
		})
		want(t, at("hosts"), m.uid, 0o755)
		as(t, 1000, func() { want(t, in("hosts"), 7, 0o4755) })
		// A write by another uid drops setuid.
		as(t, 7, func() {
			check(t, os.WriteFile(in("hosts"), []byte("x"), 0))
			want(t, in("hosts"), 7, 0o755)
		})
		// A chmod on the host holds.
		check(t, os.Chmod(at("hosts"), 0o640))
		want(t, in("hosts"), 7, 0o640)
		// Read-only files of the host can change hands.
		check(t, os.Chmod(at("hosts"), 0o444))
		unix.Removexattr(at("hosts"), recordAttr)
		as(t, 0, func() { check(t, os.Chown(in("hosts"), 8, 8)); want(t, in("hosts"), 8, 0o444) })
		// A link can't carry the attribute; the guest remembers it.
		as(t, 1000, func() {
			check(t, os.Symlink("/etc/passwd", in("made1000.d/link")))
			check(t, unix.Mkfifo(in("made1000.d/fifo"), 0o640))
			want(t, in("made1000.d/fifo"), 1000, 0o640)
			if st := lstat(t, in("made1000.d/link")); st.Uid != 1000 {
				t.Errorf("link of uid %d", st.Uid)
			}
		})
	})
}

// TestNoAttributes uses a file system that can't keep user attributes: owner and
// mode live as long as the guest remembers the inode.
func TestNoAttributes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a ramfs needs root")
	}
	for _, uid := range []int{0, hostUser} {
		m := mountAs(t, uid, "ramfs")
		path, at := filepath.Join(m.rw, "f"), filepath.Join(m.host, "f")
		as(t, 1000, func() {
			check(t, os.WriteFile(path, []byte("x"), 0o640))
			check(t, os.Chmod(path, 0o400))
		})
		f, err := os.Open(path) // keeps it in mind
		check(t, err)
		want(t, path, 1000, 0o400)
		want(t, at, uid, 0o600)
		if err := unix.Setxattr(path, "user.x", nil, 0); err != unix.EOPNOTSUPP {
			t.Errorf("an attribute of the guest's: %v", err)
		}
		f.Close()
	}
}

func TestConfinement(t *testing.T) {
	forUsers(t, func(t *testing.T, m mounted) {
		check(t, os.WriteFile(filepath.Join(m.host, "f"), []byte("x"), 0o644))
		check(t, os.WriteFile(filepath.Join(m.host, "secret/key"), []byte("x"), 0o644))
		for what, err := range map[string]error{
			"write":      os.WriteFile(filepath.Join(m.ro, "f"), nil, 0o644),
			"create":     os.WriteFile(filepath.Join(m.ro, "g"), nil, 0o644),
			"mkdir":      os.Mkdir(filepath.Join(m.ro, "d"), 0o755),
			"remove":     os.Remove(filepath.Join(m.ro, "f")),
			"chmod":      os.Chmod(filepath.Join(m.ro, "f"), 0o600),
			"truncate":   os.Truncate(filepath.Join(m.ro, "f"), 0),
			"rename":     os.Rename(filepath.Join(m.ro, "f"), filepath.Join(m.ro, "h")),
			"link":       os.Link(filepath.Join(m.ro, "f"), filepath.Join(m.ro, "h")),
			"symlink":    os.Symlink("f", filepath.Join(m.ro, "h")),
			"xattr":      unix.Setxattr(filepath.Join(m.ro, "f"), "user.x", nil, 0),
			"root entry": os.Mkdir(filepath.Join(filepath.Dir(m.ro), "d"), 0o755),
		} {
			if !strings.HasSuffix(fmt.Sprint(err), unix.EROFS.Error()) {
				t.Errorf("%s on read-only: %v", what, err)
			}
		}
		for what, err := range map[string]error{
			"read secret":   func() error { _, err := os.ReadFile(filepath.Join(m.rw, "secret/key")); return err }(),
			"move secret":   os.Rename(filepath.Join(m.rw, "secret"), filepath.Join(m.rw, "s")),
			"cover secret":  os.Rename(filepath.Join(m.rw, "f"), filepath.Join(m.rw, "secret")),
			"remove secret": os.Remove(filepath.Join(m.rw, "secret")),
			"device":        unix.Mknod(filepath.Join(m.rw, "dev"), unix.S_IFBLK|0o600, 0x800),
			"own attribute": unix.Setxattr(filepath.Join(m.rw, "f"), recordAttr, []byte("1:0:0:0:0"), 0),
			"across":        os.Link(filepath.Join(m.rw, "f"), filepath.Join(m.ro, "h")),
		} {
			if err == nil {
				t.Errorf("%s succeeds", what)
			}
		}
		if _, err := os.Stat(filepath.Join(m.host, "secret/key")); err != nil {
			t.Error(err)
		}
	})
}
