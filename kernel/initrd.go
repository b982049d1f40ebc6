package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
)

// PackInitrd compresses an initramfs for a bundle.
func PackInitrd(archive []byte) ([]byte, error) {
	w, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression))
	if err != nil {
		return nil, err
	}
	defer w.Close()
	return w.EncodeAll(archive, nil), nil
}

// Of what is unpacked: bytes, and those that the decoder looks back. Ours has 20
// MB, and looks back as far as its encoder's level does.
const (
	maxInitrd = 512 << 20
	maxWindow = 64 << 20
)

// ReadInitrd returns the initramfs as the kernel is to get it.
func (b *Bundle) ReadInitrd() ([]byte, error) {
	var archive bytes.Buffer
	err := b.unpack(&archive)
	return archive.Bytes(), err
}

// unpackedSize is what the compressed initramfs says of its size.
func (b *Bundle) unpackedSize() (int64, error) {
	f, err := os.Open(b.PackedInitrd)
	if err != nil {
		return 0, fmt.Errorf("guest bundle: %w", err)
	}
	defer f.Close()
	buf := make([]byte, zstd.HeaderMaxSize)
	n, err := io.ReadFull(f, buf)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("guest bundle: read %s: %w", InitrdFile, err)
	}
	var h zstd.Header
	if err := h.Decode(buf[:n]); err != nil {
		return 0, fmt.Errorf("guest bundle: unpack %s: %w: run `make guest`", InitrdFile, err)
	}
	if !h.HasFCS || h.FrameContentSize == 0 || h.FrameContentSize > maxInitrd {
		return 0, fmt.Errorf("guest bundle: unpack %s: it says to have %d bytes, want 1 to %d: run `make guest`", InitrdFile, h.FrameContentSize, maxInitrd)
	}
	return int64(h.FrameContentSize), nil
}

// unpack writes the initramfs as the kernel is to get it.
func (b *Bundle) unpack(w io.Writer) error {
	f, err := os.Open(b.PackedInitrd)
	if err != nil {
		return fmt.Errorf("guest bundle: %w", err)
	}
	defer f.Close()
	r, err := zstd.NewReader(f, zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return fmt.Errorf("guest bundle: unpack %s: %w", InitrdFile, err)
	}
	defer r.Close()
	n, err := io.Copy(w, io.LimitReader(r, maxInitrd+1))
	switch {
	case err == nil && n == 0:
		err = errors.New("it is empty")
	case err == nil && n > maxInitrd:
		err = fmt.Errorf("it has more than %d MiB", maxInitrd>>20)
	}
	if err != nil {
		return fmt.Errorf("guest bundle: unpack %s: %w: run `make guest`", InitrdFile, err)
	}
	return nil
}
