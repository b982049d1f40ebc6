package main

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/docker/go-units"
)

// allocatedRow is a part of SAMPAN_HOME: how long its files are, and what the
// host's disk has set aside for them. Files with holes, and the data disk above
// all, take less than they are long.
type allocatedRow struct{ What, Logical, Allocated string }

// allocated adds up the files of a home.
func allocated(home string) ([]allocatedRow, error) {
	parts := []struct{ name, what string }{{"images", "Images"}, {"data.img", "Data disk (containers, volumes)"}, {"", "Logs, records and others"}}
	sums := make([][2]int64, len(parts))
	err := filepath.WalkDir(home, func(path string, d fs.DirEntry, err error) error {
		var fi fs.FileInfo
		if err == nil {
			fi, err = d.Info()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it has gone meanwhile
		}
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(home, path)
		top, _, _ := strings.Cut(filepath.ToSlash(rel), "/")
		for i, p := range parts {
			if p.name != top && p.name != "" {
				continue
			}
			if fi.Mode().IsRegular() {
				sums[i][0] += fi.Size()
			}
			if st, ok := fi.Sys().(*syscall.Stat_t); ok {
				sums[i][1] += st.Blocks * 512
			}
			break
		}
		return nil
	})
	var rows []allocatedRow
	for i, p := range parts {
		rows = append(rows, allocatedRow{p.what, units.HumanSize(float64(sums[i][0])), units.HumanSize(float64(sums[i][1]))})
	}
	return rows, err
}
