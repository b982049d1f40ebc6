package agent

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A file that the container has let grow is neither read whole nor changed.
func TestEdit(t *testing.T) {
	at := filepath.Join(t.TempDir(), "hosts")
	c := &container{root: &rootfs{files: map[string]string{hostsFile: at}}}
	add := func(text []byte) []byte { return append(text, "more\n"...) }
	largest := strings.Repeat("x", maxEdited)
	for _, text := range []string{"", "few\n", largest, largest + "x"} {
		if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		err := c.edit(hostsFile, add)
		got, rerr := os.ReadFile(at)
		if rerr != nil {
			t.Fatal(rerr)
		}
		want := []byte(text + "more\n")
		if len(text) > maxEdited {
			want = []byte(text)
		}
		if (err != nil) != (len(text) > maxEdited) || !bytes.Equal(got, want) {
			t.Errorf("of %d bytes: %d are left, %v", len(text), len(got), err)
		}
	}
	if err := c.edit(resolvConf, add); err != nil {
		t.Errorf("a file that isn't ours: %v", err)
	}
}

// A link's line gets another address, or goes; the others stay as they are.
func TestRelinked(t *testing.T) {
	const text = "127.0.0.1\tlocalhost\n172.17.0.2\tstore dbhost db\n# store\n172.17.0.3\tother store"
	for addr, want := range map[string]string{
		"172.17.0.9": "172.17.0.9\tstore dbhost db\n",
		"":           "",
	} {
		want = strings.Replace(text, "172.17.0.2\tstore dbhost db\n", want, 1)
		if got := string(relinked([]byte(text), "store", addr)); got != want {
			t.Errorf("%q: got %q, want %q", addr, got, want)
		}
	}
}
