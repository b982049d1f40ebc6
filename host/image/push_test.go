package image

import (
	"bytes"
	stdgzip "compress/gzip"
	"context"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"sampan/host/imagetest"
)

// compressedLayer is a layer that some compressor made.
func compressedLayer(t testing.TB, b []byte, mt types.MediaType, compress func(io.Writer) (io.WriteCloser, error)) v1.Layer {
	t.Helper()
	var buf bytes.Buffer
	w, err := compress(&buf)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	h, err := v1.NewHash(digestOf(b))
	if err != nil {
		t.Fatal(err)
	}
	return zstdLayer{static.NewLayer(buf.Bytes(), mt), h}
}

// gnuGzip is made by a compressor that we have not.
func gnuGzip(t testing.TB, b []byte) v1.Layer {
	t.Helper()
	cmd := exec.Command("gzip", "-nc")
	cmd.Stdin = bytes.NewReader(b)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	h, err := v1.NewHash(digestOf(b))
	if err != nil {
		t.Fatal(err)
	}
	return zstdLayer{static.NewLayer(out, types.DockerLayer), h}
}

func pullRemote(t testing.TB, ref string) v1.Image {
	t.Helper()
	img, err := imagetest.Pull(ref)
	if err != nil {
		t.Fatal(err)
	}
	readAll(t, img)
	return img
}

// readAll reads an image's blobs, which its reader verifies. (The library's own
// validation takes every layer for gzip.)
func readAll(t testing.TB, img v1.Image) {
	t.Helper()
	if err := validate.Image(img, validate.Fast); err != nil {
		t.Error(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		want, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		rc, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(rc)
		rc.Close()
		if err != nil || digestOf(b) != want.String() {
			t.Errorf("layer %s: %d other bytes, %v", want, len(b), err)
		}
	}
}

func mustPush(t testing.TB, s *Store, ref string) (Pushed, *recorder) {
	t.Helper()
	var r recorder
	var got Pushed
	if err := s.Push(context.Background(), ref, PushOptions{}, r.tell, func(p Pushed) { got = p }); err != nil {
		t.Fatal(err)
	}
	return got, &r
}

// What was pulled from one registry arrives in another with every byte and
// digest it had, whoever of the usual tools compressed it.
func TestPushExact(t *testing.T) {
	from, to, s := startRegistry(t), startRegistry(t), openStore(t)
	text := func(seed uint64) []byte { // compressible, longer than what a compressor is known by
		return tarOf(t, "file", strings.Repeat("some text and "+random(seed, 30), 3000)+random(seed, 300_000))
	}
	img := imageOf(t,
		compressedLayer(t, text(1), types.DockerLayer, func(w io.Writer) (io.WriteCloser, error) { return stdgzip.NewWriter(w), nil }),
		compressedLayer(t, text(2), types.OCILayer, func(w io.Writer) (io.WriteCloser, error) { return stdgzip.NewWriterLevel(w, 1) }),
		compressedLayer(t, text(3), types.DockerLayer, func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriterLevel(w, 9) }),
		compressedLayer(t, text(4), types.OCILayerZStd, func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }),
		static.NewLayer(text(5), types.OCIUncompressedLayer))
	push(t, from+"/a/b:1", img)
	want, _ := img.Digest()
	if _, err := s.Pull(context.Background(), from+"/a/b:1", PullOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Tag(from+"/a/b:1", to+"/c:2"); err != nil {
		t.Fatal(err)
	}
	got, r := mustPush(t, s, to+"/c:2")
	if got.Digest != want.String() || got.Tag != "2" {
		t.Errorf("pushed as %+v, want %s\n%s", got, want, strings.Join(r.lines, "\n"))
	}
	pullRemote(t, to+"/c:2")
	if left := files(t, s); strings.Contains(left, "tmp/") {
		t.Errorf("left behind:\n%s", left)
	}
	if img, _ := s.Get(to + "/c:2"); !slices.Contains(img.Digests, to+"/c@"+want.String()) {
		t.Errorf("digests %q", img.Digests)
	}
	// Again, and to another repository of the same registry.
	if _, r := mustPush(t, s, to+"/c:2"); !r.has(short(digestOf(text(1)))+": Layer already exists") || strings.Contains(strings.Join(r.lines, "\n"), "Pushing") {
		t.Errorf("second push:\n%s", strings.Join(r.lines, "\n"))
	}
	if err := s.Tag(to+"/c:2", to+"/other/d"); err != nil {
		t.Fatal(err)
	}
	if got, r := mustPush(t, s, to+"/other/d"); got.Digest != want.String() || !r.has(short(digestOf(text(1)))+": Mounted from c") {
		t.Errorf("push to another repository: %+v\n%s", got, strings.Join(r.lines, "\n"))
	}
}

