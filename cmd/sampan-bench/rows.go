package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// rows are the table. Those that stop the machine come last.
func (b *bench) rows() []row {
	site := &http.Server{Handler: http.FileServer(http.Dir(b.share))}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err) // no loopback
	}
	go site.Serve(ln) // ends with the process
	here := "http://" + ln.Addr().String()
	there := fmt.Sprintf("http://127.0.0.1:%d", b.port)
	return slices.Concat(b.vsockRows(), []row{b.nginxRow()}, b.pullRows(), b.eventRows(), []row{
		{"warm: `run --rm busybox true`", "fork and exec in the guest", "namespaces, overlay, a network interface, under emulation", "ms", b.run, b.forkExec},
		{"warm: `run --rm busybox true`", "`crun run` of the same alone, in the same guest", "the same", "ms", b.run, b.crunRun},
		{"20 × `run --rm busybox true` at once", "20 × `crun run` at once", "the guest's processors: a second stage's start each", "ms", b.runMany, b.crunMany},
	}, b.dailyRows(), []row{
		{"`exec true`", "fork and exec in the guest", "joining namespaces, and two round trips", "ms", b.exec, b.forkExec},
		{"`exec true`", "`crun exec` alone, in the same guest", "the same", "ms", b.exec, b.crunExec},
		{"`run -d -p` to the first answer", "fork and exec in the guest", "as `run`, and busybox's httpd", "ms", b.firstAnswer, b.forkExec},
		{"published port: one request", "the host's loopback", "the server's fork, and the agent's and the container's sockets", "ms",
			func(ctx context.Context) (float64, error) { return requestTime(ctx, there+"/page") },
			func(ctx context.Context) (float64, error) { return requestTime(ctx, here+"/page") }},
		{"published port: 128 MiB", "the host's loopback", "the guest's TCP stack and vsock copies under emulation", "MiB/s",
			func(ctx context.Context) (float64, error) { return download(ctx, there+"/big") },
			func(ctx context.Context) (float64, error) { return download(ctx, here+"/big") }},
		{"outwards: 128 MiB from a server of the host", "the host's loopback", "a TCP stack in the daemon, and the guest's under emulation", "MiB/s",
			func(ctx context.Context) (float64, error) { return b.outwards(ctx, ln.Addr().(*net.TCPAddr).Port) },
			func(ctx context.Context) (float64, error) { return download(ctx, here+"/big") }},
		{"bind mount: 128 MiB read, not cached in the guest", "the same file read on the host", "FUSE requests of at most 1 MiB", "MiB/s", b.readShare, b.readHost},
		{"bind mount: 1,000 files written and removed", "the same on the host", "four FUSE requests a file", "ms", b.filesShare, b.filesHost},
	}, b.nameRows(), b.volumeRows(), []row{
		{"vsock: 128 MiB from a container's stdout", "a pipe on the host", "the guest's copy from pipe to vsock", "MiB/s",
			func(ctx context.Context) (float64, error) {
				return piped(b.command(ctx, append([]string{"exec", "server"}, zeros...)...))
			},
			func(ctx context.Context) (float64, error) {
				return piped(exec.CommandContext(ctx, zeros[0], zeros[1:]...))
			}},
		{"cold: the same with everything stopped", "bare boot of the same kernel, up to an empty init", "the kernel's own boot", "ms", b.cold, b.bareBoot},
	}, b.listRows())
}

// zeros writes bigSize bytes.
var zeros = []string{"dd", "if=/dev/zero", "bs=1M", "count=" + strconv.Itoa(bigSize>>20)}

// piped times a command that writes bigSize bytes into a pipe.
func piped(cmd *exec.Cmd) (float64, error) {
	cmd.Stderr = nil                             // dd's account
	cmd.Stdout = struct{ io.Writer }{io.Discard} // not a file: a pipe that we read
	return rate(bigSize, cmd.Run)
}

func (b *bench) run(ctx context.Context) (float64, error) {
	return millis(func() error { return b.do(ctx, "run", "--rm", "busybox", "true") })
}

func (b *bench) exec(ctx context.Context) (float64, error) {
	return millis(func() error { return b.do(ctx, "exec", "server", "true") })
}

// cold stops the daemon, then times the first run, of a machine as the product
// has it.
func (b *bench) cold(ctx context.Context) (float64, error) {
	if err := b.stopDaemon(); err != nil {
		return 0, err
	}
	return millis(func() error { return b.do(ctx, "run", "--rm", "busybox", "true") })
}

