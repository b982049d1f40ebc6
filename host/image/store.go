package image

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Store is an image store. Its methods may be called from several goroutines,
// by one process at a time (the daemon has a lock of its own).
type Store struct {
	dir    string
	log    *slog.Logger
	limits Limits
	// keepOdd says to keep compressed layers that can't be made again.
	keepOdd bool
	busy    chan struct{} // holds one token per layer that is being converted
	locks   keyLocks      // by diff ID, while a layer is being made

	registries Registries
	transports transports

	mu    sync.Mutex
	ix    *index
	holds map[string]int // by layer name
}

// Limits bound what is taken from others.
type Limits struct {
	// LayerSize bounds one layer, uncompressed, in bytes.
	LayerSize int64
	// LayerEntries bounds the files in one layer.
	LayerEntries int
	// ArchiveSize bounds an archive that is loaded, uncompressed, in bytes.
	ArchiveSize int64
	// Stall is how long a registry may send nothing of an answer. For the rest
	// of a layer it is asked again.
	Stall time.Duration
}

// DefaultLimits are far above what images need.
func DefaultLimits() Limits {
	return Limits{LayerSize: 64 << 30, LayerEntries: 2_000_000, ArchiveSize: 256 << 30, Stall: defaultStall}
}

const (
	// parallel is how many layers are converted at once, whoever asks.
	parallel = 4
	// maxLayers of an image: overlayfs takes 500 lower directories.
	maxLayers = 500
	// maxDocument bounds a manifest, a configuration and an archive's lists.
	maxDocument = 4 << 20
)

// Image is what the store knows of an image.
type Image struct {
	// ID is the digest of the configuration, "sha256:…".
	ID string
	// Tags and Digests are the image's names, short as Docker shows them:
	// "nginx:latest", "nginx@sha256:…". Sorted; both may be empty.
	Tags, Digests []string
	// Layers are names in Store.LayersDir, bottom first. DiffIDs are the
	// digests of their tars.
	Layers, DiffIDs []string
	// Size of the files in all layers.
	Size int64
	// Created may be zero, and so may Tagged, when it last got a tag.
	Created, Tagged time.Time
	// Config as the specification has it, and the very bytes, which may say
	// more (Docker's health check, for one).
	Config    ocispec.Image
	RawConfig []byte
}

// Progress tells what happens to a layer, or, with no ID, to the whole. The
// words are Docker's.
type Progress struct {
	ID, Status string
	// Current of Total, in bytes. 0 of 0 for a plain status.
	Current, Total int64
}

// Open opens the store in dir, which is made if it is missing, and removes
// what an earlier process has not finished.
func Open(dir string, log *slog.Logger) (*Store, error) {
	s := &Store{dir: dir, log: log, limits: DefaultLimits(), keepOdd: true, busy: make(chan struct{}, parallel), holds: map[string]int{}}
	if err := os.RemoveAll(s.tmp()); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	for _, d := range []string{dir, s.LayersDir(), s.path("recipes"), s.path("blobs"), s.tmp()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("open image store: %w", err)
		}
	}
	ix, err := readIndex(s.path("index.json"))
	if err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	s.ix = ix
	if err := s.tidy(); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	return s, nil
}

// SetLimits changes the limits; those that are 0 stay. It is called before
// anything else.
func (s *Store) SetLimits(l Limits) {
	s.limits = Limits{
		LayerSize: cmp.Or(l.LayerSize, s.limits.LayerSize), LayerEntries: cmp.Or(l.LayerEntries, s.limits.LayerEntries),
		ArchiveSize: cmp.Or(l.ArchiveSize, s.limits.ArchiveSize), Stall: cmp.Or(l.Stall, s.limits.Stall),
	}
}

// KeepCompressed says whether compressed layers are kept that nobody here could
// make again when they are pushed. It is called before anything else; the
// default is true.
func (s *Store) KeepCompressed(keep bool) { s.keepOdd = keep }

// LayersDir is the folder of the EROFS files.
func (s *Store) LayersDir() string { return s.path("layers") }

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

