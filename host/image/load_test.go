package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/zstd"
)

// saved is an archive as an old docker save wrote it: a folder per layer, a
// layer that is there twice as a link, the list at the end.
func saved(t testing.TB, config []byte, tag string, layers ...[]byte) []byte {
	t.Helper()
	var files []string
	var paths []string
	for i, l := range layers {
		p := fmt.Sprintf("%064x/layer.tar", i)
		files, paths = append(files, p, string(l)), append(paths, p)
	}
	list, err := json.Marshal([]map[string]any{{"Config": hexOf(digestOf(config)) + ".json", "RepoTags": []string{tag}, "Layers": paths}})
	if err != nil {
		t.Fatal(err)
	}
	return tarOf(t, append(files, hexOf(digestOf(config))+".json", string(config), "repositories", "{}", "manifest.json", string(list))...)
}

func configOf(t testing.TB, layers ...[]byte) []byte {
	t.Helper()
	var diffIDs []string
	for _, l := range layers {
		diffIDs = append(diffIDs, digestOf(l))
	}
	b, err := json.Marshal(map[string]any{"os": "linux", "architecture": "amd64", "rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// ociArchive packs an OCI layout.
func ociArchive(t testing.TB, img v1.Image, annotations map[string]string) []byte {
	t.Helper()
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img, layout.WithAnnotations(annotations)); err != nil {
		t.Fatal(err)
	}
	var files []string
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		files = append(files, rel, string(b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tarOf(t, files...)
}

func TestLoad(t *testing.T) {
	a, b := tarOf(t, "a", random(1, 1<<20)), tarOf(t, "b", "b", "c", "c")
	old := saved(t, configOf(t, a, b), "thing:1", a, b)
	img := imageOf(t, gzipLayer(t, a), newZstdLayer(t, b))
	var crane bytes.Buffer
	ref, _ := name.NewTag("crane/made:2")
	if err := tarball.Write(ref, img, &crane); err != nil {
		t.Fatal(err)
	}
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	w.Write(old)
	w.Close()
	enc, _ := zstd.NewWriter(nil)
	imgID, _ := img.ConfigName()
	for _, tt := range []struct {
		name    string
		archive []byte
		want    string
	}{
		{"docker save", old, "thing:1"},
		{"docker save in gzip", gz.Bytes(), "thing:1"},
		{"docker save in zstd", enc.EncodeAll(old, nil), "thing:1"},
		{"crane", crane.Bytes(), "crane/made:2"},
		{"oci, containerd's name", ociArchive(t, img, map[string]string{"io.containerd.image.name": "docker.io/library/oci:3", "org.opencontainers.image.ref.name": "3"}), "oci:3"},
		{"oci, full reference", ociArchive(t, img, map[string]string{"org.opencontainers.image.ref.name": "host.example/oci:4"}), "host.example/oci:4"},
		{"oci, no name", ociArchive(t, img, nil), imgID.String()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := openStore(t)
			var r recorder
			loaded, err := s.Load(context.Background(), bytes.NewReader(tt.archive), r.tell)
			if err != nil || !reflect.DeepEqual(loaded, []string{tt.want}) {
				t.Fatalf("got %v, %v", loaded, err)
			}
			got, err := s.Get(tt.want)
			if err != nil || !reflect.DeepEqual(got.DiffIDs, []string{digestOf(a), digestOf(b)}) || got.Size != 1<<20+2 {
				t.Fatalf("got %+v, %v", got, err)
			}
			if !r.has(short(digestOf(a)) + ": Loading layer") {
				t.Errorf("progress:\n%s", strings.Join(r.lines, "\n"))
			}
			if strings.Contains(files(t, s), "tmp/") || len(s.holds) != 0 {
				t.Errorf("left behind:\n%s", files(t, s))
			}
		})
	}
}

// TestLoadLinks loads an archive in which a layer is a link to another's.
func TestLoadLinks(t *testing.T) {
	a := tarOf(t, "a", "a")
	config := configOf(t, a, a)
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	put := func(name, link, body string) {
		h := &tar.Header{Name: name, Linkname: link, Size: int64(len(body)), Typeflag: tar.TypeReg, Mode: 0o644}
		if link != "" {
			h.Typeflag = tar.TypeSymlink
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, body)
	}
	put("manifest.json", "", fmt.Sprintf(`[{"Config":"%s.json","RepoTags":null,"Layers":["1/layer.tar","2/layer.tar"]}]`, hexOf(digestOf(config))))
	put(hexOf(digestOf(config))+".json", "", string(config))
	put("1/layer.tar", "../2/layer.tar", "")
	put("2/layer.tar", "", string(a))
	w.Close()
	s := openStore(t)
	loaded, err := s.Load(context.Background(), &buf, nil)
	if err != nil || len(loaded) != 1 || loaded[0] != digestOf(config) {
		t.Fatalf("got %v, %v", loaded, err)
	}
}

// TestLoadRefused shows that an archive with a fault leaves nothing behind.
func TestLoadRefused(t *testing.T) {
	a, b := tarOf(t, "a", random(1, 1<<20)), tarOf(t, "b", "b")
	config := configOf(t, a, b)
	good := saved(t, config, "x:1", a, b)
	wrongConfig := tarOf(t, "manifest.json", `[{"Config":"`+strings.Repeat("0", 64)+`.json","Layers":[]}]`, strings.Repeat("0", 64)+".json", string(config))
	oci := ociArchive(t, imageOf(t, gzipLayer(t, a)), nil)
	damaged := bytes.Replace(oci, []byte(`"Cmd"`), []byte(`"cmD"`), 1)
	if bytes.Equal(oci, damaged) {
		t.Fatal("nothing to damage")
	}
	for _, tt := range []struct {
		name    string
		archive []byte
		limits  Limits
		err     string
	}{
		{name: "truncated", archive: good[:len(good)/2], err: "unexpected EOF"},
		{name: "not an archive", archive: []byte(strings.Repeat("hello ", 500)), err: "invalid tar header"},
		{name: "empty", archive: nil, err: "neither a manifest.json"},
		{name: "layers exchanged", archive: saved(t, config, "x:1", b, a), err: "uncompressed digest"},
		{name: "layer missing", archive: saved(t, config, "x:1", a), err: "don't match"},
		{name: "configuration's digest", archive: wrongConfig, err: "has the digest"},
		{name: "blob's digest", archive: damaged, err: "has the digest"},
		{name: "reaches out", archive: tarOf(t, "manifest.json", `[{"Config":"../../../../../../etc/passwd","Layers":[]}]`), err: `archive has no "etc/passwd"`},
		{name: "bad tag", archive: saved(t, config, "UPPER:1", a, b), err: "invalid reference format"},
		{name: "archive too big", archive: good, limits: Limits{ArchiveSize: 1 << 19}, err: "more than the limit of 524288"},
		{name: "layer too big", archive: good, limits: Limits{ArchiveSize: 1 << 30, LayerSize: 1 << 19}, err: "more than the limit of 524288"},
		{name: "too many layers", archive: saved(t, configOf(t, make([][]byte, maxLayers+1)...), "x:1", make([][]byte, maxLayers+1)...), err: "at most 500"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := openStore(t)
			if tt.limits.ArchiveSize != 0 {
				s.SetLimits(tt.limits)
			}
			loaded, err := s.Load(context.Background(), bytes.NewReader(tt.archive), nil)
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got %v, %v", loaded, err)
			}
			if left := files(t, s); left != "" || len(s.holds) != 0 {
				t.Errorf("left behind\n%s %v", left, s.holds)
			}
		})
	}
}

func FuzzLoad(f *testing.F) {
	a := tarOf(f, "a", "a", "d/.wh.b", "")
	f.Add(saved(f, configOf(f, a), "x:1", a))
	f.Add(ociArchive(f, imageOf(f, gzipLayer(f, a)), map[string]string{"io.containerd.image.name": "x:1"}))
	s, err := Open(filepath.Join(f.TempDir(), "images"), slog.New(slog.DiscardHandler))
	if err != nil {
		f.Fatal(err)
	}
	s.SetLimits(Limits{LayerSize: 1 << 20, LayerEntries: 1000, ArchiveSize: 1 << 20})
	f.Fuzz(func(t *testing.T, b []byte) {
		before := files(t, s)
		loaded, err := s.Load(context.Background(), bytes.NewReader(b), nil)
		if err != nil {
			if after := files(t, s); after != before || len(s.holds) != 0 {
				t.Fatalf("%v, and it left\n%s", err, after)
			}
			return
		}
		for _, ref := range loaded {
			if _, err := s.Remove(ref, RemoveOptions{Force: true}); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// FuzzArchive: what an archive's lists lead to is in the archive, whatever its
// names and links say, and has the digests it is called by.
func FuzzArchive(f *testing.F) {
	a := tarOf(f, "a", "a")
	f.Add(saved(f, configOf(f, a), "x:1", a))
	f.Add(ociArchive(f, imageOf(f, gzipLayer(f, a)), map[string]string{"io.containerd.image.name": "x:1"}))
	f.Add(tarOf(f, "manifest.json", `[{"Config":"../../etc/passwd","Layers":["/etc/passwd","a/../../b"]}]`))
	s, err := Open(filepath.Join(f.TempDir(), "images"), slog.New(slog.DiscardHandler))
	if err != nil {
		f.Fatal(err)
	}
	s.SetLimits(Limits{ArchiveSize: 1 << 20})
	f.Fuzz(func(t *testing.T, b []byte) {
		sp, err := s.newSpool(context.Background(), bytes.NewReader(b))
		if err != nil {
			return
		}
		defer sp.close()
		docker, _ := sp.docker()
		oci, _ := sp.oci()
		for _, img := range append(docker, oci...) {
			if len(img.layers) != len(img.diffIDs) {
				t.Fatalf("%d layers, %d diff IDs", len(img.layers), len(img.diffIDs))
			}
			for _, l := range img.layers {
				if filepath.Dir(l.path) != sp.dir {
					t.Fatalf("layer at %s", l.path)
				}
			}
		}
	})
}
