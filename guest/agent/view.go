package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"sampan/guest/archive"
	"sampan/guest/boot"
	"sampan/proto"
)

const viewsRun = boot.RunDir + "/views"

// view is a container's file system as the agent sees it: a mount of its own of
// the container's root, with the container's binds and volumes. What the
// container mounts itself isn't there, and nothing that is mounted here shows in
// the container.
type view struct {
	dir     string
	root    *archive.Root
	release func() // of the root that it shows
}

// stoppedRoot is the root of a container that doesn't run, mounted for the views
// of it.
type stoppedRoot struct {
	*rootfs
	views int
}

// openView makes a view, for a transfer that holds it until closeView.
func (s *Service) openView(ctx context.Context, files *proto.Files, withMounts bool) (v *view, err error) {
	tree, base, release, err := s.cloneRoot(ctx, files)
	if err != nil {
		return nil, err
	}
	own := base.files
	dir, err := placeView(tree)
	unix.Close(tree)
	if err != nil {
		release()
		return nil, err
	}
	v = &view{dir: dir, release: release}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.close())
		}
	}()
	if v.root, err = archive.Open(dir); err != nil {
		return nil, err
	}
	if !withMounts {
		return v, nil
	}
	for path, file := range own {
		if err := mountFile(v, file, path); err != nil {
			return nil, fmt.Errorf("mount %s: %w", path, err)
		}
	}
	if len(files.Mounts) == 0 {
		return v, nil
	}
	var mounts []specs.Mount
	if err := json.Unmarshal(files.Mounts, &mounts); err != nil {
		return nil, errorf(codes.InvalidArgument, "mounts: %v", err)
	}
	slices.SortFunc(mounts, func(a, b specs.Mount) int { return strings.Compare(a.Destination, b.Destination) })
	for _, m := range mounts {
		if err := s.mountInView(v, base, m); err != nil {
			return nil, fmt.Errorf("mount %s %s on %s: %w", m.Type, m.Source, m.Destination, err)
		}
	}
	return v, nil
}

// placeView mounts tree somewhere.
func placeView(tree int) (dir string, err error) {
	if err := os.MkdirAll(viewsRun, 0o700); err != nil {
		return "", err
	}
	if dir, err = os.MkdirTemp(viewsRun, ""); err != nil {
		return "", err
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return "", errors.Join(fmt.Errorf("mount view: %w", err), os.Remove(dir))
	}
	return dir, nil
}

// cloneRoot is a detached mount of a container's root. One that doesn't run is
// mounted until release is called.
func (s *Service) cloneRoot(ctx context.Context, files *proto.Files) (tree int, base *rootfs, release func(), err error) {
	if err := checkName("container", files.GetId()); err != nil {
		return -1, nil, nil, err
	}
	for _, l := range files.Layers {
		if err := checkName("layer", l); err != nil {
			return -1, nil, nil, err
		}
	}
	s.mu.Lock()
	c := s.containers[files.Id]
	if c == nil {
		c = s.leaving[files.Id]
	}
	s.mu.Unlock()
	if c != nil {
		select { // a start in between comes to its end
		case <-c.up:
		case <-ctx.Done():
			return -1, nil, nil, failed("", ctx.Err())
		}
		c.mu.Lock()
		if c.root != nil {
			defer c.mu.Unlock()
			tree, err = cloneMount(c.root.root())
			return tree, c.root, func() {}, err
		}
		c.mu.Unlock()
		select {
		case <-c.gone:
		case <-ctx.Done():
			return -1, nil, nil, failed("", ctx.Err())
		}
	}
	return s.cloneStopped(files)
}

func (s *Service) cloneStopped(files *proto.Files) (tree int, base *rootfs, release func(), err error) {
	t := &s.transfers
	t.mounting.Lock()
	defer t.mounting.Unlock()
	r := t.stopped[files.Id]
	if r == nil {
		r = &stoppedRoot{rootfs: &rootfs{
			layers: s.layers, names: files.Layers,
			run: filepath.Join(viewsRun, "root-"+files.Id), data: filepath.Join(containersData, files.Id),
			ephemeral: files.Ephemeral,
		}}
		if err := r.mount(); err != nil {
			return -1, nil, nil, err
		}
		t.stopped[files.Id] = r
	}
	r.views++
	release = func() {
		t.mounting.Lock()
		defer t.mounting.Unlock()
		if r.views--; r.views == 0 {
			delete(t.stopped, files.Id)
			s.logError(r.unmount())
		}
	}
	if tree, err = cloneMount(r.root()); err != nil {
		go release() // not under the lock
		return -1, nil, nil, err
	}
	return tree, r.rootfs, release, nil
}

func cloneMount(dir string) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("clone mount of %s: %w", dir, err)
	}
	return fd, nil
}

// mountFile mounts one of the files that a running container has beside its
// image's.
func mountFile(v *view, file, path string) error {
	tree, err := cloneMount(file)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return v.attach(tree, path, false)
}

// attach mounts tree in the view.
func (v *view) attach(tree int, path string, isDir bool) error {
	target, err := v.root.Target(path, isDir)
	if err != nil {
		return err
	}
	defer target.Close()
	return unix.MoveMount(tree, "", int(target.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// mountInView mounts one of the container's binds or volumes. A volume is filled
// from the image, as at a start.
func (s *Service) mountInView(v *view, base *rootfs, m specs.Mount) error {
	var tree int
	isDir := true
	var err error
	switch m.Type {
	case mountHost:
		tree, isDir, err = cloneBelow(boot.HostDir, m.Source)
	case mountVolume:
		var data, part string
		if data, part, err = s.volume(base, m); err == nil && part == "" {
			tree, err = cloneMount(data)
		} else if err == nil {
			tree, isDir, err = cloneVolumePart(data, part)
		}
	default:
		return errorf(codes.InvalidArgument, "a mount of type %q", m.Type)
	}
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if slices.Contains(m.Options, "ro") {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return err
		}
	}
	return v.attach(tree, m.Destination, isDir)
}

// close unmounts the view.
func (v *view) close() error {
	defer v.release()
	var err error
	if v.root != nil {
		err = v.root.Close()
	}
	// With all that is mounted in it.
	if uerr := unix.Unmount(v.dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); uerr != nil {
		return errors.Join(err, fmt.Errorf("unmount view: %w", uerr))
	}
	return errors.Join(err, os.Remove(v.dir))
}
