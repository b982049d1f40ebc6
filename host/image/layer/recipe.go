package layer

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"sampan/host/image/erofs"
)

// A recipe makes the tar again, byte for byte, from the image that was made of
// it. It has what the image hasn't, chiefly headers and padding: some 1 % of a
// layer.
//
//	steps    zstd: (uvarint n<<1 | file, n bytes of the tar, then, if file is
//	         1, the contents of the next file)*
//	files    zstd: (uvarint: the file's inode, as the distance from the one
//	         before in the units and the order of zig-zag encoding)*
//	end      8 bytes: the length of steps, little-endian
//
// Contents of sparse files, which the tar has in pieces, are among the bytes.

// maxChunk bounds the bytes of one step.
const maxChunk = 64 << 10

// recorder writes a recipe while its reader reads the tar. A nil out only
// reads.
type recorder struct {
	r     io.Reader
	out   *counted
	enc   *zstd.Encoder
	buf   []byte // of the step under way
	file  bool   // what is read is a file's contents
	n     int64  // bytes of it
	files []*erofs.Inode
}

type counted struct {
	w io.Writer
	n int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

func newEncoder(w io.Writer) (*zstd.Encoder, error) {
	return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20), zstd.WithLowerEncoderMem(true))
}

func newRecorder(r io.Reader, out io.Writer) (*recorder, error) {
	rec := &recorder{r: r}
	if out == nil {
		return rec, nil
	}
	rec.out = &counted{w: out}
	var err error
	rec.enc, err = newEncoder(rec.out)
	return rec, err
}

func (rec *recorder) Read(p []byte) (int, error) {
	n, err := rec.r.Read(p)
	switch {
	case rec.enc == nil:
	case rec.file:
		rec.n += int64(n)
	default:
		rec.buf = append(rec.buf, p[:n]...)
		if len(rec.buf) >= maxChunk {
			if e := rec.step(false); e != nil {
				return n, e
			}
		}
	}
	return n, err
}

// step writes the bytes gathered, in chunks; a file's contents follow.
func (rec *recorder) step(file bool) error {
	defer func() { rec.buf = rec.buf[:0] }()
	for rest := rec.buf; ; {
		b := rest[:min(len(rest), maxChunk)]
		rest = rest[len(b):]
		last := len(rest) == 0
		head := uint64(len(b)) << 1
		if last && file {
			head |= 1
		}
		if _, err := rec.enc.Write(binary.AppendUvarint(nil, head)); err != nil {
			return err
		}
		if _, err := rec.enc.Write(b); err != nil {
			return err
		}
		if last {
			return nil
		}
	}
}

// contents runs read, which reads the size bytes of a file into the inode that
// it returns.
func (rec *recorder) contents(size int64, read func() (*erofs.Inode, error)) (*erofs.Inode, error) {
	if rec.enc == nil || size == 0 {
		return read()
	}
	if err := rec.step(true); err != nil {
		return nil, err
	}
	rec.file, rec.n = true, 0
	inode, err := read()
	rec.file = false
	if err != nil {
		return nil, err
	}
	if rec.n != size {
		return nil, fmt.Errorf("contents of %d bytes take %d in the archive", size, rec.n)
	}
	rec.files = append(rec.files, inode)
	return inode, nil
}

// close completes the recipe; the image is complete by now.
func (rec *recorder) close() error {
	if rec.enc == nil {
		return nil
	}
	if err := errors.Join(rec.step(false), rec.enc.Close()); err != nil {
		return err
	}
	steps := rec.out.n
	enc, err := newEncoder(rec.out)
	if err != nil {
		return err
	}
	w, last := bufio.NewWriter(enc), int64(0)
	var b []byte
	for _, inode := range rec.files {
		b = binary.AppendVarint(b[:0], inode.Pos()-last)
		last = inode.Pos()
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	if err := errors.Join(w.Flush(), enc.Close()); err != nil {
		return err
	}
	_, err = rec.out.Write(binary.LittleEndian.AppendUint64(nil, uint64(steps)))
	return err
}

// Tar reads the tar that image was made of, by its recipe of size bytes. Close
// doesn't close the two.
func Tar(image, recipe io.ReaderAt, size int64) (io.ReadCloser, error) {
	var end [8]byte
	if size < int64(len(end)) {
		return nil, errors.New("recipe is too short")
	}
	if _, err := recipe.ReadAt(end[:], size-int64(len(end))); err != nil {
		return nil, fmt.Errorf("recipe: %w", err)
	}
	steps := int64(binary.LittleEndian.Uint64(end[:]))
	if steps < 0 || steps > size-int64(len(end)) {
		return nil, errors.New("recipe is damaged")
	}
	t := &tarReader{image: image}
	var err error
	if t.stepsDec, err = zstd.NewReader(io.NewSectionReader(recipe, 0, steps), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true)); err != nil {
		return nil, err
	}
	if t.filesDec, err = zstd.NewReader(io.NewSectionReader(recipe, steps, size-int64(len(end))-steps), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true)); err != nil {
		t.stepsDec.Close()
		return nil, err
	}
	t.steps, t.files = bufio.NewReader(t.stepsDec), bufio.NewReader(t.filesDec)
	return t, nil
}

type tarReader struct {
	image              io.ReaderAt
	stepsDec, filesDec *zstd.Decoder
	steps, files       *bufio.Reader
	pos                int64     // of the file read last
	now                io.Reader // what is being read; nil: the next step
	left               int64     // of it
	file               bool      // a file's contents come next
	err                error
}

func (t *tarReader) Read(p []byte) (int, error) {
	for t.err == nil {
		if t.now == nil {
			t.err = t.next()
			continue
		}
		if t.left == 0 {
			t.now = nil
			continue
		}
		n, err := t.now.Read(p[:min(int64(len(p)), t.left)])
		t.left -= int64(n)
		if err == io.EOF && t.left > 0 {
			t.err = fmt.Errorf("rebuild layer: %w", io.ErrUnexpectedEOF)
		} else if err != nil && err != io.EOF {
			t.err = fmt.Errorf("rebuild layer: %w", err)
		}
		if n > 0 || len(p) == 0 {
			return n, nil
		}
	}
	return 0, t.err
}

// next begins the next bytes, or the next file.
func (t *tarReader) next() error {
	if t.file {
		t.file = false
		distance, err := binary.ReadVarint(t.files)
		if err != nil {
			return fmt.Errorf("recipe: %w", unexpected(err))
		}
		t.pos += distance
		t.now, t.left, err = erofs.OpenContent(t.image, t.pos)
		if err != nil {
			return fmt.Errorf("rebuild layer: %w", err)
		}
		return nil
	}
	head, err := binary.ReadUvarint(t.steps)
	if err == io.EOF {
		return io.EOF
	}
	if err != nil {
		return fmt.Errorf("recipe: %w", err)
	}
	if head>>1 > maxChunk {
		return errors.New("recipe is damaged")
	}
	t.now, t.left, t.file = t.steps, int64(head>>1), head&1 != 0
	return nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (t *tarReader) Close() error {
	t.stepsDec.Close()
	t.filesDec.Close()
	return nil
}
