package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"sampan/guest/boot"
	"sampan/proto"
)

const (
	volumesDir = boot.DataDir + "/volumes"
	// filling is a file beside a volume's data while it is being filled from an
	// image: what is found with it is unfinished, and filled anew.
	filling = "filling"
)

// volume returns the directory of the volume that m names, which is made when
// missing, and when empty filled with what the image has there.
func (s *Service) volume(r *rootfs, m specs.Mount) (string, error) {
	if err := checkName("volume", m.Source); err != nil {
		return "", err
	}
	lock := s.volumeLock(m.Source)
	lock.Lock()
	defer lock.Unlock()
	dir := filepath.Join(volumesDir, m.Source)
	data := filepath.Join(dir, "_data")
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", err
	}
	fresh := false
	switch err := os.Mkdir(data, 0o755); {
	case err == nil:
		fresh = true
	case !errors.Is(err, fs.ErrExist):
		return "", err
	}
	if slices.Contains(m.Options, "nocopy") {
		return data, nil
	}
	marker := filepath.Join(dir, filling)
	if _, err := os.Lstat(marker); err == nil {
		if err := emptyDir(data); err != nil {
			return "", err
		}
		fresh = true
	}
	if !fresh {
		if names, err := os.ReadDir(data); err != nil || len(names) > 0 {
			return data, err
		}
	}
	if err := fill(data, marker, r.root(), m.Destination); err != nil {
		return "", fmt.Errorf("fill volume %s from the image: %w", m.Source, err)
	}
	return data, nil
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
func (s *Service) RemoveVolume(_ context.Context, req *proto.VolumeRequest) (*proto.Empty, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	if err := checkName("volume", req.Name); err != nil {
		return nil, err
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