func (s *Store) tmp() string { return s.path("tmp") }

func (s *Store) blobPath(digest string) string { return filepath.Join(s.path("blobs"), hexOf(digest)) }

func (s *Store) layerPath(diffID string) string {
	return filepath.Join(s.LayersDir(), layerName(diffID))
}

func (s *Store) recipePath(diffID string) string {
	return filepath.Join(s.path("recipes"), hexOf(diffID))
}

// layerName is a layer's file name, by its diff ID.
func layerName(diffID string) string { return hexOf(diffID) + ".erofs" }

func hexOf(digest string) string { return strings.TrimPrefix(digest, "sha256:") }

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// tidy deletes files that the index doesn't know, and forgets layers whose
// files are gone, so that a pull brings them again. A layer without its recipe
// still runs.
func (s *Store) tidy() error {
	layers, recipes, blobs := map[string]bool{}, map[string]bool{}, map[string]bool{}
	var missing, unsaved []string
	lost := map[string][]string{} // compressed forms by layer
	for diffID, rec := range s.ix.Layers {
		layers[layerName(diffID)] = true
		if _, err := os.Lstat(s.layerPath(diffID)); err != nil {
			s.log.Warn("image layer has lost its file", "layer", diffID, "error", err)
			missing = append(missing, diffID)
			continue
		}
		for _, b := range rec.Blobs {
			if _, err := os.Lstat(s.blobPath(b.Digest)); b.Kept && err != nil {
				s.log.Warn("image layer has lost its compressed form: a push makes another", "layer", diffID, "error", err)
				lost[diffID] = append(lost[diffID], b.Digest)
			}
		}
		if rec.Tar == 0 {
			continue
		}
		recipes[hexOf(diffID)] = true
		if _, err := os.Lstat(s.recipePath(diffID)); err != nil {
			s.log.Warn("image layer has lost its recipe: it can't be saved or pushed", "layer", diffID, "error", err)
			unsaved = append(unsaved, diffID)
		}
	}
	for digest := range s.ix.blobs() {
		blobs[hexOf(digest)] = true
	}
	for _, diffID := range missing {
		for _, b := range s.ix.Layers[diffID].Blobs {
			if b.Kept {
				delete(blobs, hexOf(b.Digest))
			}
		}
	}
	for dir, known := range map[string]map[string]bool{s.LayersDir(): layers, s.path("recipes"): recipes, s.path("blobs"): blobs} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !known[e.Name()] {
				if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
	}
	if len(missing)+len(unsaved)+len(lost) == 0 {
		return nil
	}
	return s.update(func(ix *index) error {
		for _, diffID := range missing {
			delete(ix.Layers, diffID)
		}
		for _, diffID := range unsaved {
			rec := ix.Layers[diffID]
			rec.Tar = 0
			ix.Layers[diffID] = rec
		}
		for diffID, digests := range lost {
			ix.unkeep(diffID, digests...)
		}
		return nil
	})
}

// update changes the index on disk, then in memory. After an error from change
// or from the disk nothing has changed.
func (s *Store) update(change func(*index) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.updateLocked(change)
}

