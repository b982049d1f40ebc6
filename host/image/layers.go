package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"sampan/host/image/layer"
)

// source opens a layer's bytes as they were sent: compressed or not. What it
// returns fails at its end if the digest is not the promised one. Close may be
// called while a Read is under way, and ends it.
type source func(ctx context.Context) (io.ReadCloser, error)

// ensureLayer makes the layer with that diff ID from src, if it is not there.
// The caller holds it (see Hold), so it stays. have is called instead when
// there is nothing to do. Of several callers for one layer, one works and the
// others wait; if that one fails, the next tries with its own source. blob is
// the compressed form that src gives, nil if there is none.
func (s *Store) ensureLayer(ctx context.Context, diffID string, src source, blob *blobRecord, have func()) error {
	unlock, err := s.locks.lock(ctx, diffID)
	if err != nil {
		return err
	}
	defer unlock()
	if rec, ok := s.snapshot().Layers[diffID]; ok && rec.Tar > 0 {
		have()
		return nil
	}
	leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	m, err := s.make(ctx, src, blob)
	if err != nil {
		return err
	}
	defer m.close()
	if m.diffID != diffID {
		return fmt.Errorf("layer has the uncompressed digest %s, not %s as the image says", m.diffID, diffID)
	}
	return s.keep(m)
}

// addLayer makes a layer of which nothing is known before. It is held until
// release is called.
func (s *Store) addLayer(ctx context.Context, src source) (diffID string, release func(), err error) {
	leave, err := s.enter(ctx)
	if err != nil {
		return "", nil, err
	}
	defer leave()
	m, err := s.make(ctx, src, nil)
	if err != nil {
		return "", nil, err
	}
	defer m.close()
	unlock, err := s.locks.lock(ctx, m.diffID)
	if err != nil {
		return "", nil, err
	}
	defer unlock()
	release = s.Hold([]string{layerName(m.diffID)})
	if rec, ok := s.snapshot().Layers[m.diffID]; ok && rec.Tar > 0 {
		return m.diffID, release, nil
	}
	if err := s.keep(m); err != nil {
		release()
		return "", nil, err
	}
	return m.diffID, release, nil
}

