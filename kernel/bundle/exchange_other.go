//go:build !linux

package bundle

import "os"

// exchange makes the directory tmp appear as dir, with a short time in between
// in which there is none.
func exchange(tmp, dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}
