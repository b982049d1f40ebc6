package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"sampan/host/share"
	"sampan/kernel"
	"sampan/vm"
	"sampan/vm/qemu"
)

// virtiofsd is the C one, which Debian 12 has in qemu-system-common. It is only
// a yardstick: Sampan's device is part of sampand.
const virtiofsd = "/usr/lib/qemu/virtiofsd"

// shareWork is how much the two devices get to do.
type shareWork struct {
	runs  int // with the large file, after one that does not count
	files int
	mib   int // of the large file
}

// shareLine is a line of the table about shares.
type shareLine struct {
	name, step string
	amount     float64 // MiB in each run; 0: the time counts
}

const shareHeader = `
## Shares beside virtiofsd

Sampan's virtio-fs device and C virtiofsd (as root, its defaults and xattrs) in
one machine, each given the same work in turn: the large file as often as above,
the small ones once. More than 1 is better for Sampan.

| what | Sampan | virtiofsd | better by |
|---|---:|---:|---:|
`

// shareTable compares our virtio-fs device with virtiofsd.
func (b *bench) shareTable(ctx context.Context, w shareWork) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Minute)
	defer cancel()
	times, lack, err := b.measureShares(ctx, w)
	if err != nil {
		return "", fmt.Errorf("shares: %w", err)
	}
	var table strings.Builder
	table.WriteString(shareHeader)
	for _, l := range []shareLine{
		{fmt.Sprintf("write and sync %d MiB", w.mib), "write", float64(w.mib)},
		{fmt.Sprintf("read %d MiB, not cached in the guest", w.mib), "read", float64(w.mib)},
		{fmt.Sprintf("unpack %d files of 4 KiB (tar)", w.files), "unpack", 0},
		{"list and stat them", "stat", 0},
		{"read them back", "readback", 0},
		{"remove them", "remove", 0},
	} {
		ours, theirs := times["ours"][l.step], times["theirs"][l.step]
		if l.amount > 0 { // the first run touches memory that the guest never had
			ours, theirs = ours[min(1, len(ours)):], theirs[min(1, len(theirs)):]
		}
		if len(ours) == 0 || len(theirs) == 0 && lack == "" {
			return "", fmt.Errorf("shares: no times of %q", l.step)
		}
		other, ratio := "not measured: "+lack, ""
		if lack == "" {
			other, ratio = l.format(median(theirs)), fmt.Sprintf("%.2f", median(theirs)/median(ours))
		}
		fmt.Fprintf(&table, "| %s | %s | %s | %s |\n", l.name, l.format(median(ours)), other, ratio)
	}
	return table.String(), nil
}

func (l shareLine) format(seconds float64) string {
	if l.amount > 0 {
		return format(l.amount/seconds, "MiB/s")
	}
	return format(seconds, "s")
}

// shareTimes are seconds by tag ("ours", "theirs") and step, in the order of the
// runs.
type shareTimes map[string]map[string][]float64

