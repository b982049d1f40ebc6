package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"sampan/host/image/layer"
)

// source opens a layer's bytes as they were sent: compressed or not. What it
// returns fails at its end if the digest is not the promised one. Close may be
// called while a Read is under way, and ends it.
type source func(ctx context.Context) (io.ReadCloser, error)

// ensureLayer makes the layer with that diff ID from src, if it is not there.
// The caller holds it (see Hold), so it stays. have is called instead when
// there is nothing to do. Of several callers for one layer, one works and the
// others wait; if that one fails, the next tries with its own source.
func (s *Store) ensureLayer(ctx context.Context, diffID string, src source, have func()) error {
	unlock, err := s.locks.lock(ctx, diffID)
	if err != nil {
		return err
	}
	defer unlock()
	if _, ok := s.snapshot().Layers[diffID]; ok {
		have()
		return nil
	}
	select {
	case s.busy <- struct{}{}:
		defer func() { <-s.busy }()
	case <-ctx.Done():
		return ctx.Err()
	}
	f, err := os.CreateTemp(s.tmp(), "layer-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // after the rename: nothing
	defer f.Close()
	info, err := s.convert(ctx, f, diffID, src)
	if err != nil {
		return err
	}
	if err := f.Chmod(0o444); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return s.update(func(ix *index) error {
		if err := os.Rename(f.Name(), filepath.Join(s.LayersDir(), layerName(diffID))); err != nil {
			return err
		}
		ix.Layers[diffID] = layerRecord{Size: info.Size}
		return syncDir(s.LayersDir())
	})
}

// convert writes a layer's image to f. Three goroutines share the work:
// receiving (and hashing what is received), decompressing, and hashing and
// converting what that gives.
func (s *Store) convert(ctx context.Context, f *os.File, diffID string, src source) (layer.Info, error) {
	ctx, cancel := context.WithCancel(ctx)
	rc, err := src(ctx)
	if err != nil {
		cancel()
		return layer.Info{}, err
	}
	// A Read under way returns when ctx is done.
	defer context.AfterFunc(ctx, func() { rc.Close() })()
	received := newAhead(withContext{ctx, rc})
	defer received.Close()
	defer rc.Close()
	defer cancel()

	plain, err := decompress(received)
	if err != nil {
		return layer.Info{}, fmt.Errorf("decompress layer: %w", err)
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
	o := layer.Options{MaxSize: s.limits.LayerSize, MaxEntries: s.limits.LayerEntries}
	id, err := hex.DecodeString(hexOf(diffID))
	if err != nil {
		return layer.Info{}, err
	}
	copy(o.UUID[:], id)
	info, err := layer.Convert(io.TeeReader(ready, digest), f, o)
	if err != nil {
		// Damage on the way shows up as nonsense first; a wrong digest says
		// what it is.
		if ctx.Err() == nil && !errors.Is(err, layer.ErrTooBig) {
			ready.Close()
			if _, wrong := io.Copy(io.Discard, received); wrong != nil {
				err = fmt.Errorf("%w (%w)", wrong, err)
			}
		}
		return info, err
	}
	// The decompressor may have left bytes, and the digest is known at the end.
	if _, err := io.Copy(io.Discard, received); err != nil {
		return info, err
	}
	if got := "sha256:" + hex.EncodeToString(digest.Sum(nil)); got != diffID {
		return info, fmt.Errorf("layer has the uncompressed digest %s, not %s as the image says", got, diffID)
	}
	return info, nil
}
