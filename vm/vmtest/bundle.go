package vmtest

import (
	"os"
	"testing"

	"sampan/kernel"
	"sampan/vm/vmtest/image"
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
	initrdPath, err = image.Make(t.TempDir(), b)
	if err != nil {
		t.Fatal(err)
	}
	return b.Kernel, initrdPath, b.Manifest.Arch
}
