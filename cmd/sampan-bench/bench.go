package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"sampan/host/imagetest"
	"sampan/kernel"
	"sampan/vm"
	"sampan/vm/qemu"
	"sampan/vm/vmtest/guest"
)

// bench is a home with an image, and a folder on the host.
type bench struct {
	dir, home, sampan string
	share             string // on the host
	crunRoot          string // of Debian's package
	bundle            *kernel.Bundle
	initrd            string // of the bundle, unpacked
	how               string // the machine, in its own words
	port              int    // of the server container
	user              *userNet
	bare              []vm.Machine // without the product; those that rows have needed
}

const (
	bigSize    = 128 << 20 // bytes of the shared file, and of a stream
	smallFiles = 1000
	requests   = 50
)

func newBench(ctx context.Context, bin string) (_ *bench, err error) {
	dir, err := os.MkdirTemp("", "sampan-bench-")
	if err != nil {
		return nil, err
	}
	b := &bench{dir: dir, home: filepath.Join(dir, "home"), sampan: filepath.Join(bin, "sampan"), share: filepath.Join(dir, "share"), crunRoot: filepath.Join(filepath.Dir(bin), "dist", "root-crun")}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	os.Setenv("SAMPAN_HOME", b.home)
	files := os.Getenv("SAMPAN_GUEST")
	if files == "" {
		files = filepath.Join(filepath.Dir(bin), "dist", "guest-"+runtime.GOARCH)
	}
	if b.bundle, err = kernel.Open(files); err != nil {
		return nil, err
	}
	initrd, err := b.bundle.ReadInitrd()
	if err != nil {
		return nil, err
	}
	b.initrd = filepath.Join(dir, "initrd")
	if err := os.WriteFile(b.initrd, initrd, 0o600); err != nil {
		return nil, err
	}
	img, err := imagetest.Busybox()
	if err != nil {
		return nil, err
	}
	archive := filepath.Join(dir, "busybox.tar")
	if err := imagetest.Archive(archive, "busybox:latest", img); err != nil {
		return nil, err
	}
	if err := os.Mkdir(b.share, 0o755); err != nil {
		return nil, err
	}
	for name, size := range map[string]int{"big": bigSize, "page": 1000} {
		if err := os.WriteFile(filepath.Join(b.share, name), make([]byte, size), 0o644); err != nil {
			return nil, err
		}
	}
	binary := map[string]string{"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}[runtime.GOARCH]
	if b.user, err = newUserNet(filepath.Join(dir, "path"), binary, guest.CommandPort, 80); err != nil {
		return nil, err
	}
	if err := b.do(ctx, "load", "-q", "-i", archive); err != nil {
		return nil, err
	}
	if b.port, err = freePort(); err != nil {
		return nil, err
	}
	err = b.serve(ctx)
	b.user.remove() // its ports are this machine's
	if err != nil {
		return nil, err
	}
	if err := b.serveCrun(ctx); err != nil {
		return nil, err
	}
	return b, b.joinUserNet(ctx)
}

// serve starts the container that the warm rows use.
func (b *bench) serve(ctx context.Context) error {
	err := b.do(ctx, "run", "-d", "--name", "server", "-v", b.share+":/share", "-v", "volume:/volume", "-p", fmt.Sprintf("127.0.0.1:%d:80", b.port), "busybox", "httpd", "-f", "-p", "80", "-h", "/share")
	if err != nil {
		return err
	}
	out, err := b.output(ctx, "machine", "status", "--json")
	if err != nil {
		return err
	}
	var status struct{ Driver, Kernel string }
	if err := json.Unmarshal(out, &status); err != nil {
		return err
	}
	b.how = fmt.Sprintf("%s, Linux %s (%s)", status.Driver, status.Kernel, b.bundle.Manifest.Flavour)
	return nil
}

func (b *bench) describe() string { return b.how }

func (b *bench) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, b.sampan, args...)
	cmd.Stderr = os.Stderr
	return cmd
}

func (b *bench) do(ctx context.Context, args ...string) error {
	_, err := b.output(ctx, args...)
	return err
}

func (b *bench) output(ctx context.Context, args ...string) ([]byte, error) {
	out, err := b.command(ctx, args...).Output()
	if err != nil {
		err = fmt.Errorf("sampan %s: %w", strings.Join(args, " "), err)
	}
	return out, err
}

// stopDaemon ends the daemon and its machine.
func (b *bench) stopDaemon() error {
	text, err := os.ReadFile(filepath.Join(b.home, "sampand.pid"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return err
	}
	for end := time.Now().Add(time.Minute); syscall.Kill(pid, 0) == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("the daemon (pid %d) did not end in a minute", pid)
		}
	}
	return nil
}

func (b *bench) close() error {
	var err error
	for _, m := range b.bare {
		err = errors.Join(err, m.Stop(context.Background()))
	}
	return errors.Join(err, b.stopDaemon(), os.RemoveAll(b.dir))
}

// bareBoot boots the same kernel up to an init that says a word and ends.
func (b *bench) bareBoot(ctx context.Context) (took float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	console := &marked{mark: "init runs", seen: make(chan struct{})}
	var m vm.Machine
	took, err = millis(func() error {
		m, err = (&qemu.Driver{}).Boot(ctx, vm.Config{
			Kernel: b.bundle.Kernel, Initrd: b.initrd, CPUs: 2, Memory: 2 << 30, Console: console,
			// In octal, or the kernel's account of its command line has the mark, too.
			Cmdline: `rdinit=/bin/busybox -- printf init\040runs\n`,
		})
		if err != nil {
			return err
		}
		select {
		case <-console.seen:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("bare boot: %w", ctx.Err())
		}
	})
	if m != nil {
		err = errors.Join(err, m.Stop(ctx))
	}
	return took, err
}

// marked closes seen once mark has been written to it.
type marked struct {
	mark string
	text []byte
	seen chan struct{}
	done bool
}

func (m *marked) Write(p []byte) (int, error) {
	if !m.done {
		m.text = append(m.text, p...)
		if m.done = bytes.Contains(m.text, []byte(m.mark)); m.done {
			close(m.seen)
		}
	}
	return len(p), nil
}

func freePort() (int, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port, nil
}
