package bundle

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"sampan/kernel"
)

// fakeCache has packages as small as a bundle can be made from, with a program
// of this machine for the ext4 tools.
func fakeCache(t *testing.T) Options {
	t.Helper()
	o := Options{Arch: runtime.GOARCH, Cache: t.TempDir(), Out: t.TempDir(), Log: io.Discard}
	set := packageSet{Kernel: "6.12.1-cloud", Versions: map[string]string{"linux-image-6.12.1-cloud": "6.12.1-1"}}
	for _, p := range toolPackages {
		set.Versions[p] = "1"
	}
	dir := filepath.Join(o.Cache, "guest", o.Arch)
	tree := filepath.Join(dir, set.treeName())
	put := func(name string, data []byte) {
		t.Helper()
		name = filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tool, err := os.ReadFile("/usr/bin/dpkg") // needs more than libc
	if err != nil {
		t.Fatalf("the bundle is made on Debian: %v", err)
	}
	put("usr/bin/busybox", []byte("busybox"))
	put("usr/sbin/mke2fs", tool)
	put("usr/sbin/e2fsck", tool)
	put("etc/mke2fs.conf", []byte("[defaults]\n"))
	put("boot/vmlinuz-6.12.1-cloud", []byte("kernel"))
	put("boot/config-6.12.1-cloud", goodConfig(t))
	put("usr/lib/modules/6.12.1-cloud/kernel/net/vsock.ko", fakeModule("depends=\x00"))
	var builtin []byte
	for _, m := range append(bootModules, lateModules...) {
		if m != "vsock" {
			builtin = append(builtin, "kernel/"+m+".ko\n"...)
		}
	}
	put("usr/lib/modules/6.12.1-cloud/modules.builtin", builtin)
	// The libraries are this machine's own.
	triplet := triplets[o.Arch]
	for _, lib := range []string{"usr/lib/" + triplet, "usr/lib64"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(tree, lib)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/"+lib, filepath.Join(tree, lib)); err != nil {
			t.Fatal(err)
		}
	}
	record, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "packages.json"), record, 0o644); err != nil {
		t.Fatal(err)
	}
	o.Agent = filepath.Join(o.Cache, "agent")
	if err := os.WriteFile(o.Agent, []byte("agent"), 0o755); err != nil {
		t.Fatal(err)
	}
	o.Stage2 = filepath.Join(o.Cache, "stage2")
	if err := os.WriteFile(o.Stage2, []byte("second stage"), 0o755); err != nil {
		t.Fatal(err)
	}
	return o
}

// With a full cache nothing is fetched, and equal inputs make equal bundles.
func TestBuildFromCache(t *testing.T) {
	o := fakeCache(t)
	t.Setenv("PATH", t.TempDir()) // no apt, no dpkg-deb, no go
	dir, err := Build(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	b, err := kernel.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Verify(); err != nil {
		t.Error(err)
	}
	if b.Manifest.Kernel != "6.12.1-cloud" || b.Manifest.Flavour != kernel.Stock || b.Manifest.Packages["libc6"] != "1" || b.Manifest.Config["EROFS_FS_BACKED_BY_FILE"] != "y" {
		t.Errorf("%+v", b.Manifest)
	}
	initrd, err := b.ReadInitrd()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"init", "bin/busybox", "bin/sh", "sbin/mke2fs", "sbin/e2fsck", "sbin/sampan-stage2", "etc/mke2fs.conf", "dev/console", "proc", "data",
		"lib/modules/load", "lib/modules/6.12.1-cloud/kernel/net/vsock.ko", "lib/" + triplets[o.Arch] + "/libc.so.6"} {
		if !strings.Contains(string(initrd), name+"\x00") {
			t.Errorf("no %s in the initramfs", name)
		}
	}
	if !strings.Contains(string(initrd), "/lib/modules/6.12.1-cloud/kernel/net/vsock.ko\n\n") {
		t.Error("the list of modules lacks vsock in its first group")
	}

	again := o
	again.Out = t.TempDir()
	dir, err = Build(context.Background(), again)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{kernel.KernelFile, kernel.InitrdFile, kernel.ManifestFile} {
		one, err1 := os.ReadFile(filepath.Join(b.Dir, name))
		two, err2 := os.ReadFile(filepath.Join(dir, name))
		if err1 != nil || err2 != nil || string(one) != string(two) {
			t.Errorf("%s differs (%v, %v)", name, err1, err2)
		}
	}
}

// A build that fails leaves the old bundle, and nothing beside it.
func TestBuildFails(t *testing.T) {
	o := fakeCache(t)
	t.Setenv("PATH", t.TempDir())
	dir, err := Build(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	bad := o
	bad.Agent = "/nonexistent"
	if _, err := Build(context.Background(), bad); err == nil {
		t.Error("built without an agent")
	}
	bad = o
	bad.Refresh, bad.Mirror = true, "http://mirror.example"
	if _, err := Build(context.Background(), bad); err == nil || !strings.Contains(err.Error(), "apt-get: not found") {
		t.Errorf("refreshed without apt: %v", err)
	}
	bad = o
	bad.Arch = "mips"
	if _, err := Build(context.Background(), bad); err == nil || !strings.Contains(err.Error(), `"mips"`) {
		t.Errorf("another architecture: %v", err)
	}
	b, err := kernel.Open(dir)
	if err == nil {
		err = b.Verify()
	}
	if err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(o.Out)
	if err != nil || len(entries) != 1 {
		t.Errorf("beside the bundle: %v, %v", entries, err)
	}
}
