package machine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ensureDisk makes the data disk when it is missing.
func (m *Machine) ensureDisk() error {
	if err := m.ensureSpace(); err != nil {
		return err
	}
	fi, err := os.Stat(m.cfg.DataDisk)
	if err == nil {
		if !fi.Mode().IsRegular() || fi.Size() == 0 {
			return fmt.Errorf("data disk %s: want a regular file that is not empty", m.cfg.DataDisk)
		}
		return nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("data disk: %w", err)
	}
	// The size is set before the name exists: a crash leaves nothing half made,
	// but for what is swept up here.
	dir := filepath.Dir(m.cfg.DataDisk)
	if old, err := filepath.Glob(filepath.Join(dir, ".disk-*")); err == nil {
		for _, path := range old {
			os.Remove(path)
		}
	}
	f, err := os.CreateTemp(dir, ".disk-*")
	if err != nil {
		return fmt.Errorf("data disk: %w", err)
	}
	defer os.Remove(f.Name()) // no-op once renamed
	err = errors.Join(f.Truncate(m.cfg.DataDiskSize), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), m.cfg.DataDisk)
	}
	if err != nil {
		return fmt.Errorf("make data disk: %w", err)
	}
	return nil
}

// GrowDisk makes the data disk size bytes long; the machine sees that at its next
// boot. The file is sparse: it takes no more space than before.
func (m *Machine) GrowDisk(size int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if size%diskUnit != 0 {
		return fmt.Errorf("data disk of %d bytes: want a multiple of 1 MiB", size)
	}
	f, err := os.OpenFile(m.cfg.DataDisk, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		m.cfg.DataDiskSize = size
		return m.ensureDisk()
	}
	if err != nil {
		return fmt.Errorf("data disk: %w", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return fmt.Errorf("data disk: %w", err)
	}
	if size < fi.Size() {
		return fmt.Errorf("data disk: it has %d MiB and can't shrink to %d MiB", fi.Size()>>20, size>>20)
	}
	if err := errors.Join(f.Truncate(size), f.Sync()); err != nil {
		return fmt.Errorf("grow data disk: %w", err)
	}
	return nil
}

// diskUnit is what a disk's size must be a multiple of, in bytes.
const diskUnit = 1 << 20

// diskSize is the data disk's, or that of the one to be made.
func (m *Machine) diskSize() int64 {
	if fi, err := os.Stat(m.cfg.DataDisk); err == nil {
		return fi.Size()
	}
	return m.cfg.DataDiskSize
}

// minSpace is what the data disk must be able to grow by, in bytes: less is
// used up by the boot's own writes (journal, tables) and a container or two.
const minSpace = 32 << 20

// ensureSpace refuses to boot on a full disk, where a guest finds its own disk
// failing.
func (m *Machine) ensureSpace() error {
	dir := filepath.Dir(m.cfg.DataDisk)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("data disk: space in %s: %w", dir, err)
	}
	if free := uint64(st.Bavail) * uint64(st.Bsize); free < minSpace {
		return fmt.Errorf("no space left on the disk of %s: %d MiB are free, the virtual machine needs %d: delete something there", dir, free>>20, minSpace>>20)
	}
	return nil
}
