package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"sampan/guest/boot"
)

// trashDir holds what is to be deleted. Deleting takes time with many files;
// moving there takes none, and after a crash the next boot goes on.
const trashDir = boot.DataDir + "/trash"

// discard makes a directory disappear at once and deletes it afterwards, when
// after is closed (nil: at once). One that doesn't exist is no error.
func discard(dir string, after <-chan struct{}) error {
	if err := os.MkdirAll(trashDir, 0o700); err != nil {
		return err
	}
	grave, err := os.MkdirTemp(trashDir, "")
	if err != nil {
		return err
	}
	err = os.Rename(dir, filepath.Join(grave, "0"))
	// Bounded by the number of files; a power-off leaves the rest to EmptyTrash.
	go func() {
		if after != nil {
			<-after
		}
		os.RemoveAll(grave)
	}()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// EmptyTrash deletes what the last boot did not come to.
func EmptyTrash() error {
	entries, err := os.ReadDir(trashDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(trashDir, e.Name())))
	}
	if err != nil {
		return fmt.Errorf("empty the trash: %w", err)
	}
	return nil
}
