package layer

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// memory is an image that is never written to disk.
type memory struct{ b []byte }

func (m *memory) WriteAt(p []byte, at int64) (int, error) {
	m.grow(at + int64(len(p)))
	return copy(m.b[at:], p), nil
}

func (m *memory) Truncate(n int64) error {
	m.grow(n)
	m.b = m.b[:n]
	return nil
}

func (m *memory) grow(n int64) {
	if int64(len(m.b)) < n {
		m.b = append(m.b, make([]byte, n-int64(len(m.b)))...)
	}
}

// FuzzConvert: whatever is accepted can be read back by go-erofs, and once in
// a while erofs-utils are asked.
func FuzzConvert(f *testing.F) {
	f.Add(pack(f, []entry{dir("d/"), file("d/f", "1"), link(tar.TypeLink, "l", "d/f"), link(tar.TypeSymlink, "s", "d"), file("s/x", "2"), file("d/.wh.g", "")}))
	f.Add(pack(f, []entry{file("d/.wh..wh..opq", ""), file("a", string(make([]byte, 5000))),
		{tar.Header{Name: "x", Typeflag: tar.TypeChar, Devmajor: 1, PAXRecords: map[string]string{"SCHILY.xattr.user.x": "y", "SCHILY.xattr.security.capability": "z"}}, ""}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m memory
		var recipe bytes.Buffer
		_, err := Convert(bytes.NewReader(b), &m, Options{MaxSize: 1 << 20, MaxEntries: 500, Recipe: &recipe})
		if err != nil {
			return
		}
		if again := rebuilt(t, m.b, recipe.Bytes()); !bytes.Equal(again, b) {
			t.Fatalf("rebuilt as %d other bytes, of %d", len(again), len(b))
		}
		if len(m.b)%4096 != 0 {
			t.Fatalf("image of %d bytes", len(m.b))
		}
		walk(t, &m)
		if len(b)%16 == 0 {
			path := filepath.Join(t.TempDir(), "layer.erofs")
			if err := os.WriteFile(path, m.b, 0o600); err != nil {
				t.Fatal(err)
			}
			fsck(t, path)
		}
	})
}

func walk(t *testing.T, m *memory) {
	t.Helper()
	readBack(t, io.NewSectionReader(bytes.NewReader(m.b), 0, int64(len(m.b))))
}

func rebuilt(t testing.TB, image, recipe []byte) []byte {
	t.Helper()
	r, err := Tar(bytes.NewReader(image), bytes.NewReader(recipe), int64(len(recipe)))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// FuzzTar: a recipe and an image that were damaged give an error or other
// bytes, and no more than that.
func FuzzTar(f *testing.F) {
	var m memory
	var recipe bytes.Buffer
	stream := pack(f, []entry{dir("d/"), file("d/f", "1"), file("d/g", noise(1, 9000)), link(tar.TypeLink, "l", "d/f")})
	if _, err := Convert(bytes.NewReader(stream), &m, Options{Recipe: &recipe}); err != nil {
		f.Fatal(err)
	}
	f.Add(m.b, recipe.Bytes())
	f.Fuzz(func(t *testing.T, image, recipe []byte) {
		r, err := Tar(bytes.NewReader(image), bytes.NewReader(recipe), int64(len(recipe)))
		if err != nil {
			return
		}
		defer r.Close()
		if _, err := io.Copy(io.Discard, io.LimitReader(r, 16<<20)); err != nil {
			return
		}
	})
}
