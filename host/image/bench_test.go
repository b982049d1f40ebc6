package image

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/gzip"
)

// benchLayer is a gzip layer of at most 200 MB like those of distributions:
// this machine's own programs and libraries.
func benchLayer(b *testing.B) (compressed, diffID string) {
	b.Helper()
	compressed = filepath.Join(b.TempDir(), "layer.tar.gz")
	tarCmd := exec.Command("sh", "-c", "tar -C / -cf - usr/lib usr/bin 2>/dev/null | head -c 209715200")
	out, err := tarCmd.Output()
	if err != nil {
		b.Fatal(err)
	}
	out = append(wholeEntries(out), make([]byte, 1024)...)
	f, err := os.Create(compressed)
	if err != nil {
		b.Fatal(err)
	}
	w := gzip.NewWriter(f)
	if _, err := w.Write(out); err != nil {
		b.Fatal(err)
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	return compressed, digestOf(out)
}

// BenchmarkConvert compares the making of a layer with "sha256sum and gunzip".
// Goal: at most 1.3 times as long.
func BenchmarkConvert(b *testing.B) {
	path, diffID := benchLayer(b)
	b.Run("sha256sum+gunzip", func(b *testing.B) {
		for b.Loop() {
			cmd := exec.Command("sh", "-c", fmt.Sprintf("sha256sum %s && gunzip -c %[1]s >/dev/null", path))
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
		}
	})
	b.Run("layer", func(b *testing.B) {
		s := openStore(b)
		for b.Loop() {
			release := s.Hold([]string{layerName(diffID)})
			src := func(context.Context) (io.ReadCloser, error) { return os.Open(path) }
			if err := s.ensureLayer(context.Background(), diffID, src, nil, func() { b.Fatal("present") }); err != nil {
				b.Fatal(err)
			}
			release()
		}
	})
}

// wholeEntries cuts a tar after its last complete entry.
func wholeEntries(b []byte) []byte {
	r := bytes.NewReader(b)
	end := int64(0)
	for {
		n, err := nextEntry(b[end:])
		if err != nil || end+n > r.Size() {
			return b[:end:end]
		}
		end += n
	}
}

// nextEntry is the length of the entry that b starts with, header and padding
// included. GNU tar's long names are entries of their own.
func nextEntry(b []byte) (int64, error) {
	if len(b) < 512 || b[0] == 0 {
		return 0, io.EOF
	}
	var size int64
	if _, err := fmt.Sscanf(string(b[124:135]), "%o", &size); err != nil {
		return 0, err
	}
	return 512 + (size+511)/512*512, nil
}
