package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"strings"

	"sampan/host/image/erofs"
)

// ErrTooBig is wrapped by errors about a layer that exceeds Options.
var ErrTooBig = errors.New("layer too big")

// Defaults of Options.
const (
	DefaultMaxSize    = 64 << 30
	DefaultMaxEntries = 2_000_000
)

// maxPath bounds names and link targets, as Linux does.
const maxPath = 4096

// Options of a conversion.
type Options struct {
	// UUID of the file system, by which overlayfs tells layers apart. It is
	// asked for at the stream's end. Optional.
	UUID func() [16]byte
	// Recipe receives what makes the tar again from the image, see Tar.
	// Optional.
	Recipe io.Writer
	// MaxSize bounds the stream, and the contents of the files with their
	// holes, in bytes. 0 is DefaultMaxSize.
	MaxSize int64
	// MaxEntries bounds the files and directories. 0 is DefaultMaxEntries.
	MaxEntries int
}

// Info about a converted layer.
type Info struct {
	// Size of the files' contents in bytes, as Docker counts it.
	Size int64
	// Tar is the length of the stream.
	Tar int64
	// Entries of the tar.
	Entries int
}

// Convert reads a tar stream to its last byte and writes out. What follows the
// archive's end is read too (its digest is over the whole stream).
func Convert(r io.Reader, out erofs.Output, o Options) (Info, error) {
	if o.MaxSize == 0 {
		o.MaxSize = DefaultMaxSize
	}
	if o.MaxEntries == 0 {
		o.MaxEntries = DefaultMaxEntries
	}
	lim := &limitReader{r: r, left: o.MaxSize, max: o.MaxSize}
	rec, err := newRecorder(lim, o.Recipe)
	if err != nil {
		return Info{}, err
	}
	t := &tree{w: erofs.NewWriter(out), o: o, rec: rec, whiteouts: map[*erofs.Inode]bool{}}
	tr := tar.NewReader(rec)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return t.info, fmt.Errorf("read layer: %w", err)
		}
		if err := t.add(hdr, tr); err != nil {
			return t.info, fmt.Errorf("layer entry %q: %w", shorten(hdr.Name), err)
		}
	}
	if _, err := io.Copy(io.Discard, rec); err != nil {
		return t.info, fmt.Errorf("read layer: %w", err)
	}
	t.info.Tar = o.MaxSize - lim.left
	var uuid [16]byte
	if o.UUID != nil {
		uuid = o.UUID()
	}
	if err := t.w.Close(uuid); err != nil {
		return t.info, fmt.Errorf("write layer: %w", err)
	}
	if err := rec.close(); err != nil {
		return t.info, fmt.Errorf("write recipe: %w", err)
	}
	return t.info, nil
}

// limitReader fails once more than max bytes were read.
type limitReader struct {
	r         io.Reader
	left, max int64
}

func (l *limitReader) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return n, tooBig(l.max)
	}
	return n, err
}

func tooBig(limit int64) error {
	return fmt.Errorf("%w: more than the limit of %d bytes uncompressed", ErrTooBig, limit)
}

// attr is what a header says about an inode, but for its type.
func attr(hdr *tar.Header) (erofs.Attr, error) {
	a := erofs.Attr{
		Mode: uint16(hdr.Mode & 0o7777),
		Sec:  hdr.ModTime.Unix(),
		Nsec: uint32(hdr.ModTime.Nanosecond()),
	}
	if int64(uint32(hdr.Uid)) != int64(hdr.Uid) || int64(uint32(hdr.Gid)) != int64(hdr.Gid) {
		return a, fmt.Errorf("owner %d:%d", hdr.Uid, hdr.Gid)
	}
	a.UID, a.GID = uint32(hdr.Uid), uint32(hdr.Gid)
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok || !erofs.XattrSupported(name) || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		if strings.HasPrefix(name, "user.") && hdr.Typeflag != tar.TypeDir && !regular(hdr) {
			continue // Linux has these on files and directories only
		}
		if a.Xattrs == nil {
			a.Xattrs = map[string]string{}
		}
		a.Xattrs[name] = value
	}
	return a, nil
}

// regular reports whether hdr is that of a file with contents.
func regular(hdr *tar.Header) bool {
	switch hdr.Typeflag {
	case tar.TypeReg, '\x00', tar.TypeCont, tar.TypeGNUSparse:
		return true
	}
	return false
}

// sparse reports whether the archive has the contents in pieces.
func sparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range hdr.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// shorten keeps error texts readable.
func shorten(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}
