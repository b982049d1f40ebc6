package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
)

// Report of Store.Check.
type Report struct {
	// Layers and Documents that were verified.
	Layers, Documents int
	// Repaired and Lost say what was wrong, in words: what is right again, and
	// what only another pull or load brings back.
	Repaired, Lost []string
}

// Check verifies everything in the store against its digests, and repairs what
// it can: a layer's image is made again from its contents if only its metadata
// is damaged, or pulled again, by the digest of an image that has it. Whatever
// runs goes on meanwhile; a container that has a repaired layer mounted sees
// the new one after its next start.
func (s *Store) Check(ctx context.Context, o PullOptions) (Report, error) {
	var r Report
	ix := s.snapshot()
	for _, diffID := range slices.Sorted(maps.Keys(ix.Layers)) {
		if err := s.checkLayer(ctx, diffID, &r); err != nil {
			return r, err
		}
	}
	for _, id := range slices.Sorted(maps.Keys(ix.Images)) {
		if err := s.checkDocuments(ctx, id, ix.Images[id], o, &r); err != nil {
			return r, err
		}
		if err := s.refetch(ctx, id, o, &r); err != nil {
			return r, err
		}
	}
	return r, nil
}

// checkLayer makes a layer's image once more, from its tar, and compares.
func (s *Store) checkLayer(ctx context.Context, diffID string, r *Report) error {
	release := s.Hold([]string{layerName(diffID)})
	defer release()
	rec, ok := s.snapshot().Layers[diffID]
	if !ok || rec.Tar == 0 {
		return nil // gone meanwhile, or known to be bad: see refetch
	}
	r.Layers++
	leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	m, err := s.make(ctx, func(context.Context) (io.ReadCloser, error) { return s.layerTar(diffID) }, nil)
	if err == nil && m.diffID != diffID {
		m.close()
		err = fmt.Errorf("its tar has the digest %s", m.diffID)
	}
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// A full disk, say, or a limit, tells nothing of the layer.
		bad, checkErr := s.damaged(ctx, diffID)
		if checkErr != nil {
			return fmt.Errorf("check layer %s: %w", short(diffID), checkErr)
		}
		if !bad {
			return fmt.Errorf("check layer %s: %w", short(diffID), err)
		}
		s.log.Warn("image layer is damaged", "layer", diffID, "error", err)
		// Containers keep the file as it is; nobody takes it for the layer.
		return s.update(func(ix *index) error {
			if rec, ok := ix.Layers[diffID]; ok {
				rec.Tar = 0
				ix.Layers[diffID] = rec
			}
			return nil
		})
	}
	defer m.close()
	bad, err := s.checkKept(ctx, diffID)
	for _, digest := range bad {
		r.Lost = append(r.Lost, fmt.Sprintf("layer %s: its compressed form %s; a push makes another one", short(diffID), short(digest)))
	}
	if err != nil {
		return fmt.Errorf("check layer %s: %w", short(diffID), err)
	}
	same, err := equalFiles(m.image.Name(), s.layerPath(diffID))
	if err != nil || same {
		return err
	}
	if err := s.keep(m); err != nil {
		return err
	}
	r.Repaired = append(r.Repaired, fmt.Sprintf("layer %s: its image was made again", short(diffID)))
	return nil
}

// damaged reports whether a layer's files don't give its tar any more. An error
// says that this could not be found out.
func (s *Store) damaged(ctx context.Context, diffID string) (bool, error) {
	r, err := s.layerTar(diffID)
	var path *fs.PathError
	if errors.As(err, &path) && path.Op == "open" && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err != nil {
		return true, nil // a file is gone, or the recipe is none
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, withContext{ctx, r})
	return err != nil, ctx.Err()
}

// hasDigest reports whether a file has the contents that it should; one that
// isn't there has not.
func hasDigest(ctx context.Context, path, digest string) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, withContext{ctx, f}); err != nil {
		return false, err
	}
	return "sha256:"+hex.EncodeToString(sum.Sum(nil)) == digest, nil
}

