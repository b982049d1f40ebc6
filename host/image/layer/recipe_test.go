package layer

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Every tar comes back byte for byte: with all types of entries, files that
// were replaced, pieces of sparse files, and whatever follows the end.
func TestRecipe(t *testing.T) {
	odd := pack(t, append(everything(true), file("twice", noise(3, 5000)), file("twice", "2"), file("big", noise(4, 3<<20)), file("block", noise(5, 4096))))
	for name, stream := range map[string][]byte{
		"everything": odd,
		"trailing":   append(append([]byte{}, odd...), noise(6, 200_000)...),
		"empty":      {},
		"sparse gnu": sparseTar(t, "gnu"), "sparse posix": sparseTar(t, "posix"),
	} {
		t.Run(name, func(t *testing.T) {
			var m memory
			var recipe bytes.Buffer
			info, err := Convert(bytes.NewReader(stream), &m, Options{Recipe: &recipe})
			if err != nil {
				t.Fatal(err)
			}
			if info.Tar != int64(len(stream)) {
				t.Errorf("a tar of %d bytes is told to have %d", len(stream), info.Tar)
			}
			if got := rebuilt(t, m.b, recipe.Bytes()); !bytes.Equal(got, stream) {
				t.Errorf("rebuilt as %d other bytes, of %d", len(got), len(stream))
			}
		})
	}
}

// A recipe is small beside its layer.
func TestRecipeSize(t *testing.T) {
	var entries []entry
	for i := range 500 {
		entries = append(entries, file(fmt.Sprintf("usr/share/doc/package/file%d", i), noise(uint64(i), 8000)))
	}
	var m memory
	var recipe bytes.Buffer
	if _, err := Convert(bytes.NewReader(pack(t, entries)), &m, Options{Recipe: &recipe}); err != nil {
		t.Fatal(err)
	}
	if recipe.Len() > len(m.b)/50 {
		t.Errorf("a recipe of %d bytes for an image of %d", recipe.Len(), len(m.b))
	}
}

// sparseTar has a file with holes, as GNU tar finds them.
func sparseTar(t *testing.T, format string) []byte {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "holes"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := range 10 {
		if _, err := f.WriteAt([]byte(noise(uint64(i), 5000)), int64(i)<<20); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(20 << 20); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("tar", "-C", dir, "--sparse", "--format="+format, "-cf", "-", "holes").Output()
	if err != nil {
		t.Fatal(err)
	}
	if len(out) > 1<<20 {
		t.Skip("this file system has no holes")
	}
	return out
}
