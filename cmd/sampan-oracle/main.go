// Command sampan-oracle writes cmd/sampan/e2e/oracle/transcript.txt: what dockerd of Debian's
// packages does with the probes there. It needs root and apt, starts a daemon
// with a home and a socket of its own, and takes it away again:
//
//	go run ./cmd/sampan-oracle
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"sampan/cmd/sampan/e2e/oracle"
	"sampan/host/imagetest"
)

// packages of Debian that make a dockerd.
var packages = []string{"docker.io", "containerd", "runc", "iptables"}

func main() {
	root := flag.String("root", "", "a `folder` with the packages unpacked; default: they are fetched")
	out := flag.String("out", "cmd/sampan/e2e/oracle/transcript.txt", "the `file` to write")
	missing := flag.Bool("missing", false, "ask only what has not been asked yet")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := record(ctx, *root, *out, *missing); err != nil {
		fmt.Fprintln(os.Stderr, "record:", err)
		os.Exit(1)
	}
}

func record(ctx context.Context, root, out string, missing bool) (err error) {
	dir, err := os.MkdirTemp("", "oracle")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if root == "" {
		root = filepath.Join(dir, "root")
		if err := unpack(ctx, dir, root); err != nil {
			return err
		}
	}
	socket := filepath.Join(dir, "docker.sock")
	stop, err := serve(ctx, dir, root, socket)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop(), unmount(dir)) }()
	if err := load(ctx, dir, socket); err != nil {
		return err
	}
	r := oracle.Runner{Socket: socket, Dir: dir, Env: os.Environ(), Done: func(p oracle.Probe, took time.Duration) {
		fmt.Printf("%s (%s)\n", p.Name, took.Round(time.Second))
	}}
	known := oracle.Docker() // a probe that fails keeps what it has
	probes := slices.DeleteFunc(oracle.Probes(), func(p oracle.Probe) bool { return missing && known[p.Name] != "" })
	texts, errs := r.RunAll(ctx, probes, 4)
	for i, p := range probes {
		if errs[i] == nil {
			known[p.Name] = texts[i]
		}
	}
	var b strings.Builder
	for _, p := range oracle.Probes() {
		b.WriteString(oracle.Section(p.Name, known[p.Name]))
	}
	return errors.Join(append(errs, os.WriteFile(out, []byte(b.String()), 0o644))...)
}

// unpack fetches the packages.
func unpack(ctx context.Context, dir, root string) error {
	get := exec.CommandContext(ctx, "apt-get", append([]string{"download"}, packages...)...)
	get.Dir, get.Stderr = dir, os.Stderr
	if err := get.Run(); err != nil {
		return fmt.Errorf("apt-get download: %w", err)
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return err
	}
	for _, deb := range debs {
		if text, err := exec.CommandContext(ctx, "dpkg", "-x", deb, root).CombinedOutput(); err != nil {
			return fmt.Errorf("dpkg -x %s: %w: %s", deb, err, text)
		}
	}
	return nil
}

// serve starts dockerd; stop ends it.
func serve(ctx context.Context, dir, root, socket string) (stop func() error, err error) {
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(root, "usr/sbin/dockerd"), "--host", "unix://"+socket,
		"--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"), "--pidfile", filepath.Join(dir, "pid"),
		"--bridge", "none", "--iptables=false", "--ip-forward=false")
	cmd.Env = append(os.Environ(),
		fmt.Sprintf("PATH=%[1]s/usr/sbin:%[1]s/usr/bin:%[2]s", root, os.Getenv("PATH")),
		"LD_LIBRARY_PATH="+filepath.Join(root, "usr/lib/x86_64-linux-gnu"))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	stop = func() error {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		select {
		case err := <-ended:
			return err
		case <-time.After(time.Minute):
			return errors.Join(errors.New("dockerd does not end"), cmd.Process.Kill())
		}
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		select {
		case err := <-ended:
			text, _ := os.ReadFile(log.Name())
			return nil, fmt.Errorf("dockerd: %v\n%s", err, text)
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), stop())
		default:
		}
		if docker(ctx, socket, "version").Run() == nil {
			return stop, nil
		}
		if time.Now().After(end) {
			return nil, errors.Join(errors.New("dockerd does not answer"), stop())
		}
	}
}

// unmount takes away the network namespace that dockerd leaves behind once it has run
// a container on the host's network; else its folder can't be removed.
func unmount(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, "exec", "netns", "*"))
	if err != nil || len(left) == 0 {
		return err
	}
	if text, err := exec.Command("umount", left...).CombinedOutput(); err != nil {
		return fmt.Errorf("umount: %w: %s", err, text)
	}
	return nil
}

func docker(ctx context.Context, socket string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "docker", append([]string{"--host", "unix://" + socket}, args...)...)
}

// load gives dockerd the image that the probes use.
func load(ctx context.Context, dir, socket string) error {
	img, err := imagetest.Busybox()
	if err != nil {
		return err
	}
	tar := filepath.Join(dir, "busybox.tar")
	if err := imagetest.Archive(tar, "busybox:latest", img); err != nil {
		return err
	}
	if text, err := docker(ctx, socket, "load", "-q", "-i", tar).CombinedOutput(); err != nil {
		return fmt.Errorf("docker load: %w: %s", err, text)
	}
	return nil
}