// measureShares boots a machine with our virtio-fs device and, unless lack says
// why not, virtiofsd's, and does the same work on both (see sharework).
func (b *bench) measureShares(ctx context.Context, w shareWork) (times shareTimes, lack string, err error) {
	dir, err := os.MkdirTemp(b.dir, "shares-")
	if err != nil {
		return nil, "", err
	}
	defer os.RemoveAll(dir)
	initrd := filepath.Join(dir, "initrd")
	if err := shareInitrd(ctx, b.bundle, initrd); err != nil {
		return nil, "", err
	}
	for _, side := range []string{"ours", "theirs"} {
		if err := os.Mkdir(filepath.Join(dir, side), 0o755); err != nil {
			return nil, "", err
		}
	}
	tree := share.NewTree(share.Options{})
	export, err := tree.Export(filepath.Join(dir, "ours"), false)
	if err != nil {
		return nil, "", err
	}
	defer export.Close()
	driver, tags := &qemu.Driver{}, "ours"
	other, lack, err := startVirtiofsd(ctx, filepath.Join(dir, "theirs"), filepath.Join(dir, "sock"))
	if err != nil {
		return nil, "", err
	}
	if lack == "" {
		defer func() {
			other.Process.Kill() // it ends with its machine, if there was one
			other.Wait()
		}()
		tags += ",theirs"
		driver.Extra = []string{"-chardev", "socket,id=theirs,path=" + filepath.Join(dir, "sock"),
			"-device", "vhost-user-fs-pci,chardev=theirs,queue-size=1024,tag=theirs"}
	}
	var out bytes.Buffer
	m, err := driver.Boot(ctx, vm.Config{
		Kernel: b.bundle.Kernel, Initrd: initrd, CPUs: 2, Memory: 2 << 30, Console: &out,
		Shares:  []vm.Share{{Tag: "ours", Server: tree.Server()}},
		Cmdline: fmt.Sprintf("sharework.tags=%s sharework.runs=%d sharework.files=%d sharework.mib=%d", tags, w.runs+1, w.files, w.mib),
	})
	if err != nil {
		return nil, "", err
	}
	stop := context.AfterFunc(ctx, func() { m.Stop(context.WithoutCancel(ctx)) })
	defer stop()
	err = m.Wait()
	times = parseShareTimes(out.String())
	if err != nil || !strings.Contains(out.String(), "sharework done") {
		return nil, "", errors.Join(fmt.Errorf("the machine did not finish its work; it said:\n%s", out.String()), err, ctx.Err())
	}
	return times, lack, nil
}

// startVirtiofsd serves a folder, or says why it can't.
func startVirtiofsd(ctx context.Context, dir, socket string) (cmd *exec.Cmd, lack string, err error) {
	if _, err := os.Stat(virtiofsd); err != nil {
		return nil, "no " + virtiofsd, nil
	}
	if os.Geteuid() != 0 {
		return nil, "it needs root", nil
	}
	var said bytes.Buffer
	cmd = exec.CommandContext(ctx, virtiofsd, "--socket-path="+socket, "-o", "source="+dir, "-o", "xattr")
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return nil, "", err
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) { // it tells nobody when it listens
		if _, err := os.Stat(socket); err == nil {
			return cmd, "", nil
		}
		if time.Now().After(end) {
			cmd.Process.Kill()
			cmd.Wait()
			return nil, "", fmt.Errorf("%s made no socket in 10 s: %s", virtiofsd, said.String())
		}
	}
}

// shareInitrd is the guest's initrd with sharework as its init.
func shareInitrd(ctx context.Context, from *kernel.Bundle, to string) error {
	bin := to + ".init"
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "sampan/cmd/sampan-bench/sharework")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build sharework: %w\n%s", err, out)
	}
	body, err := os.ReadFile(bin)
	if err != nil {
		return err
	}
	b, err := from.ReadInitrd()
	if err != nil {
		return err
	}
	b = append(b, make([]byte, -len(b)&3)...)
	b = appendCPIO(b, "init", 0o100755, body)
	b = appendCPIO(b, "TRAILER!!!", 0, nil)
	return os.WriteFile(to, b, 0o600)
}

// appendCPIO appends a file of a newc archive (initramfs buffer format, in the
// kernel's documentation) to b, whose length is a multiple of 4.
func appendCPIO(b []byte, name string, mode int, body []byte) []byte {
	b = fmt.Appendf(b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		1, mode, 0, 0, 1, 0, len(body), 0, 0, 0, 0, len(name)+1, 0, name)
	b = append(b, make([]byte, -len(b)&3)...)
	b = append(b, body...)
	return append(b, make([]byte, -len(b)&3)...)
}

// parseShareTimes reads what sharework prints: "sharework TAG STEP SECONDS".
func parseShareTimes(out string) shareTimes {
	times := shareTimes{}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) != 4 || f[0] != "sharework" {
			continue
		}
		v, err := strconv.ParseFloat(f[3], 64)
		if err != nil {
			continue
		}
		if times[f[1]] == nil {
			times[f[1]] = map[string][]float64{}
		}
		times[f[1]][f[2]] = append(times[f[1]][f[2]], v)
	}
	return times
}
