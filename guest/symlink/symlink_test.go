package symlink_test

import (
	"errors"
	"io/fs"
	"syscall"
	"testing"

	"sampan/guest/symlink"
)

func TestFollow(t *testing.T) {
	links := map[string]string{
		"/abs": "/etc/conf", "/etc/conf": "real/", "/dir/up": "../..", "/dir/deep/up": "../x/./y",
		"/loop": "loop", "/ping": "pong", "/pong": "ping", "/root": "/", "/dangling": "none/at/all", "/empty": "",
	}
	readlink := func(name string) (string, error) {
		if to, ok := links[name]; ok {
			return to, nil
		}
		return "", fs.ErrNotExist
	}
	for name, want := range map[string]string{
		"/": "/", "": "/", "/a//b/./c/": "/a/b/c", "/../../a": "/a", "/a/../..": "/",
		"/abs": "/etc/real", "/abs/file": "/etc/real/file", "/dir/up": "/", "/dir/up/abs/x": "/etc/real/x",
		"/dir/deep/up": "/dir/x/y", "/dir/deep/up/../z": "/dir/x/z", "/root/root/etc": "/etc",
		"/dangling": "/none/at/all", "/dangling/../b": "/none/at/b", "/empty/x": "/x",
	} {
		if got, err := symlink.Follow(name, readlink); got != want || err != nil {
			t.Errorf("%s: %s, %v; want %s", name, got, err, want)
		}
	}
	for _, name := range []string{"/loop", "/ping/x"} {
		if got, err := symlink.Follow(name, readlink); !errors.Is(err, syscall.ELOOP) {
			t.Errorf("%s: %s, %v; want a loop", name, got, err)
		}
	}
}
