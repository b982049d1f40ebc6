package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"sampan/guest/boot"
)

// rootfs is a container's file system outside of its mount namespace.
type rootfs struct {
	layers *layers
	names  []string          // of layers, bottom first
	run    string            // /run/sampan/containers/ID
	data   string            // /data/containers/ID
	binds  []string          // mounted below run, in order
	files  map[string]string // what is mounted over the container's own files, by path
	relays []*relay
	shm    string // where the shared memory is that others can have; else ""
	// ephemeral says that the writable layer goes with the container's end.
	ephemeral bool
}

// initLayer lies under the layers of every image: what programs find in each of
// Docker's containers, and what the runtime mounts something on. So an image's own
// goes before it, and a start need not write what is missing. (Docker's lies above,
// with what the image lacks.)
const initLayer = boot.RunDir + "/init"

// maxLower is how many lower directories overlayfs takes (the kernel's
// OVL_MAX_STACK).
const maxLower = 500

// mountPoints are what is in initLayer, with type and mode. The only link leads to
// /proc/mounts.
var mountPoints = map[string]fs.FileMode{
	"/.dockerenv": 0o755, "/dev": fs.ModeDir | 0o755, "/dev/console": 0o755, "/dev/mqueue": fs.ModeDir | 0o755,
	"/dev/pts": fs.ModeDir | 0o755, "/dev/shm": fs.ModeDir | 0o755, "/etc": fs.ModeDir | 0o755, "/etc/hostname": 0o755,
	"/etc/hosts": 0o755, "/etc/mtab": fs.ModeSymlink, "/etc/resolv.conf": 0o755, "/proc": fs.ModeDir | 0o755,
	"/sys": fs.ModeDir | 0o755,
}

// emptyLayer has nothing in it.
const emptyLayer = boot.RunDir + "/empty"

// root is where the container's root is mounted.
func (r *rootfs) root() string { return filepath.Join(r.run, "rootfs") }

