package image

import (
	stdgzip "compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of layers that Docker has its own names for.
const (
	dockerManifest  = "application/vnd.docker.distribution.manifest.v2+json"
	dockerConfig    = "application/vnd.docker.container.image.v1+json"
	dockerLayerGzip = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

// errOther says that no compressor gives the bytes that are wanted.
var errOther = errors.New("the compressed layer can't be made again")

// compressor makes a compressed form of a layer: always the same bytes.
type compressor struct {
	name string // in the index: it stays what it is
	make func(w io.Writer) (io.WriteCloser, error)
}

// dockerGzip is what Docker compresses with, and so do we.
func dockerGzip() compressor { return gzips()[0] }

// zstds and gzips are the compressors that may have made a blob, likely ones
// first: Docker, BuildKit and others written in Go use these, at various levels.
func zstds() (list []compressor) {
	for _, level := range []zstd.EncoderLevel{zstd.SpeedDefault, zstd.SpeedFastest, zstd.SpeedBetterCompression, zstd.SpeedBestCompression} {
		list = append(list, compressor{"zstd " + level.String(), func(w io.Writer) (io.WriteCloser, error) {
			return zstd.NewWriter(w, zstd.WithEncoderLevel(level))
		}})
	}
	return list
}

func gzips() (list []compressor) {
	for _, level := range []int{stdgzip.DefaultCompression, stdgzip.BestSpeed, stdgzip.BestCompression} {
		list = append(list,
			compressor{fmt.Sprint("gzip ", level), func(w io.Writer) (io.WriteCloser, error) { return stdgzip.NewWriterLevel(w, level) }},
			compressor{fmt.Sprint("kgzip ", level), func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriterLevel(w, level) }})
	}
	// Buildah, Podman and Skopeo compress pieces of 1 MiB, umoci of 256 KiB.
	for _, piece := range []int{1 << 20, 256 << 10} {
		list = append(list, compressor{fmt.Sprint("pgzip ", piece), func(w io.Writer) (io.WriteCloser, error) {
			z := pgzip.NewWriter(w)
			return z, z.SetConcurrency(piece, runtime.GOMAXPROCS(0))
		}})
	}
	return list
}

func compressors(mediaType string) []compressor {
	if strings.HasSuffix(mediaType, "zstd") {
		return zstds()
	}
	return gzips()
}

// compressorsOf are those that may have made what begins so.
func compressorsOf(head []byte) []compressor {
	switch {
	case isGzip(head):
		return gzips()
	case isZstd(head):
		return zstds()
	}
	return nil
}

// uncompressed reports whether a media type is that of a plain tar.
func uncompressed(mediaType string) bool {
	return strings.HasSuffix(mediaType, ".tar") || strings.HasSuffix(mediaType, "rootfs.diff")
}

// blobFile is a compressed layer in a temporary file, for as long as it takes.
type blobFile struct {
	path string
	blob blobRecord
}

func (b *blobFile) remove() { os.Remove(b.path) }

// compress makes a compressed form of a layer.
func (s *Store) compress(ctx context.Context, diffID string, c compressor, mediaType string) (*blobFile, error) {
	r, err := s.layerTar(diffID)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	f, err := os.CreateTemp(s.tmp(), "blob-")
	if err != nil {
		return nil, err
	}
	b := &blobFile{path: f.Name(), blob: blobRecord{MediaType: mediaType}}
	sum, head := sha256.New(), &headWriter{}
	n := &countWriter{}
	z, err := c.make(io.MultiWriter(f, sum, head, n))
	if err == nil {
		_, err = io.Copy(z, withContext{ctx, r})
		err = errors.Join(err, z.Close())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		b.remove()
		return nil, fmt.Errorf("compress layer %s: %w", short(diffID), err)
	}
	b.blob.Digest, b.blob.Size, b.blob.Head = "sha256:"+hex.EncodeToString(sum.Sum(nil)), n.n, digestOf(head.b)
	return b, nil
}

// reproduce makes a known compressed form again, or fails with errOther.
func (s *Store) reproduce(ctx context.Context, diffID string, want blobRecord) (*blobFile, error) {
	list := compressors(want.MediaType)
	if want.Head == "" {
		list = list[:1] // a guess may cost as much as the whole layer
	}
	for _, c := range slices.Concat(gzips(), zstds()) {
		if c.name == want.By {
			list = append([]compressor{c}, slices.DeleteFunc(list, func(c compressor) bool { return c.name == want.By })...)
		}
	}
	for _, c := range list {
		if want.Head != "" {
			ok, err := s.startsLike(ctx, diffID, c, want.Head)
			if err != nil {
				return nil, err
			}
			if !ok {
				continue
			}
		}
		b, err := s.compress(ctx, diffID, c, want.MediaType)
		if err != nil {
			return nil, err
		}
		if b.blob.Digest == want.Digest {
			return b, nil
		}
		b.remove()
	}
	return nil, errOther
}

// startsLike reports whether a compressor's first bytes are those of a blob.
func (s *Store) startsLike(ctx context.Context, diffID string, c compressor, head string) (bool, error) {
	r, err := s.layerTar(diffID)
	if err != nil {
		return false, err
	}
	defer r.Close()
	w := &headWriter{stop: true}
	z, err := c.make(w)
	if err != nil {
		return false, err
	}
	_, err = io.Copy(z, withContext{ctx, r})
	if closeErr := z.Close(); err == nil {
		err = closeErr
	}
	if err != nil && !errors.Is(err, errEnough) {
		return false, err
	}
	return digestOf(w.b) == head, nil
}

var errEnough = errors.New("enough")

// headWriter keeps the beginning of what is written.
type headWriter struct {
	b    []byte
	stop bool // fail when it is full
}

func (h *headWriter) Write(p []byte) (int, error) {
	h.b = append(h.b, p[:min(len(p), headSize-len(h.b))]...)
	if h.stop && len(h.b) == headSize {
		return 0, errEnough
	}
	return len(p), nil
}

type countWriter struct{ n int64 }

func (c *countWriter) Write(p []byte) (int, error) { c.n += int64(len(p)); return len(p), nil }

// gzipType is the media type of a gzip layer in a manifest of the given type.
func gzipType(manifest string) string {
	if manifest == ocispec.MediaTypeImageManifest {
		return ocispec.MediaTypeImageLayerGzip
	}
	return dockerLayerGzip
}
