// Package image makes what boots in the machines that vm/vmtest looks at.
package image

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"sampan/kernel"
)

// Make writes into dir an initramfs for the bundle's kernel: the bundle's own,
// with vm/vmtest/peer, which it builds, as its /init. It runs in the source
// tree only.
func Make(dir string, b *kernel.Bundle) (initrd string, err error) {
	peer := filepath.Join(dir, "peer")
	if err := Build(peer, "sampan/vm/vmtest/peer", b.Manifest.Arch); err != nil {
		return "", err
	}
	initrd = filepath.Join(dir, "initrd")
	return initrd, appendInit(initrd, b, peer)
}

// Build makes a static program for a guest.
func Build(path, pkg, arch string) error {
	build := exec.Command("go", "build", "-o", path, pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// appendInit writes the bundle's initramfs and a second archive behind it, whose
// only file replaces the first one's /init: the kernel unpacks one after the
// other.
func appendInit(dst string, bundle *kernel.Bundle, init string) error {
	body, err := os.ReadFile(init)
	if err != nil {
		return err
	}
	first, err := bundle.ReadInitrd()
	if err != nil {
		return err
	}
	b := bytes.NewBuffer(first)
	b.Write(make([]byte, -len(first)&511)) // archives begin at a multiple of 4
	putFile(b, "init", 0o100755, body)
	putFile(b, "TRAILER!!!", 0, nil)
	return os.WriteFile(dst, b.Bytes(), 0o666)
}

// putFile appends a file of a newc archive (initramfs buffer format, in the
// kernel's documentation).
func putFile(b *bytes.Buffer, name string, mode int, body []byte) {
	ino, nlink := 1, 1
	fmt.Fprintf(b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		ino, mode, 0, 0, nlink, 0, len(body), 0, 0, 0, 0, len(name)+1, 0)
	b.WriteString(name + "\x00")
	b.Write(make([]byte, -b.Len()&3))
	b.Write(body)
	b.Write(make([]byte, -b.Len()&3))
}