// mount mounts the layers under the container's writable directory, which is
// made when missing. After an error nothing is mounted.
func (r *rootfs) mount() (err error) {
	defer func() {
		if err != nil {
			os.RemoveAll(r.run) // nothing is mounted there
		}
	}()
	upper, work := filepath.Join(r.data, "upper"), filepath.Join(r.data, "work")
	for _, d := range []string{r.root(), work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	err = os.Mkdir(upper, 0o755)
	fresh := err == nil
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := r.layers.init(); err != nil {
		return err
	}
	paths, err := r.layers.acquire(r.names)
	if err != nil {
		return err
	}
	if len(paths) < maxLower { // else a container's own layer gets what is missing
		paths = append([]string{initLayer}, paths...)
	}
	if err := mountOverlay(r.root(), paths, upper, work, r.ephemeral); err != nil {
		r.layers.release(r.names)
		return err
	}
	if !fresh || marked(r.root()) {
		return nil
	}
	if err := mark(r.root()); err != nil {
		err = errors.Join(err, unix.Unmount(r.root(), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW))
		r.layers.release(r.names)
		return err
	}
	return nil
}

// marked says that a root has what mark puts there, or can't have it. It has not
// where an image says that something below is gone.
func marked(root string) bool {
	if _, err := os.Lstat(filepath.Join(root, ".dockerenv")); err != nil {
		return false
	}
	etc, err := os.Lstat(filepath.Join(root, "etc"))
	if err == nil && etc.IsDir() {
		_, err = os.Lstat(filepath.Join(root, "etc", "mtab"))
	}
	return err == nil
}

// makeInitLayer makes initLayer. Idempotent.
func makeInitLayer() error {
	for path, mode := range mountPoints {
		path = filepath.Join(initLayer, path)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err != nil {
			return err
		}
		switch mode.Type() {
		case fs.ModeDir:
			err = os.MkdirAll(path, mode.Perm())
		case fs.ModeSymlink:
			err = os.Symlink("/proc/mounts", path)
		default:
			err = os.WriteFile(path, nil, mode)
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// mark puts into a new root what programs find in Docker's containers: the file
// by which they know that they are in one, and the table of mounts by its old name.
// An image's own are left alone, and its links not followed.
func mark(root string) error {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(dir)
	fd, err := unix.Openat(dir, ".dockerenv", unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o755)
	if err == nil {
		err = unix.Close(fd)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make /.dockerenv: %w", err)
	}
	if err := unix.Mkdirat(dir, "etc", 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make /etc: %w", err)
	}
	etc, err := unix.Openat(dir, "etc", unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // not for us to say what that is
	}
	if err != nil {
		return fmt.Errorf("open /etc: %w", err)
	}
	defer unix.Close(etc)
	if err := unix.Symlinkat("/proc/mounts", etc, "mtab"); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make /etc/mtab: %w", err)
	}
	return nil
}

// unmount undoes mount, bind and relay, and removes the runtime directory. The
// container's own mount namespace must have ended.
func (r *rootfs) unmount() error {
	for _, rl := range r.relays {
		rl.close()
	}
	var errs []error
	for _, b := range append(r.binds, r.root()) {
		if err := unix.Unmount(b, unix.UMOUNT_NOFOLLOW); err != nil {
			// Whoever holds it, nobody new can get at it.
			if err := unix.Unmount(b, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
				errs = append(errs, fmt.Errorf("unmount %s: %w", b, err))
			}
		}
	}
	if len(errs) == 0 { // never delete through a mount
		errs = append(errs, os.RemoveAll(r.run))
	}
	r.layers.release(r.names)
	return errors.Join(errs...)
}

// bind mounts what the path src, below the directory dir, names (a directory
// or a file) and returns where.
func (r *rootfs) bind(dir, src string) (string, error) {
	tree, isDir, err := cloneBelow(dir, src)
	if err != nil {
		return "", err
	}
	return r.attach(tree, isDir)
}

// attach mounts a detached tree, which it closes, and returns where.
func (r *rootfs) attach(tree int, isDir bool) (string, error) {
	defer unix.Close(tree)
	target, err := r.bindTarget(isDir)
	if err != nil {
		return "", err
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return "", fmt.Errorf("bind: %w", err)
	}
	r.binds = append(r.binds, target)
	return target, nil
}

// newShm mounts shared memory that other containers can have, and returns where.
func (r *rootfs) newShm(options []string) (string, error) {
	target, err := r.bindTarget(true)
	if err != nil {
		return "", err
	}
	if err := unix.Mount("shm", target, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, strings.Join(options, ",")); err != nil {
		return "", fmt.Errorf("mount shared memory: %w", err)
	}
	r.binds, r.shm = append(r.binds, target), target
	return target, nil
}

// joinShm mounts the shared memory of another container, which must not be
// unmounted meanwhile, and returns where.
func (r *rootfs) joinShm(at string) (string, error) {
	tree, err := unix.OpenTree(unix.AT_FDCWD, at, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("clone shared memory: %w", err)
	}
	r.shm, err = r.attach(tree, true)
	return r.shm, err
}

// cloneBelow is a detached mount of what the path src, below the directory dir,
// names. No symbolic link is followed on the way, and a rename by somebody else
// can't lead elsewhere: the object that was opened is the one that is mounted.
func cloneBelow(dir, src string) (tree int, isDir bool, err error) {
	return clone(dir, src, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_MAGICLINKS)
}

func clone(dir, src string, resolve uint64) (tree int, isDir bool, err error) {
	base, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, false, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(base)
	fd, err := unix.Openat2(base, src, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolve,
	})
	if err != nil {
		return -1, false, &fs.PathError{Op: "open", Path: src, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return -1, false, &fs.PathError{Op: "stat", Path: src, Err: err}
	}
	tree, err = unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, false, &fs.PathError{Op: "clone mount of", Path: src, Err: err}
	}
	return tree, st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

// bindTarget makes the next place for a bind mount.
func (r *rootfs) bindTarget(dir bool) (string, error) {
	parent := filepath.Join(r.run, "mounts")
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", err
	}
	target := filepath.Join(parent, fmt.Sprint(len(r.binds)))
	if dir {
		return target, os.Mkdir(target, 0o755)
	}
	return target, os.WriteFile(target, nil, 0o644)
}

// writeFiles writes the files that are mounted over the container's own and
// returns where, by their path in the container.
func (r *rootfs) writeFiles(files map[string][]byte) (map[string]string, error) {
	at := map[string]string{}
	dir := filepath.Join(r.run, "files")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	for path, data := range files {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path {
			return nil, fmt.Errorf("file %q: not a clean absolute path", path)
		}
		at[path] = filepath.Join(dir, fmt.Sprintf("%d-%s", len(at), filepath.Base(path)))
		if err := os.WriteFile(at[path], data, 0o644); err != nil {
			return nil, err
		}
	}
	r.files = at
	return at, nil
}