func equalFiles(a, b string) (bool, error) {
	fa, err := os.Open(a)
	if err != nil {
		return false, err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return false, err
	}
	defer fb.Close()
	bufA, bufB := make([]byte, 1<<20), make([]byte, 1<<20)
	for {
		n, errA := io.ReadFull(fa, bufA)
		m, errB := io.ReadFull(fb, bufB)
		if n != m || !bytes.Equal(bufA[:n], bufB[:m]) {
			return false, nil
		}
		if errA != nil || errB != nil {
			end := func(err error) bool { return err == nil || err == io.EOF || err == io.ErrUnexpectedEOF }
			if end(errA) && end(errB) {
				return true, nil
			}
			return false, errors.Join(errA, errB)
		}
	}
}

// checkDocuments verifies an image's configuration and manifest.
func (s *Store) checkDocuments(ctx context.Context, id string, rec record, o PullOptions, r *Report) error {
	r.Documents++
	if b, err := os.ReadFile(s.blobPath(id)); err != nil || digestOf(b) != id {
		if s.pullAgain(ctx, id, o) {
			r.Repaired = append(r.Repaired, fmt.Sprintf("image %s: its configuration was pulled again", short(id)))
		} else {
			r.Lost = append(r.Lost, fmt.Sprintf("image %s (%s): its configuration; remove the image, and pull or load it again", short(id), s.namesOf(id)))
		}
		return nil
	}
	if rec.Manifest == "" {
		return nil
	}
	r.Documents++
	if b, err := os.ReadFile(s.blobPath(rec.Manifest)); err == nil && digestOf(b) == rec.Manifest {
		return nil
	}
	if s.pullAgain(ctx, id, o) {
		r.Repaired = append(r.Repaired, fmt.Sprintf("image %s: its manifest was pulled again", short(id)))
		return nil
	}
	// It is needed to push the very same image, and for nothing else.
	r.Lost = append(r.Lost, fmt.Sprintf("image %s (%s): its manifest; a push makes another one", short(id), s.namesOf(id)))
	return s.update(func(ix *index) error {
		if rec, ok := ix.Images[id]; ok {
			rec.Manifest = ""
			ix.Images[id] = rec
		}
		return nil
	})
}

// refetch brings the layers of an image that are damaged.
func (s *Store) refetch(ctx context.Context, id string, o PullOptions, r *Report) error {
	var bad []string
	ix := s.snapshot()
	for _, diffID := range ix.Images[id].DiffIDs {
		if ix.Layers[diffID].Tar == 0 {
			bad = append(bad, short(diffID))
		}
	}
	if len(bad) == 0 {
		return nil
	}
	what := fmt.Sprintf("image %s (%s): layer %s", short(id), s.namesOf(id), strings.Join(bad, ", "))
	if s.pullAgain(ctx, id, o) {
		r.Repaired = append(r.Repaired, what+" was pulled again")
		return nil
	}
	r.Lost = append(r.Lost, what+"; pull or load the image again")
	return ctx.Err()
}

// pullAgain pulls an image by one of its digests.
func (s *Store) pullAgain(ctx context.Context, id string, o PullOptions) bool {
	for _, name := range s.snapshot().references(id) {
		if !strings.Contains(name, "@") {
			continue
		}
		img, err := s.Pull(ctx, name, o, nil)
		if err == nil && img.ID == id {
			return true
		}
		s.log.Info("image can't be pulled again", "image", name, "error", err)
	}
	return false
}

func (s *Store) namesOf(id string) string {
	var names []string
	for _, full := range s.snapshot().references(id) {
		if !strings.Contains(full, "@") {
			names = append(names, familiar(full))
		}
	}
	if len(names) == 0 {
		return "no name"
	}
	return strings.Join(names, ", ")
}