// enter waits for its turn to make a layer.
func (s *Store) enter(ctx context.Context) (leave func(), err error) {
	select {
	case s.busy <- struct{}{}:
		return func() { <-s.busy }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// made is a layer that isn't in the store yet.
type made struct {
	image, recipe *os.File
	diffID        string
	blob          *blobRecord // optional
	kept          *keeping    // of blob; optional
	info          layer.Info
}

// close deletes what has not been kept.
func (m *made) close() {
	for _, f := range []*os.File{m.image, m.recipe} {
		if f != nil {
			f.Close()
			os.Remove(f.Name()) // after keep: nothing
		}
	}
	m.kept.drop()
}

// make converts a stream, which is that compressed form if one is given, into
// temporary files.
func (s *Store) make(ctx context.Context, src source, blob *blobRecord) (*made, error) {
	m := &made{}
	err := func() (err error) {
		if blob != nil {
			m.blob = new(*blob)
		}
		if m.kept, err = s.keeping(blob); err != nil {
			return err
		}
		if m.image, err = os.CreateTemp(s.tmp(), "layer-"); err != nil {
			return err
		}
		if m.recipe, err = os.CreateTemp(s.tmp(), "recipe-"); err != nil {
			return err
		}
		if err := s.convert(ctx, m, src); err != nil {
			return err
		}
		if err := m.image.Chmod(0o444); err != nil {
			return err
		}
		if err := m.recipe.Sync(); err != nil {
			return err
		}
		return m.image.Sync()
	}()
	if err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

// keep moves a layer into the store. The recipe goes first: it is of no use
// without the index, and an old image none without its own.
//
// What is known of the layer's compressed forms stays known.
func (s *Store) keep(m *made) error {
	return s.update(func(ix *index) error {
		if err := os.Rename(m.recipe.Name(), s.recipePath(m.diffID)); err != nil {
			return err
		}
		if err := syncDir(s.path("recipes")); err != nil {
			return err
		}
		if err := os.Rename(m.image.Name(), s.layerPath(m.diffID)); err != nil {
			return err
		}
		ix.Layers[m.diffID] = layerRecord{Size: m.info.Size, Tar: m.info.Tar, Blobs: ix.Layers[m.diffID].Blobs}
		if m.blob != nil {
			ix.know(m.diffID, *m.blob)
		}
		if m.blob != nil && m.blob.Kept {
			if err := os.Rename(m.kept.file.Name(), s.blobPath(m.blob.Digest)); err != nil {
				return err
			}
			if err := syncDir(s.path("blobs")); err != nil {
				return err
			}
		}
		return syncDir(s.LayersDir())
	})
}

// convert writes a layer's image and recipe. Three goroutines share the work:
// receiving (and hashing what is received), decompressing, and hashing and
// converting what that gives.
func (s *Store) convert(ctx context.Context, m *made, src source) error {
	ctx, cancel := context.WithCancel(ctx)
	rc, err := src(ctx)
	if err != nil {
		cancel()
		return err
	}
	// A Read under way returns when ctx is done.
	defer context.AfterFunc(ctx, func() { rc.Close() })()
	head := &header{r: withContext{ctx, rc}, kept: m.kept}
	received := newAhead(head)
	defer received.Close()
	defer rc.Close()
	defer cancel()

	plain, err := decompress(received)
	if err != nil {
		return fmt.Errorf("decompress layer: %w", err)
	}
	ready := newAhead(plain)
	defer func() {
		// From the source on, so that each goroutine's Read returns.
		cancel()
		rc.Close()
		received.Close()
		ready.Close()
		plain.Close()
	}()
	digest := sha256.New()
	o := layer.Options{MaxSize: s.limits.LayerSize, MaxEntries: s.limits.LayerEntries, Recipe: m.recipe}
	o.UUID = func() (id [16]byte) { copy(id[:], digest.Sum(nil)); return id }
	tar := io.Writer(digest)
	if m.kept != nil {
		tar = io.MultiWriter(digest, m.kept)
	}
	if m.info, err = layer.Convert(io.TeeReader(ready, tar), m.image, o); err != nil {
		// Damage on the way shows up as nonsense first; a wrong digest says
		// what it is.
		if ctx.Err() == nil && !errors.Is(err, layer.ErrTooBig) {
			ready.Close()
			if _, wrong := io.Copy(io.Discard, received); wrong != nil && !errors.Is(err, wrong) {
				err = fmt.Errorf("%w (%w)", wrong, err)
			}
		}
		return err
	}
	// The decompressor may have left bytes, and the digest is known at the end.
	if _, err := io.Copy(io.Discard, received); err != nil {
		return err
	}
	m.diffID = "sha256:" + hex.EncodeToString(digest.Sum(nil))
	if m.blob == nil {
		return nil
	}
	m.blob.Head = digestOf(head.b) // received has ended: nobody writes it any more
	if m.kept == nil {
		return nil
	}
	err = m.kept.end()
	m.blob.By, m.blob.Kept = m.kept.by, m.kept.file != nil
	return err
}

// header keeps the beginning of a stream.
type header struct {
	r    io.Reader
	b    []byte
	kept *keeping // optional
}

func (h *header) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.b = append(h.b, p[:min(n, headSize-len(h.b))]...)
	if h.kept != nil {
		h.kept.received(p[:n])
	}
	return n, err
}

// layerTar reads a layer's tar, byte for byte as it came. The caller holds the
// layer.
func (s *Store) layerTar(diffID string) (io.ReadCloser, error) {
	rec, ok := s.snapshot().Layers[diffID]
	if !ok {
		return nil, fmt.Errorf("layer %s is not there", short(diffID))
	}
	if rec.Tar == 0 {
		return nil, fmt.Errorf("layer %s is damaged, or was stored by an early build of sampan: pull or load its image again", short(diffID))
	}
	image, err := os.Open(s.layerPath(diffID))
	if err != nil {
		return nil, err
	}
	recipe, err := os.Open(s.recipePath(diffID))
	if err != nil {
		return nil, errors.Join(err, image.Close())
	}
	var r io.ReadCloser
	fi, err := recipe.Stat()
	if err == nil {
		r, err = layer.Tar(image, recipe, fi.Size())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("layer %s: %w", short(diffID), err), image.Close(), recipe.Close())
	}
	return &rebuilt{r: r, files: []io.Closer{r, image, recipe}, want: diffID, sum: sha256.New()}, nil
}

// rebuilt is a tar that has to have its digest.
type rebuilt struct {
	r     io.Reader
	files []io.Closer
	want  string
	sum   hash.Hash
}

func (b *rebuilt) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.sum.Write(p[:n])
	if err == io.EOF {
		if got := "sha256:" + hex.EncodeToString(b.sum.Sum(nil)); got != b.want {
			err = fmt.Errorf("layer %s has been damaged on disk", short(b.want))
		}
	}
	return n, err
}

func (b *rebuilt) Close() error {
	var errs []error
	for _, f := range b.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
