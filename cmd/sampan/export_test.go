package main

import (
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What save and export refuse to replace, in docker's words.
func TestCheckReplaceable(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, err := range []error{
		os.WriteFile("file", nil, 0o600), os.Mkdir("dir", 0o700), os.Symlink("file", "link"), os.Symlink("nowhere", "dangling"), unix.Mkfifo("fifo", 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", "socket")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for path, want := range map[string]string{
		"file": "", "new": "", "dir/new": "",
		"dir": "cannot write to a directory", "dir/": "cannot write to a directory", "link": "cannot write to a symbolic link directly", "dangling": "cannot write to a symbolic link directly",
		"fifo": "cannot write to a named pipe (FIFO)", "socket": "cannot write to a socket", os.DevNull: "cannot write to a character device file",
		"gone/new": "invalid output path: stat gone: no such file or directory", "file/new": "invalid output path: stat file: not a directory",
	} {
		if err := checkReplaceable(path); (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}
