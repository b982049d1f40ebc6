package bundle

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestParseList(t *testing.T) {
	const text = `
# a comment
deb http://one.example/debian bookworm main contrib # why
deb-src http://one.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] https://two.example/ stable main
	deb	mirror+file:/etc/apt/mirrors/debian.list trixie main
deb [arch=amd64 http://broken
deb http://short
debug http://x bookworm main
`
	want := []source{
		{"http://one.example/debian", "bookworm", []string{"main", "contrib"}, ""},
		{"https://two.example/", "stable", []string{"main"}, "/k.gpg"},
		{"mirror+file:/etc/apt/mirrors/debian.list", "trixie", []string{"main"}, ""},
	}
	if got := parseList(text); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

func TestParseDeb822(t *testing.T) {
	const text = `# made by hand
Types: deb deb-src
# in between
URIs: http://one.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://off.example/
Suites: bookworm
Components: main

types: deb
uris: http://key.example/
suites: stable
components: main
signed-by:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
`
	const kr = "/usr/share/keyrings/debian-archive-keyring.gpg"
	want := []source{
		{"http://one.example/debian", "bookworm", []string{"main"}, kr},
		{"http://one.example/debian", "bookworm-updates", []string{"main"}, kr},
		{"http://key.example/", "stable", []string{"main"}, "\n-----BEGIN PGP PUBLIC KEY BLOCK-----\n.\nabc"},
	}
	if got := parseDeb822(text); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

func FuzzParseSources(f *testing.F) {
	f.Add("deb [signed-by=x] http://a b c\n")
	f.Add("Types: deb\nURIs: a\n b\nSuites: c\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, s := range append(parseList(text), parseDeb822(text)...) {
			if s.URI == "" || s.Suite == "" {
				t.Errorf("%q gives %q", text, s)
			}
		}
	})
}

func TestMirrors(t *testing.T) {
	main := []string{"main"}
	const kr = "/usr/share/keyrings/debian-archive-keyring.gpg"
	tests := []struct {
		name              string
		sources           []source
		archive, security string
		fails             bool
	}{
		{"usual", []source{{"http://d", "bookworm", main, kr}, {"http://d", "bookworm-updates", main, kr}, {"http://s", "bookworm-security", main, kr}}, "http://d", "http://s", false},
		{"old style", []source{{"http://d", "stable", main, ""}}, "http://d", "", false},
		{"others first", []source{{"http://t", "bookworm", main, "/usr/share/keyrings/tail.gpg"}, {"http://c", "bookworm", []string{"stable"}, ""}, {"http://p", "bookworm-pgdg", main, ""}, {"http://d", "trixie", main, ""}}, "http://d", "", false},
		{"none", []source{{"http://u", "noble", main, ""}}, "", "", true},
	}
	for _, tt := range tests {
		archive, security, err := mirrors(tt.sources)
		if archive != tt.archive || security != tt.security || (err != nil) != tt.fails {
			t.Errorf("%s: %q, %q, %v", tt.name, archive, security, err)
		}
	}
}

// The archive is read back by a program that isn't ours.
func TestCPIO(t *testing.T) {
	tr := tree{}
	tr.file("a/b/c", 0o640, []byte("hello"))
	tr.link("a/l", "b/c")
	tr.dir("tmp", 0o1777)
	tr.char("dev/null", 0o666, 1, 3)
	var one, two bytes.Buffer
	if err := tr.writeCPIO(&one); err != nil {
		t.Fatal(err)
	}
	if err := tr.writeCPIO(&two); err != nil || !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Errorf("the second archive differs (%v)", err)
	}
	if one.Len()%4 != 0 {
		t.Errorf("%d bytes: not padded", one.Len())
	}
	// busybox doesn't tell device numbers: rdev 1,3, a name of 9 bytes.
	if want := "00000001" + "00000003" + "00000009" + "00000000" + "dev/null\x00"; !strings.Contains(one.String(), want) {
		t.Errorf("no %q in the archive", want)
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("busybox is missing: run `make deps`")
	}
	cmd := exec.Command(busybox, "cpio", "-tv")
	cmd.Stdin, cmd.Env = &one, []string{"TZ=UTC"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("cpio: %v\n%s", err, out)
	}
	for _, want := range []string{
		"drwxr-xr-x 0/0 0 1970-01-01 00:00:00 a/b\n",
		"-rw-r----- 0/0 5 1970-01-01 00:00:00 a/b/c\n",
		"a/l -> b/c\n",
		"drwxrwxrwt 0/0 0 1970-01-01 00:00:00 tmp\n",
		"crw-rw-rw- 0/0 0 1970-01-01 00:00:00 dev/null\n",
	} {
		got := strings.Join(strings.Fields(string(out)), " ")
		if !strings.Contains(got, strings.TrimSpace(want)) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
}

// A module file, as small as debug/elf accepts it.
func fakeModule(info string) []byte {
	var b bytes.Buffer
	le := binary.LittleEndian
	names := "\x00.modinfo\x00.shstrtab\x00"
	put := func(v any) { _ = binary.Write(&b, le, v) } // into memory
	b.WriteString("\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9))
	put([]uint16{1, 62})
	put(uint32(1))
	put([]uint64{0, 0, uint64(64 + len(info) + len(names))})
	put(uint32(0))
	put([]uint16{64, 0, 0, 64, 3, 2})
	b.WriteString(info + names)
	section := func(name, kind uint32, off, size int) {
		put([]uint32{name, kind})
		put([]uint64{0, 0, uint64(off), uint64(size)})
		put([]uint32{0, 0})
		put([]uint64{1, 0})
	}
	section(0, 0, 0, 0)
	section(1, 1, 64, len(info))
	section(10, 3, 64+len(info), len(names))
	return b.Bytes()
}

func TestModules(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte) {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("modules.builtin", []byte("kernel/fs/fuse/fuse.ko\n"))
	write("kernel/net/top-one.ko", fakeModule("license=GPL\x00depends=mid,low\x00name=top_one\x00"))
	write("kernel/net/mid.ko", fakeModule("depends=low,fuse\x00"))
	write("kernel/net/low.ko", fakeModule("depends=\x00"))
	write("kernel/net/late.ko", fakeModule("depends=low\x00"))
	write("kernel/net/bad.ko", fakeModule("depends=nowhere\x00"))

	set, err := openModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	boot, err := set.resolve(t.Context(), []string{"fuse", "top_one"})
	if err != nil {
		t.Fatal(err)
	}
	late, err := set.resolve(t.Context(), []string{"mid", "late"})
	if err != nil {
		t.Fatal(err)
	}
	const want = "/m/kernel/net/low.ko\n/m/kernel/net/mid.ko\n/m/kernel/net/top-one.ko\n\n/m/kernel/net/late.ko\n"
	if got := string(loadList("/m", boot, late)); got != want {
		t.Errorf("list:\n%swant:\n%s", got, want)
	}
	if _, err := set.resolve(t.Context(), []string{"bad"}); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("a missing module: error %v", err)
	}
}

func TestExchange(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "guest")
	for _, version := range []string{"1", "2", "3"} {
		tmp, err := os.MkdirTemp(root, ".new-")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tmp, "v"), []byte(version), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := exchange(tmp, dir); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "v")); err != nil || string(got) != version {
			t.Errorf("after version %s: %q, %v", version, got, err)
		}
	}
}

func TestDebName(t *testing.T) {
	got := debName(map[string]string{"Package": "busybox-static", "Version": "1:1.37.0-6+b9", "Architecture": "amd64"})
	if want := "busybox-static_1%3a1.37.0-6+b9_amd64.deb"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
