package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"sampan/guest/archive"
	"sampan/guest/boot"
	"sampan/proto"
)

const (
	volumesDir = boot.DataDir + "/volumes"
	// filling is a file beside a volume's data while it is being filled from an
	// image: what is found with it is unfinished, and filled anew.
	filling = "filling"
)

// subpath begins the option of a mount that shows a part of a volume.
const subpath = "subpath="

// volume returns the directory of the volume that m names, which is made when
// missing, and when empty filled with what the image has there; and the part of
// it that is to be mounted, "" for all. A part is not filled.
func (s *Service) volume(r *rootfs, m specs.Mount) (data, part string, err error) {
	if err := checkName("volume", m.Source); err != nil {
		return "", "", err
	}
	lock := s.volumeLock(m.Source)
	lock.Lock()
	defer lock.Unlock()
	if data, err = makeVolume(m.Source); err != nil {
		return "", "", err
	}
	for _, o := range m.Options {
		if p, ok := strings.CutPrefix(o, subpath); ok {
			return data, p, nil
		}
	}
	if slices.Contains(m.Options, "nocopy") {
		return data, "", nil
	}
	if names, err := os.ReadDir(data); err != nil || len(names) > 0 {
		return data, "", err
	}
	if err := fill(data, filepath.Join(volumesDir, m.Source, filling), r.root(), m.Destination); err != nil {
		return "", "", fmt.Errorf("fill volume %s from the image: %w", m.Source, err)
	}
	return data, "", nil
}

// makeVolume returns a volume's directory, which is made when missing, and
// emptied when its filling was cut short. The caller holds the volume's lock.
func makeVolume(name string) (data string, err error) {
	dir := filepath.Join(volumesDir, name)
	data = filepath.Join(dir, "_data")
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", err
	}
	if err := os.Mkdir(data, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	marker := filepath.Join(dir, filling)
	if _, err := os.Lstat(marker); err != nil {
		return data, nil
	}
	if err := emptyDir(data); err != nil {
		return "", err
	}
	return data, os.Remove(marker)
}

// cloneVolumePart is a detached mount of a part of a volume. Links in it may
// lead to what is in the volume, as with Docker.
func cloneVolumePart(data, part string) (tree int, isDir bool, err error) {
	tree, isDir, err = clone(data, part, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_MAGICLINKS)
	if errors.Is(err, fs.ErrNotExist) {
		// The kernel's words would make clients think that the command is missing.
		return -1, false, fmt.Errorf("cannot access path %s of the volume: it does not exist", part)
	}
	if err != nil {
		return -1, false, fmt.Errorf("cannot access path %s of the volume: %w", part, err)
	}
	return tree, isDir, nil
}

// openVolume makes a view of a volume's files.
func (s *Service) openVolume(name string) (*view, error) {
	if err := checkName("volume", name); err != nil {
		return nil, err
	}
	lock := s.volumeLock(name)
	lock.Lock()
	defer lock.Unlock()
	data, err := makeVolume(name)
	if err != nil {
		return nil, err
	}
	tree, err := cloneMount(data)
	if err != nil {
		return nil, err
	}
	defer unix.Close(tree)
	dir, err := placeView(tree)
	if err != nil {
		return nil, err
	}
	v := &view{dir: dir, release: func() {}}
	if v.root, err = archive.Open(dir); err != nil {
		return nil, errors.Join(err, v.close())
	}
	return v, nil
}

// VolumeSizes implements proto.AgentService.
func (s *Service) VolumeSizes(ctx context.Context, req *proto.VolumeSizesRequest) (*proto.VolumeSizesResponse, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	res := new(proto.VolumeSizesResponse)
	for _, name := range req.Names {
		if err := checkName("volume", name); err != nil {
			return nil, err
		}
		size, err := sizeOf(ctx, filepath.Join(volumesDir, name, "_data"))
		if err != nil {
			return nil, failed("size of volume "+name, err)
		}
		res.Sizes = append(res.Sizes, size)
	}
	return res, nil
}

// sizeOf adds up the files below a directory, those with several names once. What
// goes away meanwhile does not count.
func sizeOf(ctx context.Context, dir string) (size int64, err error) {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer root.Close()
	seen := map[uint64]bool{}
	err = fs.WalkDir(root.FS(), ".", func(_ string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || d.IsDir() {
			return gone(err)
		}
		fi, err := d.Info()
		if err != nil {
			return gone(err)
		}
		if st := fi.Sys().(*syscall.Stat_t); st.Nlink > 1 {
			if seen[st.Ino] {
				return nil
			}
			seen[st.Ino] = true
		}
		size += fi.Size()
		return nil
	})
	return size, err
}

// gone is no error about what isn't there any more.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// fill copies the directory path of the container's root to data.
func fill(data, marker, root, path string) error {
	src, err := openInRoot(root, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil // the image has nothing there
	}
	if err != nil {
		return err
	}
	defer src.Close()
	if err := os.WriteFile(marker, nil, 0o600); err != nil {
		return err
	}
	dst, err := os.Open(data)
	if err != nil {
		return err
	}
	defer dst.Close()
	copied, err := copyTree(dst, src)
	if err != nil {
		return err
	}
	if copied > 0 {
		// The marker's end must not reach the disk before the files do.
		if err := unix.Syncfs(int(dst.Fd())); err != nil {
			return err
		}
	}
	return os.Remove(marker)
}

func (s *Service) volumeLock(name string) *sync.Mutex {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.volumes[name]
	if m == nil {
		m = new(sync.Mutex)
		s.volumes[name] = m
	}
	return m
}

// RemoveVolume implements proto.AgentService.
func (s *Service) RemoveVolume(ctx context.Context, req *proto.VolumeRequest) (*proto.Empty, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	if err := checkName("volume", req.Name); err != nil {
		return nil, err
	}
	if err := s.transfers.end(ctx, req.Name); err != nil {
		return nil, failed("remove volume "+req.Name, err)
	}
	lock := s.volumeLock(req.Name)
	lock.Lock()
	defer lock.Unlock()
	if err := discard(filepath.Join(volumesDir, req.Name), nil); err != nil {
		return nil, failed("remove volume "+req.Name, err)
	}
	return &proto.Empty{}, nil
}

// openInRoot opens a path as a process with that root directory would.
func openInRoot(root, path string, flags uint64) (*os.File, error) {
	base, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(base)
	fd, err := unix.Openat2(base, path, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// emptyDir removes what is in a directory.
func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