// A layer whose compressor nobody knows, and which isn't to be kept, is sent in
// Docker's form, always the same; the image keeps its ID.
func TestPushReproducible(t *testing.T) {
	from, s := startRegistry(t), openStore(t)
	s.KeepCompressed(false)
	img := imageOf(t, gnuGzip(t, tarOf(t, "file", strings.Repeat("text", 10_000)+random(1, 200_000))), gzipLayer(t, tarOf(t, "b", "b")))
	push(t, from+"/x", img)
	if _, err := s.Pull(context.Background(), from+"/x", PullOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	var digests []string
	for range 2 {
		to := startRegistry(t)
		if err := s.Tag(from+"/x", to+"/x"); err != nil {
			t.Fatal(err)
		}
		got, _ := mustPush(t, s, to+"/x")
		digests = append(digests, got.Digest)
		config, _ := pullRemote(t, to+"/x").ConfigName()
		if want, _ := img.ConfigName(); config != want {
			t.Errorf("pushed with the ID %s, want %s", config, want)
		}
	}
	if original, _ := img.Digest(); digests[0] != digests[1] || digests[0] == original.String() {
		t.Errorf("pushed as %q, pulled as %s", digests, original)
	}
	// To where it is from, nothing is sent.
	original, _ := img.Digest()
	if got, _ := mustPush(t, s, from+"/x"); got.Digest != original.String() {
		t.Errorf("pushed back as %s, pulled as %s", got.Digest, original)
	}
}

// All tags of a repository; no such tag; an image that was built here.
func TestPushTags(t *testing.T) {
	to, s := startRegistry(t), openStore(t)
	img, err := s.Build(context.Background(), Addition{Layer: bytes.NewReader(tarOf(t, "a", "a")), Name: to + "/r:1",
		Config: func(diffIDs []string) ([]byte, error) {
			return configOf(t, tarOf(t, "a", "a")), nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Tag(img.ID, to+"/r:2"); err != nil {
		t.Fatal(err)
	}
	var tags []string
	if err := s.Push(context.Background(), to+"/r", PushOptions{}, nil, func(p Pushed) { tags = append(tags, p.Tag) }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(tags, []string{"1", "2"}) {
		t.Errorf("pushed %q", tags)
	}
	one, _ := pullRemote(t, to+"/r:1").Digest()
	two, _ := pullRemote(t, to+"/r:2").Digest()
	if one != two {
		t.Errorf("%s and %s", one, two)
	}
	for ref, want := range map[string]string{
		to + "/r:3": "tag does not exist: " + to + "/r:3",
		to + "/q:1": "An image does not exist locally with the tag: " + to + "/q",
		to + "/q":   "An image does not exist locally with the tag: " + to + "/q",
	} {
		if err := s.Push(context.Background(), ref, PushOptions{}, nil, nil); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if m, err := mutate.Config(pullRemote(t, to+"/r:1"), v1.Config{}); m == nil || err != nil {
		t.Error(err)
	}
}
