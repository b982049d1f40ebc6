package kernel

import (
	"bytes"
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

// ReadInitrd returns the initramfs as the kernel is to get it.
func (b *Bundle) ReadInitrd() ([]byte, error) {
	var archive bytes.Buffer
	err := b.unpack(&archive)
	return archive.Bytes(), err
}

// unpack writes the initramfs as the kernel is to get it.
func (b *Bundle) unpack(w io.Writer) error {
	f, err := os.Open(b.Initrd)
	if err != nil {
		return fmt.Errorf("guest bundle: %w", err)
	}
	defer f.Close()
	r, err := zstd.NewReader(f)
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := r.WriteTo(w); err != nil {
		return fmt.Errorf("guest bundle: unpack %s: %w", InitrdFile, err)
	}
	return nil
}
