package image

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// mixed is a tar of text and of what can't be compressed.
func mixed(t testing.TB, seed uint64, n int) []byte {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		b.WriteString(strings.Repeat("text "+random(seed+uint64(i), 40), 50) + random(uint64(i), 3000))
	}
	return tarOf(t, "file", b.String()[:n])
}

// Every compressor is recognised while what it made arrives, whatever the
// layer's size, and then nothing is kept; the blob can be made again.
func TestRecognised(t *testing.T) {
	s := openStore(t)
	for _, size := range []int{100, 3000, 100_000, keepTar - 3000, 3 << 20} {
		b := mixed(t, uint64(size), size)
		for _, c := range slices.Concat(gzips(), zstds()) {
			mt := types.DockerLayer
			if strings.HasPrefix(c.name, "zstd") {
				mt = types.OCILayerZStd
			}
			l := compressedLayer(t, b, mt, c.make)
			k := keepingOf(t, s, b, l)
			if k.file != nil || k.by == "" {
				t.Errorf("%s, %d bytes: not recognised", c.name, size)
				k.drop()
				continue
			}
			if k.by != c.name && size > keepTar {
				t.Errorf("%s, %d bytes: taken for %s", c.name, size, k.by)
			}
		}
		if k := keepingOf(t, s, b, gnuGzip(t, b)); k.file == nil || k.by != "" {
			t.Errorf("GNU gzip, %d bytes: taken for %q", size, k.by)
		} else {
			k.drop()
		}
	}
	if left := files(t, s); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
}

// keepingOf is what becomes of a layer that arrives.
func keepingOf(t *testing.T, s *Store, tar []byte, l v1.Layer) *keeping {
	t.Helper()
	r, err := l.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	blob, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	k, err := s.keeping(&blobRecord{MediaType: string(types.DockerLayer)})
	if err != nil {
		t.Fatal(err)
	}
	k.received(blob)
	for part := range slices.Chunk(tar, 30_000) {
		if _, err := k.Write(part); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.end(); err != nil {
		t.Fatal(err)
	}
	return k
}

// A layer of a compressor that nobody here has is kept as it came: it is pushed
// so, survives a restart, and goes with its image.
func TestKept(t *testing.T) {
	from, to, s := startRegistry(t), startRegistry(t), openStore(t)
	img := imageOf(t, gnuGzip(t, mixed(t, 1, 50_000)), gnuGzip(t, mixed(t, 2, 3<<20)), gzipLayer(t, mixed(t, 3, 3<<20)))
	push(t, from+"/x", img)
	want, _ := img.Digest()
	if _, err := s.Pull(context.Background(), from+"/x", PullOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s)
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	left := files(t, s)
	for i, l := range layers {
		d, _ := l.Digest()
		if kept := strings.Contains(left, "blobs/"+d.Hex); kept != (i < 2) {
			t.Errorf("layer %d kept: %v", i, kept)
		}
	}
	if n := strings.Count(left, "blobs/"); n != 4 || strings.Contains(left, "tmp/") { // with configuration and manifest
		t.Errorf("%d blobs in\n%s", n, left)
	}
	if err := s.Tag(from+"/x", to+"/x"); err != nil {
		t.Fatal(err)
	}
	if got, _ := mustPush(t, s, to+"/x"); got.Digest != want.String() {
		t.Errorf("pushed as %s, want %s", got.Digest, want)
	}
	readAll(t, pullRemote(t, to+"/x"))
	if r, err := s.Check(context.Background(), PullOptions{}); err != nil || len(r.Lost)+len(r.Repaired) > 0 {
		t.Errorf("check: %+v, %v", r, err)
	}
	if _, err := s.Remove(digestOfConfig(t, img), RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if left := files(t, s); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
}

// A kept blob that is damaged is found by the check and not pushed; one that is
// gone is noticed at the start.
func TestKeptDamaged(t *testing.T) {
	from, s := startRegistry(t), openStore(t)
	img := imageOf(t, gnuGzip(t, mixed(t, 1, 50_000)), gnuGzip(t, mixed(t, 2, 60_000)))
	push(t, from+"/x", img)
	want, _ := img.Digest()
	if _, err := s.Pull(context.Background(), from+"/x", PullOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	layers, _ := img.Layers()
	first, _ := layers[0].Digest()
	second, _ := layers[1].Digest()
	path := s.blobPath(first.String())
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(s.blobPath(second.String())); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s)
	r, err := s.Check(context.Background(), PullOptions{})
	if err != nil || len(r.Repaired) > 0 || len(r.Lost) != 1 || !strings.Contains(r.Lost[0], "its compressed form "+short(first.String())) {
		t.Errorf("check: %+v, %v", r, err)
	}
	if left := files(t, s); strings.Contains(left, first.Hex) {
		t.Errorf("still there:\n%s", left)
	}
	to := startRegistry(t)
	if err := s.Tag(from+"/x", to+"/x"); err != nil {
		t.Fatal(err)
	}
	if got, _ := mustPush(t, s, to+"/x"); got.Digest == want.String() {
		t.Error("pushed what is damaged")
	}
	readAll(t, pullRemote(t, to+"/x"))
}

func reopen(t *testing.T, s *Store) *Store {
	t.Helper()
	s, err := Open(s.dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func digestOfConfig(t *testing.T, img v1.Image) string {
	t.Helper()
	id, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	return id.String()
}

// What a compressor gives is compared byte by byte, and no further than needed.
func TestMatching(t *testing.T) {
	want := bytes.Repeat([]byte("0123456789"), 1000)
	m := &matching{want: want}
	for part := range slices.Chunk(append(slices.Clone(want[:6000]), want...), 700) {
		if _, err := m.Write(part); err != nil {
			t.Fatal(err)
		}
	}
	if m.same != 6000+4000 || m.total != 16000 {
		t.Errorf("%d of %d", m.same, m.total)
	}
	if _, err := (&matching{want: want}).Write([]byte("x")); err != errEnough {
		t.Errorf("got %v", err)
	}
}
