package e2e_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The plug is pulled: whatever the disk holds at a flush, with any of the
// writes that followed and had not been flushed, e2fsck mends by itself; what a
// container was told to be synced is there; and the machine boots from it and
// mends it itself. That holds from the first write on: where the disk was being
// formatted, or mounted for the first time, the machine boots and has a sound
// disk.
//
// A wrapper around QEMU has it log the disk's writes; the product is unchanged.
func TestPulledPlug(t *testing.T) {
	onceAsUser(t)
	writes, prefixes, tries := 30, 10, 1
	if nightly() {
		writes, prefixes, tries = 200, 100, 5
	}
	h := newHome(t)
	log := filepath.Join(filepath.Dir(h.dir), "disk.log")
	plain := h.env
	h.env = append(h.env, "PATH="+loggingQEMU(t, log)+":"+files.bin+":"+os.Getenv("PATH"))
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.dir, "config.toml"), []byte("[machine]\ndisk = \"1GiB\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.load(t)
	acks := h.syncedWrites(t, log, writes)
	volume := strings.TrimPrefix(strings.TrimSpace(h.sampan(t, "volume", "inspect", "-f", "{{.Mountpoint}}", "files")), "/data")
	h.stopDaemon(t)
	l, err := openWriteLog(log)
	if err != nil {
		t.Fatal(err)
	}
	defer l.f.Close()
	flushes := l.flushes(acks[0])
	begin := slices.DeleteFunc(l.flushes(0), func(i int) bool { return l.entries[i].end > acks[0] })
	t.Logf("%d writes and %d flushes were logged, %d of them since the first file was synced", len(l.entries), len(begin)+len(flushes), len(flushes))
	if len(flushes) < prefixes {
		t.Fatalf("%d flushes, want %d at least", len(flushes), prefixes)
	}
	h.env = plain
	p := &plug{h: h, log: l, acks: acks, volume: volume, rnd: rand.New(rand.NewPCG(1, 2)), dir: filepath.Dir(h.dir), did: map[string]int{}}
	p.disk, err = os.Create(filepath.Join(p.dir, "disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.disk.Close()
	if err := p.disk.Truncate(1 << 30); err != nil {
		t.Fatal(err)
	}
	// The beginning: a few writes, which matter each.
	for n, flush := range append([]int{-1}, begin...) {
		for range tries {
			p.pull(t, flush, nightly() || n == 0 || n == len(begin))
		}
	}
	for n := range prefixes {
		p.pull(t, flushes[n*(len(flushes)-1)/max(prefixes-1, 1)], n%10 == prefixes%10)
	}
	t.Logf("booted from a disk that was then %v", p.did)
	if p.did["formatted"] == 0 || p.did["repaired"] == 0 {
		t.Error("want some formatted and some repaired")
	}
}

// A plug is what TestPulledPlug pulls.
type plug struct {
	h      *home
	log    *writeLog
	acks   []int64 // how long the log was when each file was acknowledged
	volume string  // where the files are on the disk
	rnd    *rand.Rand
	dir    string
	disk   *os.File // as it is after the first done entries of the log
	done   int
	did    map[string]int // how many boots found what to do with the disk
}

// pull makes the disk of a plug pulled after a flush, -1 being before the first,
// and checks it, or a copy when it is to be booted from, too. The flushes come in
// their order.
func (p *plug) pull(t *testing.T, flush int, boot bool) {
	t.Helper()
	for ; p.done <= flush; p.done++ {
		if err := p.log.apply(p.disk, p.done); err != nil {
			t.Fatal(err)
		}
	}
	image := filepath.Join(p.dir, "prefix.raw")
	copySparse(t, p.disk.Name(), image)
	lost := p.log.someOfNext(t, image, flush, p.rnd)
	synced := 0
	for flush >= 0 && synced < len(p.acks) && p.acks[synced] <= p.log.entries[flush].end {
		synced++
	}
	what := fmt.Sprintf("after entry %d, a flush, with %s: %d files were acknowledged", flush, lost, synced)
	mounted := everMounted(t, image)
	if mounted { // before, it is the product's to format
		checked := filepath.Join(p.dir, "checked.raw")
		copySparse(t, image, checked)
		checkDisk(t, checked, p.volume, synced, what)
	} else if synced > 0 {
		t.Errorf("%s, and the disk was never mounted", what)
	}
	if !boot {
		return
	}
	did := p.h.bootFrom(t, image, synced, what)
	p.did[did]++
	if mounted && did != "repaired" {
		t.Errorf("%s: the machine mounted a disk in use, %q, want it to be repaired before", what, did)
	}
}

// everMounted tells whether a disk's file system has been mounted: s_mnt_count of
// the superblock counts.
func everMounted(t *testing.T, image string) bool {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var count [2]byte
	if _, err := f.ReadAt(count[:], 1024+0x34); err != nil {
		t.Fatal(err)
	}
	return count != [2]byte{}
}

// loggingQEMU makes a folder with a QEMU that logs its first disk.
func loggingQEMU(t *testing.T, log string) string {
	t.Helper()
	real, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := fmt.Sprintf(`#!/bin/sh
for a do
	shift
	case $a in
	driver=raw,node-name=disk0,*) set -- "$@" driver=file,node-name=plug,filename=%[1]s \
		-blockdev driver=blklogwrites,node-name=logged,file=file0,log=plug,log-super-update-interval=1 \
		-blockdev "${a%%file=file0}file=logged" ;;
	*) set -- "$@" "$a" ;;
	esac
done
: > %[1]s
exec %[2]s "$@"
`, log, real)
	if err := os.WriteFile(filepath.Join(dir, "qemu-system-x86_64"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// syncedWrites has a container write files, one after the other, and sync each.
// It returns how long the log was when each was acknowledged.
func (h *home) syncedWrites(t *testing.T, log string, n int) []int64 {
	t.Helper()
	cmd := h.command(t, "sampan", "run", "-i", "--rm", "-v", "files:/files", "busybox", "sh", "-c",
		`i=0; while read x; do i=$((i+1)); seq 1 ${i}0 > /files/new && mv /files/new /files/f$i && sync && echo $i; done`)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	var acks []int64
	for i := range n {
		fmt.Fprintln(in)
		if !lines.Scan() || lines.Text() != fmt.Sprint(i+1) {
			t.Fatalf("write %d: got %q, %v: %s", i+1, lines.Text(), lines.Err(), stderr.String())
		}
		fi, err := os.Stat(log)
		if err != nil {
			t.Fatal(err)
		}
		acks = append(acks, fi.Size())
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	return acks
}

// someOfNext does to a disk some of the writes between a flush and the next, as
// they may have come to it in any order before the plug was pulled.
func (l *writeLog) someOfNext(t *testing.T, image string, flush int, rnd *rand.Rand) string {
	t.Helper()
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var next []int
	for i := flush + 1; i < len(l.entries) && l.entries[i].flags&logFlush == 0; i++ {
		next = append(next, i)
	}
	rnd.Shuffle(len(next), func(a, b int) { next[a], next[b] = next[b], next[a] })
	some := next[:rnd.IntN(len(next)+1)]
	for _, i := range some {
		if err := l.apply(f, i); err != nil {
			t.Fatal(err)
		}
	}
	return fmt.Sprintf("%d of the next %d writes", len(some), len(next))
}

// checkDisk wants a file system that e2fsck mends unasked and then finds clean,
// with the files that were synced.
func checkDisk(t *testing.T, image, volume string, synced int, what string) {
	t.Helper()
	tool(t, what, 1, "e2fsck", "-p", image) // 1: errors corrected
	tool(t, what, 0, "e2fsck", "-fn", image)
	dir := t.TempDir()
	said := tool(t, what, 0, "debugfs", "-R", fmt.Sprintf("rdump %s/_data %s", strings.TrimSuffix(volume, "/_data"), dir), image)
	checkFiles(t, synced, what+"\n"+said, func(name string) string {
		b, _ := os.ReadFile(filepath.Join(dir, "_data", name))
		return string(b)
	})
}

// tool runs a program of e2fsprogs, which may end with so much.
func tool(t *testing.T, what string, may int, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/sbin:"+os.Getenv("PATH"))
	if path, err := exec.LookPath("/usr/sbin/" + name); err == nil {
		cmd.Path, cmd.Err = path, nil
	}
	out, err := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code < 0 || code > may {
		t.Fatalf("%s: %s %q: %v\n%s", what, name, args, err, out)
	}
	return string(out)
}

// checkFiles wants the files of syncedWrites, with what they had.
func checkFiles(t *testing.T, synced int, what string, read func(name string) string) {
	t.Helper()
	for i := 1; i <= synced; i++ {
		var want strings.Builder
		for n := 1; n <= i*10; n++ {
			fmt.Fprintln(&want, n)
		}
		if got := read(fmt.Sprintf("f%d", i)); got != want.String() {
			t.Errorf("%s: file %d has %d bytes, want the %d that were synced", what, i, len(got), want.Len())
		}
	}
}

// bootFrom runs the product from a disk as it is, wants it to be sound when the
// product has ended, and returns what the boot did to it.
func (h *home) bootFrom(t *testing.T, image string, synced int, what string) string {
	t.Helper()
	disk := filepath.Join(h.dir, "data.img")
	if err := os.Rename(image, disk); err != nil {
		t.Fatal(err)
	}
	out := h.sampan(t, "run", "--rm", "-v", "files:/files", "busybox", "sh", "-c",
		fmt.Sprintf(`cd /files; i=0; while [ $i -lt %d ]; do i=$((i+1)); echo "f$i:"; cat f$i; done; echo more > more && sync && echo end:`, synced))
	got := map[string]string{}
	name := ""
	for line := range strings.Lines(out) {
		if f, ok := strings.CutSuffix(line, ":\n"); ok {
			name = f
		} else {
			got[name] += line
		}
	}
	if name != "end" {
		t.Errorf("%s: the volume can't be written to", what)
	}
	checkFiles(t, synced, what+", booted", func(name string) string { return got[name] })
	var s struct{ DiskDone string }
	if err := json.Unmarshal([]byte(h.sampan(t, "machine", "status", "--json")), &s); err != nil {
		t.Fatal(err)
	}
	h.stopDaemon(t)
	tool(t, what+", booted", 0, "e2fsck", "-fn", disk)
	return s.DiskDone
}

// copySparse copies a file without its holes.
func copySparse(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "--sparse=always", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
}
