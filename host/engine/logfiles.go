package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
)

// rotation says when a log begins a new file, and how many there are.
type rotation struct {
	size  int64 // of a file, in bytes; 0: no limit
	files int   // with the current one
}

// parseRotation reads the options of the json-file driver.
func parseRotation(c container.LogConfig) (rotation, error) {
	r := rotation{files: 1}
	for _, name := range slices.Sorted(maps.Keys(c.Config)) { // of several wrong ones the same is named each time
		value := c.Config[name]
		switch name {
		case "max-size":
			n, err := units.FromHumanSize(value)
			if err != nil {
				return r, invalid("error parsing max-size %q: %s", value, err)
			}
			if n <= 0 {
				return r, invalid("max-size must be a positive number")
			}
			r.size = n
		case "max-file":
			n, err := strconv.Atoi(value)
			if err != nil {
				return r, invalid("error parsing max-file %q: not a number", value)
			}
			if n < 1 {
				return r, invalid("max-file cannot be less than 1")
			}
			r.files = n
		case "env", "env-regex", "labels", "labels-regex", "tag": // logSelection's
		case "compress":
			return r, unsupported("HostConfig.LogConfig.Config %q", name)
		default:
			return r, invalid("unknown log opt '%s' for json-file log driver", name)
		}
	}
	return r, nil
}

// checkLog refuses drivers and options that are not there.
func checkLog(c container.LogConfig) error {
	switch c.Type {
	case "", "json-file":
		if _, err := parseRotation(c); err != nil {
			return err
		}
		_, err := parseSelection(c.Config)
		return err
	case "none":
		for name := range c.Config {
			return invalid("unknown log opt '%s' for none log driver", name)
		}
		return nil
	}
	return unsupported("HostConfig.LogConfig.Type %q", c.Type)
}

// oldLog is the nth file before the current one.
func oldLog(path string, n int) string {
	if n == 0 {
		return path
	}
	return path + "." + strconv.Itoa(n)
}

// next moves the files on and opens a new one.
func (r rotation) next(path string) (*os.File, error) {
	if r.files == 1 {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	for n := r.files - 1; n > 0; n-- {
		if err := os.Rename(oldLog(path, n-1), oldLog(path, n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
}

// logView is a log at one moment. Its files stay readable whatever becomes of
// their names.
type logView struct {
	files []*os.File // the oldest first; none when nothing was ever logged
	limit int64      // of the last one: where it ended
	turn  uint64     // of the writer, when the last file was its current one
}

// viewLog opens a log. live is its writer, nil when there is none.
func viewLog(path string, live *logWriter) (*logView, error) {
	v := new(logView)
	if live != nil {
		live.mu.Lock()
		defer live.mu.Unlock()
		v.turn = live.turn
	}
	for n := 0; ; n++ {
		f, err := os.Open(oldLog(path, n))
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			v.close()
			return nil, fmt.Errorf("read log: %w", err)
		}
		v.files = append(v.files, f)
	}
	slices.Reverse(v.files)
	if len(v.files) > 0 {
		fi, err := v.last().Stat()
		if err != nil {
			v.close()
			return nil, fmt.Errorf("read log: %w", err)
		}
		v.limit = fi.Size()
	}
	return v, nil
}

func (v *logView) last() *os.File { return v.files[len(v.files)-1] }

// tail is where the last n lines begin: the file's index, and the offset in it.
// A negative n means all.
func (v *logView) tail(n int) (file int, at int64, err error) {
	if n < 0 {
		return 0, 0, nil
	}
	for i := len(v.files) - 1; i >= 0; i-- {
		end := v.limit
		if i < len(v.files)-1 {
			fi, err := v.files[i].Stat()
			if err != nil {
				return 0, 0, err
			}
			end = fi.Size()
		}
		if at, n, err = tailOffset(v.files[i], end, n); err != nil || n == 0 {
			return i, at, err
		}
	}
	return 0, 0, nil
}

// follow replaces the last file by the one after it, if the writer has begun
// that: the last one is then complete, and the caller's. A reader that is too
// slow for the rotation goes on with the oldest that is left.
func (v *logView) follow(live *logWriter) (replaced bool, err error) {
	live.mu.Lock()
	defer live.mu.Unlock()
	if live.turn == v.turn {
		return false, nil
	}
	behind := min(live.turn-v.turn-1, uint64(live.rotation.files-1))
	f, err := os.Open(oldLog(live.path, int(behind)))
	if err != nil {
		return false, err
	}
	v.turn = live.turn - behind
	v.files[len(v.files)-1] = f
	return true, nil
}

// close closes the files. Idempotent.
func (v *logView) close() {
	for _, f := range v.files {
		f.Close()
	}
}
