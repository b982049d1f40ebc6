package image

import (
	"context"
	"errors"
	"os"
	"sync"
)

const (
	// keepTar is how much of a layer's tar a compressor is tried on: more than
	// the largest piece (1 MiB) that the usual ones treat on its own.
	keepTar = 1<<20 + 256<<10
	// keepHead has room for what that can become.
	keepHead = keepTar + 64<<10
	// keepFirst is within what any compressor gives for a mere beginning.
	keepFirst = 4 << 10
)

// keeping is the compressed form of a layer on its way into the store. It goes
// into a file until it is known that a compressor of ours would make it again,
// which is as soon as keepTar of the tar are there. Its methods are called by
// the two goroutines that receive and that convert the layer.
type keeping struct {
	mu    sync.Mutex
	file  *os.File // nil once there is no need for it
	err   error    // of writing it
	head  []byte   // its beginning, until by is decided
	tar   []byte   // the tar's, likewise
	all   int64    // bytes of it that have come
	ended bool     // by is decided
	by    string   // the compressor that is like it, or ""
}

// keeping begins to keep a blob, or nothing if it is not to be kept.
func (s *Store) keeping(blob *blobRecord) (*keeping, error) {
	if blob == nil || uncompressed(blob.MediaType) || !s.keepOdd {
		return nil, nil
	}
	f, err := os.CreateTemp(s.tmp(), "blob-")
	if err != nil {
		return nil, err
	}
	return &keeping{file: f}, nil
}

// received takes what has come.
func (k *keeping) received(b []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.all += int64(len(b))
	if !k.ended {
		k.head = append(k.head, b[:min(len(b), keepHead-len(k.head))]...)
	}
	if k.file != nil && k.err == nil {
		_, k.err = k.file.Write(b)
	}
}

// Write takes what that is of the tar.
func (k *keeping) Write(b []byte) (int, error) {
	if k.ended { // only this goroutine sets it
		return len(b), nil
	}
	k.tar = append(k.tar, b[:min(len(b), keepTar-len(k.tar))]...)
	if len(k.tar) == keepTar {
		return len(b), k.decide(false)
	}
	return len(b), nil
}

// end is called when everything has come. The file, if there is one, is what
// has to be kept.
func (k *keeping) end() error {
	if !k.ended {
		if err := k.decide(true); err != nil {
			return err
		}
	}
	if k.err == nil && k.file != nil {
		k.err = k.file.Sync()
	}
	return k.err
}

// decide finds the compressor that gives most of the blob's beginning, and
// drops the file when there is one.
func (k *keeping) decide(whole bool) error {
	k.mu.Lock()
	head, all := k.head, k.all
	k.mu.Unlock()
	var best int
	var by string
	for _, c := range compressorsOf(head) {
		n, total, err := commonStart(c, k.tar, head)
		if err != nil {
			return err
		}
		switch {
		case whole && (n != total || int64(n) != all), 2*n < total, n <= best:
		default:
			best, by = n, c.name
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.by, k.ended, k.head, k.tar = by, true, nil, nil
	if by != "" {
		k.drop()
	}
	return nil
}

// drop forgets the file.
func (k *keeping) drop() {
	if k != nil && k.file != nil {
		k.file.Close()
		os.Remove(k.file.Name()) // after it was given another: nothing
		k.file = nil
	}
}

// commonStart is how many bytes of what a compressor makes of the beginning of
// a tar are those of a blob's beginning, and of how many. The latter is not
// found out when the first few differ.
func commonStart(c compressor, tar, head []byte) (same, total int, err error) {
	m := &matching{want: head}
	z, err := c.make(m)
	if err != nil {
		return 0, 0, err
	}
	for len(tar) > 0 && err == nil { // in pieces, so as to end early
		n := min(len(tar), 32<<10)
		_, err = z.Write(tar[:n])
		tar = tar[n:]
	}
	if closeErr := z.Close(); err == nil {
		err = closeErr
	}
	if errors.Is(err, errEnough) {
		return 0, 1, nil
	}
	return m.same, m.total, err
}

// matching compares what is written.
type matching struct {
	want        []byte
	same, total int
}

func (m *matching) Write(p []byte) (int, error) {
	if m.same == m.total {
		rest := m.want[min(m.same, len(m.want)):]
		for i := 0; i < min(len(p), len(rest)) && p[i] == rest[i]; i++ {
			m.same++
		}
	}
	if m.total += len(p); m.same < min(m.total, keepFirst) {
		return 0, errEnough
	}
	return len(p), nil
}

// checkKept verifies the compressed forms of a layer that are kept, and forgets
// those that are damaged.
func (s *Store) checkKept(ctx context.Context, diffID string) (bad []string, err error) {
	for _, b := range s.snapshot().Layers[diffID].Blobs {
		if !b.Kept {
			continue
		}
		ok, err := hasDigest(ctx, s.blobPath(b.Digest), b.Digest)
		if err != nil {
			return bad, err
		}
		if !ok {
			bad = append(bad, b.Digest)
		}
	}
	if len(bad) == 0 {
		return nil, nil
	}
	err = s.update(func(ix *index) error { ix.unkeep(diffID, bad...); return nil })
	if err == nil {
		for _, digest := range bad {
			s.remove(s.blobPath(digest))
		}
	}
	return bad, err
}
