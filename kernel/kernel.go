// Package kernel is the guest bundle: the files that a machine boots.
//
// A bundle is one directory with three files:
//
//	vmlinuz        the kernel: as Debian's package ships it, or, tuned for
//	               amd64, an ELF image that QEMU loads by its PVH entry
//	initrd.zst     a newc archive: the agent as /init, its tools and the kernel
//	               modules it loads, if the kernel has any. The host unpacks it for
//	               each boot, which a guest would be slower at
//	manifest.json  what they are, their sizes and digests (Manifest)
//
// The package finds, opens and verifies bundles; kernel/bundle makes them.
//
// Hazard: `make guest` replaces the directory by a rename, so a path may lead
// to another bundle the next time it is opened. Whoever needs the bytes that
// were verified holds on to the files (Hold), not to the path.
package kernel

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
)

// Schema of the manifest. A bundle of another schema is refused.
const Schema = 2

// Names of the files of a bundle.
const (
	KernelFile   = "vmlinuz"
	InitrdFile   = "initrd.zst"
	ManifestFile = "manifest.json"
)

// Flavours of the kernel.
const (
	Stock = "stock" // Debian's own, with modules
	Tuned = "tuned" // Debian's source built with kernel/config-ARCH, without
)

// ModuleList is the file in the initramfs that names the modules to load: one
// absolute path a line, in dependency order. The first group, up to an empty
// line, is needed to boot; the second by the first container's network and
// may be loaded while the machine already serves.
const ModuleList = "/lib/modules/load"

// Cmdline is what the bundle's kernel is told on every machine.
//
// Huge pages go to programs that ask for them (madvise), as a tuned kernel's
// configuration has it: given to everybody they double the agent's memory. The
// agent is the first to run, so it can't be the one to set this. No device here
// needs bounce buffers (swiotlb), 64 MiB where the guest has memory above 4 GiB.
// The table of connections is gone through as a whole every now and then, already
// in the boot, and has 65,536 chains with 2 GiB: where it is no module it gets fewer
// (with as many connections as the guest allows, a chain has 32).
const Cmdline = "transparent_hugepage=madvise swiotlb=noforce nf_conntrack.hashsize=16384"

// Manifest describes a bundle (manifest.json).
type Manifest struct {
	Schema int `json:"schema"`
	// Arch as Go names it: amd64, arm64.
	Arch string `json:"arch"`
	// Kernel is the version as `uname -r` tells it.
	Kernel string `json:"kernel"`
	// Flavour is Stock or Tuned.
	Flavour string `json:"flavour"`
	// Agent is the build of the agent: the first 12 hex digits of its sha256.
	Agent string `json:"agent"`
	// Files by name, each in the bundle's directory.
	Files map[string]File `json:"files"`
	// Config has the options of the kernel's configuration that the guest
	// depends on, with their values (y or m).
	Config map[string]string `json:"config"`
	// Packages that the bundle was made from, with their versions.
	Packages map[string]string `json:"packages"`
}

// File is the size and the digest of one file.
type File struct {
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"` // lower-case hex
}

// Bundle is an opened bundle.
type Bundle struct {
	Dir string
	// Kernel is the path of a file.
	Kernel string
	// PackedInitrd too: UnpackInitrd makes of it what boots.
	PackedInitrd string
	Manifest     Manifest

	held []*os.File // by Hold
}

// Release ends what Hold began; the bundle is of no use after it. Idempotent.
func (b *Bundle) Release() {
	for _, f := range b.held {
		f.Close()
	}
	b.held = nil
}

// Open reads the manifest of the bundle in dir. It says what is missing, but
// reads no other file: see Verify.
func Open(dir string) (*Bundle, error) {
	text, err := os.ReadFile(filepath.Join(dir, ManifestFile))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("no guest bundle in %s (%w): run `make guest`", dir, err)
		}
		return nil, fmt.Errorf("guest bundle: %w", err)
	}
	b := &Bundle{
		Dir:          dir,
		Kernel:       filepath.Join(dir, KernelFile),
		PackedInitrd: filepath.Join(dir, InitrdFile),
	}
	if err := json.Unmarshal(text, &b.Manifest); err != nil {
		return nil, fmt.Errorf("guest bundle: %s: %w", filepath.Join(dir, ManifestFile), err)
	}
	if b.Manifest.Schema != Schema {
		return nil, fmt.Errorf("guest bundle in %s has schema %d, not %d: run `make guest`", dir, b.Manifest.Schema, Schema)
	}
	for _, name := range []string{KernelFile, InitrdFile} {
		if _, ok := b.Manifest.Files[name]; !ok {
			return nil, fmt.Errorf("guest bundle in %s: the manifest lacks %s: run `make guest`", dir, name)
		}
	}
	return b, nil
}

// Verify compares sizes and digests of the bundle's files with the manifest.
// It reads all of them, at the same time.
func (b *Bundle) Verify() error {
	var (
		wg   sync.WaitGroup
		errs = make([]error, 2)
	)
	wg.Go(func() { errs[0] = verify(b.Kernel, KernelFile, b.Manifest) })
	wg.Go(func() { errs[1] = verify(b.PackedInitrd, InitrdFile, b.Manifest) })
	wg.Wait()
	return errors.Join(errs...)
}

// verify compares the file at path with what the manifest says of name.
func verify(path, name string, m Manifest) error {
	want := m.Files[name]
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("guest bundle: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return fmt.Errorf("guest bundle: read %s: %w", name, err)
	}
	if n != want.Size {
		return fmt.Errorf("guest bundle: %s has %d bytes, the manifest says %d: run `make guest`", name, n, want.Size)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want.SHA256 {
		return fmt.Errorf("guest bundle: %s has sha256 %s, the manifest says %s: run `make guest`", name, got, want.SHA256)
	}
	return nil
}