// forkExec times one fork and exec of a small static program in the guest.
func (b *bench) forkExec(ctx context.Context) (float64, error) {
	return b.repeated(ctx, 100, "/bin/true")
}

// repeated times a command in the server's container, in the guest's own time.
func (b *bench) repeated(ctx context.Context, n int, cmd string) (float64, error) {
	script := fmt.Sprintf("a=$(cut -d' ' -f1 /proc/uptime); i=0; while [ $i -lt %d ]; do %s || exit; i=$((i+1)); done; echo $a $(cut -d' ' -f1 /proc/uptime)", n, cmd)
	out, err := b.output(ctx, "exec", "server", "sh", "-c", script)
	if err != nil {
		return 0, err
	}
	var from, to float64
	if _, err := fmt.Sscan(string(out), &from, &to); err != nil {
		return 0, fmt.Errorf("%q: %w", out, err)
	}
	return (to - from) * 1000 / float64(n), nil
}

// outwards reads the big file from a server on the host.
func (b *bench) outwards(ctx context.Context, port int) (float64, error) {
	return rate(bigSize, func() error {
		return b.do(ctx, "exec", "server", "wget", "-q", "-O", "/dev/null", fmt.Sprintf("http://host.docker.internal:%d/big", port))
	})
}

func (b *bench) firstAnswer(ctx context.Context) (float64, error) {
	port, err := freePort()
	if err != nil {
		return 0, err
	}
	defer b.do(context.WithoutCancel(ctx), "rm", "-f", "first")
	return millis(func() error {
		if err := b.do(ctx, "run", "-d", "--name", "first", "-p", fmt.Sprintf("127.0.0.1:%d:80", port), "busybox", "httpd", "-f", "-p", "80", "-h", "/etc"); err != nil {
			return err
		}
		for {
			_, err := fetch(ctx, fmt.Sprintf("http://127.0.0.1:%d/passwd", port))
			if err == nil || ctx.Err() != nil {
				return err
			}
			time.Sleep(time.Millisecond) // not up yet: the port answers with a reset
		}
	})
}

func fetch(ctx context.Context, url string) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	req.Close = true // a connection of its own
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return n, err
}

func requestTime(ctx context.Context, url string) (float64, error) {
	ms, err := millis(func() error {
		for range requests {
			if _, err := fetch(ctx, url); err != nil {
				return err
			}
		}
		return nil
	})
	return ms / requests, err
}

func download(ctx context.Context, url string) (float64, error) {
	return rate(bigSize, func() error {
		n, err := fetch(ctx, url)
		if err == nil && n != bigSize {
			err = fmt.Errorf("GET %s: %d bytes", url, n)
		}
		return err
	})
}

// readShare reads the shared file in the container with the guest's page cache
// dropped; the command's way to the guest is in it.
func (b *bench) readShare(ctx context.Context) (float64, error) {
	drop := b.command(ctx, "machine", "shell")
	drop.Stdin = strings.NewReader("sync; echo 3 > /proc/sys/vm/drop_caches\n")
	if out, err := drop.Output(); err != nil {
		return 0, fmt.Errorf("drop caches: %w: %s", err, out)
	}
	return rate(bigSize, func() error {
		return b.do(ctx, "exec", "server", "dd", "if=/share/big", "of=/dev/null", "bs=1M", "status=none")
	})
}

func (b *bench) readHost(ctx context.Context) (float64, error) {
	return rate(bigSize, func() error {
		return exec.CommandContext(ctx, "dd", "if="+filepath.Join(b.share, "big"), "of=/dev/null", "bs=1M").Run()
	})
}

const fileScript = "mkdir %[1]s && cd %[1]s && i=0; while [ $i -lt %[2]d ]; do echo content > f$i; i=$((i+1)); done; cd .. && rm -r %[1]s"

func (b *bench) filesShare(ctx context.Context) (float64, error) {
	return millis(func() error {
		return b.do(ctx, "exec", "server", "sh", "-c", fmt.Sprintf(fileScript, "/share/files", smallFiles))
	})
}

func (b *bench) filesHost(ctx context.Context) (float64, error) {
	dir := filepath.Join(b.share, "files")
	defer os.RemoveAll(dir)
	return millis(func() error {
		return exec.CommandContext(ctx, "sh", "-c", fmt.Sprintf(fileScript, dir, smallFiles)).Run()
	})
}
