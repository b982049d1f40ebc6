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
