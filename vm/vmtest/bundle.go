package vmtest

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"sampan/kernel"
)

// Guest makes what the machines under test boot: the bundle's kernel, and the
// bundle's initramfs with vm/vmtest/peer as its /init. arch is the bundle's,
// as Go names it: SAMPAN_GUEST may name one of another architecture than the
// host's. It fails without a bundle.
func Guest(t testing.TB) (kernelPath, initrdPath, arch string) {
	t.Helper()
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := kernel.FindFrom(wd)
	if err != nil {
		t.Fatal(err)
	}
	b, err := kernel.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	peer := filepath.Join(t.TempDir(), "peer")
	build := exec.Command("go", "build", "-o", peer, "sampan/vm/vmtest/peer")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+b.Manifest.Arch)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the peer: %v\n%s", err, out)
	}
	initrdPath = filepath.Join(t.TempDir(), "initrd")
	if err := appendInit(initrdPath, b.Initrd, peer); err != nil {
		t.Fatal(err)
	}
	return b.Kernel, initrdPath, b.Manifest.Arch
}

// appendInit copies an initramfs and puts a second archive behind it, whose
// only file replaces the first one's /init: the kernel unpacks one after the
// other.
func appendInit(dst, initrd, init string) error {
	body, err := os.ReadFile(init)
	if err != nil {
		return err
	}
	in, err := os.Open(initrd)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(dst)
	if err != nil {
		return err
	}
	defer out.Close()
	n, err := io.Copy(out, in)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	b.Write(make([]byte, -n&511)) // archives begin at a multiple of 4
	putFile(&b, "init", 0o100755, body)
	putFile(&b, "TRAILER!!!", 0, nil)
	if _, err := b.WriteTo(out); err != nil {
		return err
	}
	return out.Close()
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
