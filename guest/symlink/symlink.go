// Package symlink follows the symbolic links of a path whose end need not exist,
// which no system call does: where something is to be made may be a link to what
// isn't there yet.
package symlink

import (
	"io/fs"
	"path"
	"strings"
	"syscall"
)

// maxLinks bounds a chain of links. The kernel has 40 in one lookup; here each is one
// of its own.
const maxLinks = 255

// Follow returns the path without links that an absolute one leads to. readlink
// reads the link at a path whose folders hold no links; its error means that
// there is none. "..", at the root, is the root.
func Follow(name string, readlink func(string) (string, error)) (string, error) {
	done, rest := "/", name
	for links := 0; rest != ""; {
		var part string
		part, rest, _ = strings.Cut(strings.TrimLeft(rest, "/"), "/")
		switch part {
		case "", ".":
			continue
		case "..":
			done = path.Dir(done)
			continue
		}
		next := path.Join(done, part)
		target, err := readlink(next)
		if err != nil {
			done = next
			continue
		}
		if links++; links > maxLinks {
			return "", &fs.PathError{Op: "follow", Path: name, Err: syscall.ELOOP}
		}
		if path.IsAbs(target) {
			done = "/"
		}
		rest = target + "/" + rest
	}
	return done, nil
}
