package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxSocketPath is the longest path of a UNIX socket that both systems take:
// sun_path has 104 bytes on macOS and 108 on Linux, one of them for the NUL.
const maxSocketPath = 103

// lockTimeout is longer than a daemon takes to end (stopTimeout).
const lockTimeout = stopTimeout + 10*time.Second

// errRunning says that another daemon serves this home.
var errRunning = errors.New("another sampand serves this home")

// home is $SAMPAN_HOME, locked.
type home struct {
	dir  string
	lock *os.File
}

// openHome makes the home when it is missing and locks it. errRunning means
// that another daemon has the lock and answers on the socket.
func openHome(dir string) (*home, error) {
	h := &home{dir: dir}
	if n := len(h.path("docker.sock")); n > maxSocketPath {
		return nil, fmt.Errorf("SAMPAN_HOME %s: the socket's path would have %d bytes, at most %d work: choose a shorter one", dir, n, maxSocketPath)
	}
	if err := ownFolder(dir); err != nil {
		return nil, fmt.Errorf("SAMPAN_HOME: %w", err)
	}
	f, err := os.OpenFile(h.path("sampand.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("SAMPAN_HOME: %w", err)
	}
	// The kernel drops the lock when the process ends, however it ends. Nobody
	// else may inherit it: os.OpenFile sets close-on-exec.
	if err := h.acquire(f); err != nil {
		f.Close()
		return nil, err
	}
	h.lock = f
	return h, nil
}

// ownFolder makes dir, for nobody but us. A folder that is there already must
// be ours, and is made private only when it is a home or empty: a mistyped
// SAMPAN_HOME=/tmp must not lock everybody out.
func ownFolder(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	err := os.Mkdir(dir, 0o700)
	if err == nil || !errors.Is(err, os.ErrExist) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to another user (uid %d): choose a folder of your own", dir, st.Uid)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(entries) > 0 && !slices.ContainsFunc(entries, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), "sampand.") }) {
		return fmt.Errorf("%s holds other files: choose an empty or a new folder", dir)
	}
	return os.Chmod(dir, 0o700)
}

// acquire takes the lock. While another daemon holds it there are two ends to
// the wait: that one answers (errRunning), or it was ending and is gone.
func (h *home) acquire(lock *os.File) error {
	for end := time.Now().Add(lockTimeout); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("lock %s: %w", lock.Name(), err)
		}
		conn, err := net.DialTimeout("unix", h.path("docker.sock"), time.Second)
		if err == nil {
			conn.Close()
			return errRunning
		}
		if time.Now().After(end) {
			return fmt.Errorf("another sampand holds %s, but does not answer on %s: see %s", lock.Name(), h.path("docker.sock"), h.path("sampand.log"))
		}
	}
}

func (h *home) path(name string) string { return filepath.Join(h.dir, name) }

// listen makes the API's socket. A file of an earlier daemon is replaced: the
// lock proves that it is dead.
func (h *home) listen() (net.Listener, error) {
	path := h.path("docker.sock")
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	// The folder is 0700: nobody else can connect before the mode is set.
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, err
	}
	return ln, nil
}

func (h *home) writePid() error {
	return os.WriteFile(h.path("sampand.pid"), []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600)
}

func (h *home) close() {
	os.Remove(h.path("sampand.pid"))
	h.lock.Close()
}
