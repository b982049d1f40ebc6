package image

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/distribution/reference"
)

// RemoveOptions of Store.Remove.
type RemoveOptions struct {
	// Force removes an image that has several names, or is used by containers
	// that don't run.
	Force bool
	// InUse lists the containers that were made from an image, by its ID.
	// Optional.
	InUse func(imageID string) []string
	// Running lists those of them that run. Optional.
	Running func(imageID string) []string
}

// Removed is one step of a removal; one of the fields is set.
type Removed struct {
	Untagged, Deleted string
}

// Remove takes a name from an image, and deletes the image with its last name.
// Given an ID it takes all names of one repository. The rules, and the texts of
// conflicts, are Docker's. Layers go when nothing else needs them, see Hold.
func (s *Store) Remove(ref string, o RemoveOptions) ([]Removed, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, err := s.ix.resolve(ref)
	if err != nil {
		return nil, err
	}
	r := removal{ix: s.ix.clone(), id: id, o: o}
	if err := r.plan(ref); err != nil {
		return nil, err
	}
	old := s.ix
	if err := s.updateLocked(func(ix *index) error { *ix = *r.ix; return nil }); err != nil {
		return nil, err
	}
	if _, kept := s.ix.Images[id]; kept {
		return r.removed, nil
	}
	needed := s.ix.blobs()
	for _, digest := range []string{id, old.Images[id].Manifest} {
		if digest != "" && !needed[digest] {
			s.remove(s.blobPath(digest))
		}
	}
	layers, err := s.collectLocked(old.Images[id].DiffIDs)
	for _, diffID := range layers {
		r.removed = append(r.removed, Removed{Deleted: diffID})
	}
	return r.removed, err
}

// removal plans what Remove does, on a copy of the index.
type removal struct {
	ix      *index
	id      string
	o       RemoveOptions
	removed []Removed
}

func (r *removal) plan(ref string) error {
	refs := r.ix.references(r.id)
	byName := !(isID(ref) && strings.HasPrefix(hexOf(r.id), hexOf(ref)))
	if byName {
		named, err := parseName(ref)
		if err != nil {
			return err
		}
		if using := r.using(); !r.o.Force && singleReference(refs) && len(using) > 0 {
			return errorOf(ErrConflict, "conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s",
				ref, short(using[0]), short(r.id))
		}
		r.untag(named.String())
		r.dropDigests(named)
		if len(r.ix.references(r.id)) > 0 {
			return nil
		}
		if err := r.conflict(); err != nil {
			return nil // the image stays, without a name
		}
	} else {
		if !r.o.Force && !singleReference(refs) {
			return errorOf(ErrConflict, "conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories", short(r.id))
		}
		if err := r.conflict(); err != nil {
			return err
		}
		for _, name := range refs {
			r.untag(name)
		}
	}
	delete(r.ix.Images, r.id)
	delete(r.ix.Tagged, r.id)
	r.removed = append(r.removed, Removed{Deleted: r.id})
	return nil
}

func (r *removal) using() []string {
	if r.o.InUse == nil {
		return nil
	}
	return r.o.InUse(r.id)
}

// conflict says why the image can't be deleted.
func (r *removal) conflict() error {
	if r.o.Running != nil {
		if running := r.o.Running(r.id); len(running) > 0 {
			return errorOf(ErrConflict, "conflict: unable to delete %s (cannot be forced) - image is being used by running container %s", short(r.id), short(running[0]))
		}
	}
	if using := r.using(); !r.o.Force && len(using) > 0 {
		return errorOf(ErrConflict, "conflict: unable to delete %s (must be forced) - image is being used by stopped container %s", short(r.id), short(using[0]))
	}
	return nil
}

func (r *removal) untag(name string) {
	delete(r.ix.Names, name)
	r.removed = append(r.removed, Removed{Untagged: familiar(name)})
}

// dropDigests removes an image's digests of a repository in which it has no
// tag any more.
func (r *removal) dropDigests(named reference.Named) {
	if _, ok := named.(reference.Canonical); ok {
		return
	}
	var digests []string
	for _, name := range r.ix.references(r.id) {
		if repository(name) != named.Name() {
			continue
		}
		if !strings.Contains(name, "@") {
			return
		}
		digests = append(digests, name)
	}
	for _, name := range digests {
		r.untag(name)
	}
}

// singleReference reports whether the names are at most one tag, and digests of
// its repository alone.
func singleReference(refs []string) bool {
	if len(refs) <= 1 {
		return true
	}
	tags, repos := 0, map[string]bool{}
	for _, name := range refs {
		repos[repository(name)] = true
		if !strings.Contains(name, "@") {
			tags++
		}
	}
	return tags <= 1 && len(repos) == 1
}

// short is how Docker shows an ID.
func short(id string) string {
	hex := hexOf(id)
	return hex[:min(len(hex), 12)]
}

// Hold keeps layers, by their names, from being deleted until release is
// called. The engine holds those of every container, from before the first
// Remove or Sweep after a start on. release deletes what nobody needs any more;
// calling it again does nothing.
func (s *Store) Hold(layers []string) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range layers {
		s.holds[name]++
	}
	return sync.OnceFunc(func() { s.release(layers) })
}

func (s *Store) release(layers []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var diffIDs []string
	for _, name := range layers {
		if s.holds[name]--; s.holds[name] == 0 {
			delete(s.holds, name)
			diffIDs = append(diffIDs, "sha256:"+strings.TrimSuffix(name, ".erofs"))
		}
	}
	if _, err := s.collectLocked(diffIDs); err != nil {
		s.log.Error("delete image layers", "error", err)
	}
}

// Sweep deletes all layers that no image has and nobody holds: those of
// containers that were deleted while the daemon was down.
func (s *Store) Sweep() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for diffID := range s.ix.Layers {
		all = append(all, diffID)
	}
	_, err := s.collectLocked(all)
	return err
}

// collectLocked deletes those of the layers that nobody needs, and names them.
func (s *Store) collectLocked(diffIDs []string) ([]string, error) {
	var gone []string
	seen := map[string]bool{}
	for _, diffID := range diffIDs {
		_, have := s.ix.Layers[diffID]
		if have && !seen[diffID] && s.holds[layerName(diffID)] == 0 && !s.ix.usesLayer(diffID) {
			gone = append(gone, diffID)
		}
		seen[diffID] = true
	}
	if len(gone) == 0 {
		return nil, nil
	}
	var kept []string
	for _, diffID := range gone {
		for _, b := range s.ix.Layers[diffID].Blobs {
			if b.Kept {
				kept = append(kept, b.Digest)
			}
		}
	}
	err := s.updateLocked(func(ix *index) error {
		for _, diffID := range gone {
			delete(ix.Layers, diffID)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("delete layers: %w", err)
	}
	for _, diffID := range gone {
		s.remove(s.layerPath(diffID))
		s.remove(s.recipePath(diffID))
	}
	for _, digest := range kept {
		s.remove(s.blobPath(digest))
	}
	return gone, nil
}

// remove deletes a file that the index doesn't know any more. If that fails,
// the next Open does it.
func (s *Store) remove(path string) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.log.Error("delete image file", "error", err)
	}
}
