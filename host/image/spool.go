package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// spool is an archive's files, kept in a temporary folder under names of our
// own. The archive says which of them are layers only at some point, often its
// end, so all are kept until then.
type spool struct {
	dir   string
	files map[string]spooled // by cleaned path
	links map[string]string  // to the path in the archive
}

type spooled struct {
	path   string // in dir
	digest string
	size   int64
}

// maxArchiveFiles bounds how many files an archive may have.
const maxArchiveFiles = 100_000

// newSpool reads an archive, compressed or not, to its end.
func (s *Store) newSpool(ctx context.Context, r io.Reader) (*spool, error) {
	dir, err := os.MkdirTemp(s.tmp(), "load-")
	if err != nil {
		return nil, err
	}
	sp := &spool{dir: dir, files: map[string]spooled{}, links: map[string]string{}}
	if err := sp.read(ctx, r, s.limits.ArchiveSize); err != nil {
		sp.close()
		return nil, err
	}
	return sp, nil
}

func (sp *spool) close() { os.RemoveAll(sp.dir) }

func (sp *spool) read(ctx context.Context, r io.Reader, limit int64) error {
	plain, err := decompress(withContext{ctx, r})
	if err != nil {
		return fmt.Errorf("read archive: %w", err)
	}
	defer plain.Close()
	lim := &io.LimitedReader{R: plain, N: limit}
	tr := tar.NewReader(lim)
	for n := 0; ; n++ {
		hdr, err := tr.Next()
		if lim.N == 0 {
			return errorOf(ErrInvalid, "archive of more than the limit of %d bytes uncompressed", limit)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		if n == maxArchiveFiles {
			return errorOf(ErrInvalid, "archive of more than %d files", maxArchiveFiles)
		}
		name := inArchive(hdr.Name)
		delete(sp.files, name)
		delete(sp.links, name)
		switch hdr.Typeflag {
		case tar.TypeReg, '\x00':
			if hdr.Size > lim.N {
				return errorOf(ErrInvalid, "archive of more than the limit of %d bytes uncompressed", limit)
			}
			if sp.files[name], err = sp.keep(tr, filepath.Join(sp.dir, strconv.Itoa(n))); err != nil {
				return fmt.Errorf("read archive: %q: %w", hdr.Name, err)
			}
		case tar.TypeSymlink:
			sp.links[name] = inArchive(path.Join(path.Dir(name), hdr.Linkname))
		case tar.TypeLink:
			sp.links[name] = inArchive(hdr.Linkname)
		}
	}
}

func (sp *spool) keep(r io.Reader, to string) (spooled, error) {
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return spooled{}, err
	}
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), r)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return spooled{path: to, digest: "sha256:" + hex.EncodeToString(h.Sum(nil)), size: n}, err
}

// inArchive cleans a path; one that reaches out stays inside.
func inArchive(name string) string {
	return strings.TrimPrefix(path.Clean("/"+name), "/")
}

// lookup finds a file, through links (old archives share layers by them). If
// its name is a digest, its contents must have it.
func (sp *spool) lookup(name string) (spooled, error) {
	name = inArchive(name)
	for range 8 {
		to, ok := sp.links[name]
		if !ok {
			break
		}
		name = to
	}
	f, ok := sp.files[name]
	if !ok {
		return f, fmt.Errorf("archive has no %q: %w", name, fs.ErrNotExist)
	}
	base := strings.TrimSuffix(path.Base(name), ".json")
	if checkDigest("sha256:"+base) == nil && (path.Dir(name) == "blobs/sha256" || strings.HasSuffix(name, ".json") && path.Dir(name) == ".") {
		if f.digest != "sha256:"+base {
			return f, fmt.Errorf("%q in the archive has the digest %s", name, f.digest)
		}
	}
	return f, nil
}

// document reads a small file.
func (sp *spool) document(name string) ([]byte, error) {
	f, err := sp.lookup(name)
	if err != nil {
		return nil, err
	}
	r, err := os.Open(f.path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return readAllMax(r, fmt.Sprintf("%q in the archive", name))
}

// blob reads a document by its digest.
func (sp *spool) blob(digest string) ([]byte, error) {
	if err := checkDigest(digest); err != nil {
		return nil, err
	}
	return sp.document("blobs/sha256/" + hexOf(digest))
}

// has reports whether there is a file with that name.
func (sp *spool) has(name string) bool {
	_, err := sp.lookup(name)
	return err == nil || !errors.Is(err, fs.ErrNotExist)
}
