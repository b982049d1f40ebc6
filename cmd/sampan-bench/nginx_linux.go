package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"sampan/host/imagetest"
)

const nginxConf = `user www-data;
worker_processes auto;
daemon off;
error_log /dev/stderr;
pid /run/nginx.pid;
events {}
http {
	access_log off;
	server { listen 80; root /srv; }
}
`

// errMissing is a program of the host's that a row needs.
var errMissing = errors.New("not measured")

// serveNginx starts nginx with a published port, and returns the URLs of a page
// through that and through QEMU's user-mode networking.
func (b *bench) serveNginx(ctx context.Context) (ours, theirs string, err error) {
	if _, err := exec.LookPath("wrk"); err != nil {
		return "", "", fmt.Errorf("%w: no wrk (apt install wrk)", errMissing)
	}
	tree, err := imagetest.TreeLayer(filepath.Join(filepath.Dir(b.crunRoot), "root-nginx"))
	if err != nil {
		return "", "", fmt.Errorf("%w: run `make dist/root-nginx`", err)
	}
	conf, err := imagetest.Layer(
		imagetest.File{Name: "etc/nginx/nginx.conf", Data: []byte(nginxConf)},
		imagetest.File{Name: "etc/passwd", Data: []byte("root:x:0:0::/:\nwww-data:x:33:33::/:\n")},
		imagetest.File{Name: "etc/group", Data: []byte("root:x:0:\nwww-data:x:33:\n")},
		imagetest.File{Name: "srv/"}, imagetest.File{Name: "srv/index.html", Data: make([]byte, 1000)})
	if err != nil {
		return "", "", err
	}
	img, err := imagetest.Image(v1.Config{Env: []string{"PATH=/usr/sbin:/usr/bin"}, Cmd: []string{"nginx"}}, tree, conf)
	if err != nil {
		return "", "", err
	}
	archive := filepath.Join(b.dir, "nginx.tar")
	if err := imagetest.Archive(archive, "nginx:latest", img); err != nil {
		return "", "", err
	}
	if err := b.do(ctx, "load", "-q", "-i", archive); err != nil {
		return "", "", err
	}
	port, err := freePort()
	if err != nil {
		return "", "", err
	}
	if err := b.do(ctx, "run", "-d", "--name", "nginx", "-p", fmt.Sprintf("127.0.0.1:%d:80", port), "nginx"); err != nil {
		return "", "", err
	}
	addr, err := b.userAddr(ctx, "nginx", 80)
	if err != nil {
		return "", "", err
	}
	ours = fmt.Sprintf("http://127.0.0.1:%d/", port)
	for { // until it listens, the port answers with a reset
		_, err := fetch(ctx, ours)
		if err == nil {
			return ours, "http://" + addr + "/", nil
		}
		select {
		case <-ctx.Done():
			said, _ := b.output(context.WithoutCancel(ctx), "logs", "nginx")
			return "", "", fmt.Errorf("nginx does not answer: %w: %s", err, said)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

var requestsLine = regexp.MustCompile(`(?m)^Requests/sec: *([0-9.]+)`)

// wrk loads a server with 4 connections (QEMU's user-mode networking resets more
// that come at once) for 3 seconds and returns requests a second.
func wrk(ctx context.Context, url string) (float64, error) {
	out, err := exec.CommandContext(ctx, "wrk", "-t1", "-c4", "-d3s", url).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("wrk %s: %w: %s", url, err, out)
	}
	m := requestsLine.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("wrk %s: %s", url, out)
	}
	v, err := strconv.ParseFloat(string(m[1]), 64)
	if err == nil && v == 0 {
		err = fmt.Errorf("wrk %s: no request succeeded", url)
	}
	return v, err
}

// nginxRow loads nginx through a published port and through QEMU's user-mode
// networking.
func (b *bench) nginxRow() row {
	var ours, theirs string
	start := func(ctx context.Context) error {
		if ours != "" {
			return nil
		}
		var err error
		ours, theirs, err = b.serveNginx(ctx)
		return err
	}
	side := func(url *string) func(context.Context) (float64, error) {
		return func(ctx context.Context) (float64, error) {
			if err := start(ctx); err != nil {
				return 0, err
			}
			return wrk(ctx, *url)
		}
	}
	return row{"published port: nginx, requests on 4 kept connections (wrk)", userMode, "nginx and two TCP stacks in the guest, under emulation", "1/s", side(&ours), side(&theirs)}
}
