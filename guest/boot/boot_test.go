package boot

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// An ordinary user's PATH on Debian is without the folders of e2fsprogs.
func TestMain(m *testing.M) {
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	os.Exit(m.Run())
}

func TestParseModules(t *testing.T) {
	dir := filepath.Dir(moduleList)
	for _, tc := range []struct {
		name, list   string
		first, later []module
	}{
		{"empty", "", nil, nil},
		{"one group", "a.ko\nb.ko\n", []module{{dir + "/a.ko", ""}, {dir + "/b.ko", ""}}, nil},
		{"two groups", "# boot\n/x/a.ko\n\n\nb.ko max=3 y=z\n", []module{{"/x/a.ko", ""}}, []module{{dir + "/b.ko", "max=3 y=z"}}},
		{"leading blank", "\na.ko\n\nb.ko", []module{{dir + "/a.ko", ""}}, []module{{dir + "/b.ko", ""}}},
	} {
		first, later := parseModules(tc.list)
		if !reflect.DeepEqual(first, tc.first) || !reflect.DeepEqual(later, tc.later) {
			t.Errorf("%s: got %v and %v, want %v and %v", tc.name, first, later, tc.first, tc.later)
		}
	}
}

func TestMountsBelow(t *testing.T) {
	const info = `21 1 0:1 / / ro - rootfs none rw
30 21 0:20 / /run rw - tmpfs run rw
31 30 0:30 / /run/sampan/images ro - virtiofs images ro
32 30 0:40 / /run/sampan/mounts/a\040b rw - overlay overlay rw
33 30 0:41 / /run/sampanother rw - tmpfs x rw
`
	want := []string{"/run/sampan/images", "/run/sampan/mounts/a b"}
	if got := mountsBelow(info, "/run/sampan"); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestSuperblockState(t *testing.T) {
	ext4 := func(state uint16, incompat uint32) superblock {
		b := make(superblock, superblockEnd)
		binary.LittleEndian.PutUint16(b[superblockAt+sbMagic:], ext4Magic)
		binary.LittleEndian.PutUint16(b[superblockAt+sbState:], state)
		binary.LittleEndian.PutUint32(b[superblockAt+sbIncompat:], incompat)
		return b
	}
	foreign := make(superblock, superblockEnd)
	foreign[510] = 0x55
	for _, tc := range []struct {
		name string
		sb   superblock
		want diskState
	}{
		{"zeros", make(superblock, superblockEnd), stateEmpty},
		{"boot sector", foreign, stateForeign},
		{"clean", ext4(1, 0x2c2), stateClean},
		{"journal to replay", ext4(1, 0x2c6), stateDirty},
		{"mounted without journal", ext4(0, 0x2c2), stateDirty},
		{"errors", ext4(3, 0x2c2), stateDirty},
	} {
		if got := tc.sb.state(); got != tc.want {
			t.Errorf("%s: state %d, want %d", tc.name, got, tc.want)
		}
	}
}

// TestPrepareDisk runs the real tools on a file.
func TestPrepareDisk(t *testing.T) {
	dev := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(dev, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(dev, 64<<20); err != nil {
		t.Fatal(err)
	}
	step := func(name, want string) {
		t.Helper()
		if got, err := prepareDisk(dev); err != nil || got != want {
			t.Fatalf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
	step("new", diskFormatted)
	step("again", diskClean)

	sb, err := readSuperblock(dev)
	if err != nil {
		t.Fatal(err)
	}
	if !sb.neverMounted() {
		t.Error("mke2fs leaves traces of a mount")
	}
	if n := sb.blocks() * sb.blockSize(); n != 64<<20 {
		t.Errorf("a file system of %d bytes", n)
	}
	debugfs(t, dev, "state 2")
	step("with errors", diskRepaired)
	step("repaired", diskClean)

	// Formatting was cut short: the superblock is there, the rest is not.
	debugfs(t, dev, "state 2")
	poke(t, dev, 4096, make([]byte, 32<<20))
	step("cut short", diskFormatted)

	// The same damage to a disk in use is not ours to wipe.
	debugfs(t, dev, "state 2")
	debugfs(t, dev, "last_mounted /data")
	poke(t, dev, 4096, make([]byte, 32<<20))
	if got, err := prepareDisk(dev); err == nil {
		t.Errorf("damaged: %q, want an error", got)
	}
}

// debugfs sets a field of the superblock, and its checksum.
func debugfs(t *testing.T, dev, value string) {
	t.Helper()
	if out, err := exec.Command("debugfs", "-w", "-R", "set_super_value "+value, dev).CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v\n%s", err, out)
	}
}

func poke(t *testing.T, path string, at int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

func TestFindDisk(t *testing.T) {
	root := t.TempDir()
	for name, serial := range map[string]string{"vda": "other", "vdb": "sampan-data"} {
		dir := filepath.Join(root, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "serial"), []byte(serial), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := findDisk(root, "sampan-data"); got != "/dev/vdb" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := findDisk(root, "none"); got != "" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestSetReadAhead(t *testing.T) {
	sys := t.TempDir()
	if err := setReadAhead(sys, sys, 1024); err == nil {
		t.Error("no error without a backing device")
	}
	var st unix.Stat_t
	if err := unix.Stat(sys, &st); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(sys, fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "read_ahead_kb")
	if err := os.WriteFile(file, []byte("128"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := setReadAhead(sys, sys, 1024); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "1024" {
		t.Errorf("read ahead %q, %v; want 1024", b, err)
	}
}

func TestToolMissing(t *testing.T) {
	if _, code, err := tool("no-such-tool"); code != -1 || err == nil {
		t.Errorf("code %d, %v", code, err)
	}
	if _, err := exec.LookPath("mke2fs"); err != nil {
		t.Errorf("these tests need e2fsprogs: %v", err)
	}
}

func TestLog(t *testing.T) {
	var b bytes.Buffer
	log := slog.New(&handler{w: &b, mu: new(sync.Mutex)}).With("a", 1)
	log.Info("ready", "b", "two")
	log.Debug("quiet")
	if got, want := b.String(), "sampan-agent: ready a=1 b=two\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