func (s *Store) updateLocked(change func(*index) error) error {
	ix := s.ix.clone()
	if err := change(ix); err != nil {
		return err
	}
	b, err := json.MarshalIndent(ix, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFile(s.tmp(), s.path("index.json"), b); err != nil {
		return fmt.Errorf("write image index: %w", err)
	}
	s.ix = ix
	return nil
}

// snapshot is the index as it is now; it must not be changed.
func (s *Store) snapshot() *index {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ix
}

// Get finds an image by a name (a missing tag is "latest"), a name with a
// digest, an ID, or the beginning of one that no other image has.
func (s *Store) Get(ref string) (Image, error) {
	ix := s.snapshot()
	id, err := ix.resolve(ref)
	if err != nil {
		return Image{}, err
	}
	return s.image(ix, id)
}

// List returns all images, the newest first.
func (s *Store) List() ([]Image, error) {
	ix := s.snapshot()
	images := make([]Image, 0, len(ix.Images))
	for id := range ix.Images {
		img, err := s.image(ix, id)
		if err != nil {
			return nil, err
		}
		images = append(images, img)
	}
	slices.SortFunc(images, func(a, b Image) int {
		if c := b.Created.Compare(a.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return images, nil
}

// image assembles what there is about an ID of the index.
func (s *Store) image(ix *index, id string) (Image, error) {
	rec := ix.Images[id]
	raw, err := os.ReadFile(s.blobPath(id))
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", id, err)
	}
	if digestOf(raw) != id {
		return Image{}, fmt.Errorf("image %s: its configuration has been damaged", id)
	}
	img := Image{ID: id, DiffIDs: slices.Clone(rec.DiffIDs), RawConfig: raw}
	if err := json.Unmarshal(raw, &img.Config); err != nil {
		return Image{}, fmt.Errorf("image %s: configuration: %w", id, err)
	}
	if img.Config.Created != nil {
		img.Created = *img.Config.Created
	}
	img.Tagged = ix.Tagged[id]
	for _, diffID := range rec.DiffIDs {
		img.Layers = append(img.Layers, layerName(diffID))
		img.Size += ix.Layers[diffID].Size
	}
	for _, ref := range ix.references(id) {
		if name := familiar(ref); strings.Contains(name, "@") {
			img.Digests = append(img.Digests, name)
		} else {
			img.Tags = append(img.Tags, name)
		}
	}
	return img, nil
}

// Manifest is the manifest that the image came with: its bytes, or nil.
func (s *Store) Manifest(id string) ([]byte, error) {
	rec, ok := s.snapshot().Images[id]
	if !ok {
		return nil, errorOf(ErrNotFound, "No such image: %s", id)
	}
	if rec.Manifest == "" {
		return nil, nil
	}
	return os.ReadFile(s.blobPath(rec.Manifest))
}

// Tag gives the image ref one more name, which is taken from another image if
// that had it.
func (s *Store) Tag(ref, newRef string) error {
	name, err := parseTag(newRef)
	if err != nil {
		return err
	}
	return s.update(func(ix *index) error {
		id, err := ix.resolve(ref)
		if err != nil {
			return err
		}
		ix.Names[name] = id
		ix.Tagged[id] = time.Now().UTC()
		return nil
	})
}

// add stores an image whose layers are there, with its blobs and names.
func (s *Store) add(config, manifest []byte, diffIDs, names []string) (Image, error) {
	id, rec, blobs := digestOf(config), record{DiffIDs: diffIDs}, []blobRecord(nil)
	// The lock is held over the blobs as well, or a Remove in between could
	// delete those that an equal image has left.
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := writeFile(s.tmp(), s.blobPath(id), config); err != nil {
		return Image{}, fmt.Errorf("store image: %w", err)
	}
	if manifest != nil {
		rec.Manifest = digestOf(manifest)
		if err := writeFile(s.tmp(), s.blobPath(rec.Manifest), manifest); err != nil {
			return Image{}, fmt.Errorf("store image: %w", err)
		}
		m, err := parseManifest(manifest)
		if err != nil {
			return Image{}, fmt.Errorf("store image: %w", err)
		}
		for _, l := range m.Layers[:min(len(m.Layers), len(diffIDs))] {
			blobs = append(blobs, blobOf(l))
		}
	}
	err := s.updateLocked(func(ix *index) error {
		for _, diffID := range diffIDs {
			if _, ok := ix.Layers[diffID]; !ok {
				return fmt.Errorf("store image: layer %s is not there", diffID)
			}
		}
		if old, ok := ix.Images[id]; ok && rec.Manifest == "" {
			rec.Manifest = old.Manifest
		}
		ix.Images[id] = rec
		for _, name := range names {
			ix.Names[name] = id
			if !strings.Contains(name, "@") {
				ix.Tagged[id] = time.Now().UTC()
			}
		}
		for i, blob := range blobs {
			ix.know(diffIDs[i], blob)
		}
		return nil
	})
	if err != nil {
		return Image{}, err
	}
	return s.image(s.ix, id)
}
