package share

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sampan/kernel"
	"sampan/vm"
)

// guestScript is PID 1 of the guest; it prints "ok NAME" for each step.
const guestScript = `#!/bin/sh
export PATH=/bin:/sbin
mount -t proc proc /proc; mount -t devtmpfs dev /dev; mount -t sysfs sys /sys; echo 1 > /sys/devices/system/cpu/cpu1/online
mkdir -p /run/h /run/i
mount -t virtiofs host /run/h && mount -t virtiofs images /run/i || echo "bad mount"
d=/run/h/RW
now() { read up idle </proc/uptime; echo $up; }
step() { what=$1; shift; from=$(now); if "$@"; then echo "ok $what $from $(now)"; else echo "bad $what"; fi; }
user() { cd $d && echo a >u && chmod 600 u && chown 1000:1000 u && [ "$(stat -c %u:%g:%a u)" = 1000:1000:600 ]; }
names() { mkdir $d/n && cd $d/n && echo x >a && ln a b && mv a c && ln -s c l && [ "$(cat l)" = x ] && rm b c l && cd .. && rmdir n; }
readonly() { ! echo x >/run/h/RO/new && ! echo x >/run/i/new && cat /run/i/layer >/dev/null; }
create() { mkdir $d/many && cd $d/many && i=0 && while [ $i -lt 2000 ]; do echo $i >f$i; i=$((i+1)); done; }
append() { echo 0123456789ab >>$d/edge && echo 0123456789abc >>$d/new && dd if=/dev/zero bs=5000 count=1 2>/dev/null >>$d/new; }
list() { [ "$(ls -l $d/many | wc -l)" = 2001 ]; }
queues() { for cpu in 0 1; do taskset $((1<<cpu)) stat $d/many/f$cpu >/dev/null || return 1; done; }
back() { cat $d/many/* >/dev/null; }
write() { dd if=/dev/zero of=$d/w bs=1M count=100 conv=fsync 2>/dev/null; }
readhost() { [ "$(cat $d/big | sha256sum | cut -c1-64)" = SUM ]; }
readcold() { dd if=$d/cold of=/dev/null bs=1M 2>/dev/null; }
readagain() { dd if=$d/cold of=/dev/null bs=1M 2>/dev/null; }
step user user; step names names; step readonly readonly
step create create; step list list; step queues queues; step append append; step back back; step write write
step readhost readhost; step readcold readcold; step readagain readagain; step sync sync
for b in /sys/class/bdi/*/read_ahead_kb; do echo 1024 >$b; done; echo 3 >/proc/sys/vm/drop_caches
step bigreads readcold
cd /; umount /run/h /run/i && mount -t virtiofs host /run/h && [ -f $d/w ] && echo "ok remount"
echo done
sync; echo o >/proc/sysrq-trigger; while :; do sleep 1; done
`

// TestInVM mounts both file systems in a real guest.
func TestInVM(t *testing.T) {
	here, err := os.Getwd()
	check(t, err)
	dir, err := kernel.FindFrom(here)
	if err != nil {
		t.Fatalf("no guest bundle, run `make guest`: %v", err)
	}
	host, images := t.TempDir(), t.TempDir()
	check(t, os.WriteFile(images+"/layer", make([]byte, 1<<20), 0o644))
	big := bytes.Repeat([]byte("some data of the host, "), 1<<20)
	check(t, os.WriteFile(host+"/big", big, 0o644))
	check(t, os.WriteFile(host+"/cold", make([]byte, 200<<20), 0o644))
	check(t, os.WriteFile(host+"/edge", make([]byte, 4090), 0o644)) // of a page
	tree := NewTree(Options{})
	rw, err := tree.Export(host, false)
	check(t, err)
	ro, err := tree.Export(host, true)
	check(t, err)
	store, closer, err := ReadOnlyDir(images)
	check(t, err)
	defer closer.Close()
	script := strings.NewReplacer("RW", rw.Name(), "RO", ro.Name(), "SUM", sha(big)).Replace(guestScript)
	initrd := filepath.Join(t.TempDir(), "initrd")
	bundle, err := kernel.Open(dir)
	check(t, err)
	check(t, overlayInit(bundle, initrd, script))
	reads := &sizes{FUSEServer: tree.Server(), ops: map[uint32]int{}, rings: map[int]int{}}
	out := bootShares(t, bundle.Kernel, initrd, map[string]vm.FUSEServer{"host": reads, "images": store})
	t.Logf("largest answer %d bytes, requests by opcode %v, by ring %v\n%s", reads.max, reads.ops, reads.rings, out)
	for _, step := range []string{"user", "names", "readonly", "create", "list", "queues", "append", "back", "write", "readhost", "readcold", "readagain", "sync", "bigreads", "remount"} {
		if !strings.Contains(out, "ok "+step) {
			t.Errorf("no ok for %q", step)
		}
	}
	if reads.max < 128<<10 {
		t.Errorf("largest read is %d bytes", reads.max)
	}
	// Each processor of the guest has a ring of its own; ring 0 is for what must
	// not wait.
	urgent := reads.ops[opForget] + reads.ops[opBatchForget] + reads.ops[opInterrupt]
	if reads.rings[1] == 0 || reads.rings[2] == 0 || reads.rings[0] != urgent || len(reads.rings) != 1+requestQueues {
		t.Errorf("requests by ring: %v, of which %d are urgent", reads.rings, urgent)
	}
	// What is appended at once comes in one request, of an old file and a new one,
	// also over the end of a page.
	for _, size := range []int{13, 14, 5000} {
		if n := count(reads.writes, size); n != 1 {
			t.Errorf("%d bytes that were appended came in %d requests of that size, want one", size, n)
		}
	}
	// With a page of a folder the kernel asks for the attributes as well.
	if reads.ops[opReadDirPlus] == 0 || reads.ops[opReadDir] != 0 {
		t.Errorf("%d READDIRPLUS, %d READDIR", reads.ops[opReadDirPlus], reads.ops[opReadDir])
	}
	if n := len(tree.server.fs().nodes) + len(tree.server.fs().handles); n != 0 {
		t.Logf("%d nodes and handles after power-off", n)
	}
}

func count(list []int, want int) (n int) {
	for _, v := range list {
		if v == want {
			n++
		}
	}
	return n
}
