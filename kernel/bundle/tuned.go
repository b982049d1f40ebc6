package bundle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"sampan/kernel"
)

// The tuned kernel is Debian's source, built with kernel/config-ARCH: all that
// the guest needs is built in, and nothing else is there.
//
//	Cache/kernel/ARCH/source.json   the newest source package that was seen
//	                 /debs          that package
//	                 /KEY           one kernel, by the hash of what it is made from

// sourcePackage has the kernel's source as /usr/src/NAME.tar.xz.
const sourcePackage = "linux-source-6.12"

// recipe changes when equal source and configuration shall give another kernel.
const recipe = "1: vmlinux, stripped"

// tuned is a kernel that was built (kernel.json in its directory).
type tuned struct {
	Release string `json:"release"` // uname -r
	Version string `json:"version"` // of the source package
	SHA256  string `json:"sha256"`  // of the source package
	dir     string
}

func (k *tuned) image() string  { return filepath.Join(k.dir, "vmlinux") }
func (k *tuned) config() string { return filepath.Join(k.dir, "config") }

// sourceDeb is the package that a kernel is built from (source.json).
type sourceDeb struct {
	Version string `json:"version"`
	SHA256  string `json:"sha256"`
	File    string `json:"file"` // below debs
}

// Kernel builds the tuned kernel, unless the cache has it, and returns its
// version. It takes some fifteen minutes of a processor. work is a directory
// that keeps source and objects, so that after a change of the configuration
// only what it concerns is compiled again; empty: a temporary one.
func Kernel(ctx context.Context, o Options, work string) (string, error) {
	k, err := o.buildKernel(ctx, work)
	if err != nil {
		return "", fmt.Errorf("make kernel: %w", err)
	}
	return k.Release, nil
}

func (o Options) kernelCache() string { return filepath.Join(o.Cache, "kernel", o.Arch) }

// fragment reads the configuration, which is what differs from allnoconfig.
func (o Options) fragment() ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(o.Root, "kernel", "config-"+o.Arch))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("there is no tuned kernel for %s (%w): use Debian's", o.Arch, err)
	}
	return text, err
}

// findKernel returns the kernel of today's configuration from the cache.
func (o Options) findKernel() (*tuned, error) {
	fragment, err := o.fragment()
	if err != nil {
		return nil, err
	}
	var src sourceDeb
	if err := readJSON(filepath.Join(o.kernelCache(), "source.json"), &src); err != nil {
		return nil, fmt.Errorf("the tuned kernel is not built (%w): run `make kernel`", err)
	}
	k := &tuned{dir: o.kernelDir(src, fragment)}
	if err := readJSON(filepath.Join(k.dir, "kernel.json"), k); err != nil {
		return nil, fmt.Errorf("the tuned kernel of this configuration is not built (%w): run `make kernel`", err)
	}
	return k, nil
}

// kernelDir is named by the hash of all that the kernel is made from.
func (o Options) kernelDir(src sourceDeb, fragment []byte) string {
	key := digest([]byte(recipe + "\n" + src.SHA256 + "\n" + string(fragment)))[:16]
	return filepath.Join(o.kernelCache(), key)
}

func (o Options) buildKernel(ctx context.Context, work string) (*tuned, error) {
	fragment, err := o.fragment()
	if err != nil {
		return nil, err
	}
	if o.Arch != runtime.GOARCH {
		return nil, fmt.Errorf("this machine's compiler makes code for %s, not for %s", runtime.GOARCH, o.Arch)
	}
	cache := o.kernelCache()
	unlock, err := lockDir(cache)
	if err != nil {
		return nil, err
	}
	defer unlock()
	src, err := o.source(ctx)
	if err != nil {
		return nil, err
	}
	if k, err := o.findKernel(); err == nil {
		return k, nil
	}
	if work == "" {
		if work, err = os.MkdirTemp(cache, ".work-"); err != nil {
			return nil, err
		}
		defer os.RemoveAll(work)
	}
	dir := o.kernelDir(src, fragment)
	if err := o.compile(ctx, src, fragment, work, dir); err != nil {
		return nil, err
	}
	return o.findKernel()
}

// source makes sure that the source package is in the cache.
func (o Options) source(ctx context.Context) (src sourceDeb, err error) {
	cache := o.kernelCache()
	record, debs := filepath.Join(cache, "source.json"), filepath.Join(cache, "debs")
	if err := readJSON(record, &src); err == nil && !o.Refresh {
		if _, err := os.Stat(filepath.Join(debs, src.File)); err == nil {
			return src, nil
		}
	}
	if err := os.MkdirAll(debs, 0o755); err != nil {
		return src, err
	}
	a, err := o.apt(filepath.Join(cache, "apt"))
	if err != nil {
		return src, err
	}
	if err := a.update(ctx); err != nil {
		return src, err
	}
	fields, err := a.show(ctx, sourcePackage)
	if err != nil {
		return src, err
	}
	src = sourceDeb{Version: fields["Version"], SHA256: fields["SHA256"], File: debName(fields)}
	if _, err := os.Stat(filepath.Join(debs, src.File)); errors.Is(err, os.ErrNotExist) {
		if err := a.download(ctx, debs, sourcePackage+"="+src.Version); err != nil {
			return src, err
		}
	}
	return src, writeJSON(record, src)
}

// compile fills dir, which appears only when it is whole.
func (o Options) compile(ctx context.Context, src sourceDeb, fragment []byte, work, dir string) error {
	tree, objects := filepath.Join(work, sourcePackage), filepath.Join(work, "build")
	if err := o.unpackSource(ctx, src, work); err != nil {
		return err
	}
	if err := os.MkdirAll(objects, 0o755); err != nil {
		return err
	}
	part := filepath.Join(work, "fragment")
	if err := os.WriteFile(part, fragment, 0o644); err != nil {
		return err
	}
	fmt.Fprintf(o.Log, "building Linux from %s %s\n", sourcePackage, src.Version)
	if err := o.make(ctx, tree, "O="+objects, "KCONFIG_ALLCONFIG="+part, "allnoconfig"); err != nil {
		return err
	}
	config, err := os.ReadFile(filepath.Join(objects, ".config"))
	if err != nil {
		return err
	}
	if err := heeded(fragment, config); err != nil {
		return err
	}
	if _, err := kernel.ReadConfig(bytes.NewReader(config)); err != nil {
		return err
	}
	if err := o.make(ctx, tree, "O="+objects, "-j"+strconv.Itoa(runtime.NumCPU()), "vmlinux"); err != nil {
		return err
	}
	release, err := os.ReadFile(filepath.Join(objects, "include", "config", "kernel.release"))
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".kernel-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	k := &tuned{Release: strings.TrimSpace(string(release)), Version: src.Version, SHA256: src.SHA256, dir: tmp}
	if err := o.run(ctx, work, "strip", "-s", "-o", k.image(), filepath.Join(objects, "vmlinux")); err != nil {
		return err
	}
	if err := os.WriteFile(k.config(), config, 0o644); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(tmp, "kernel.json"), k); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}

// unpackSource fills work with the source, unless it is there.
func (o Options) unpackSource(ctx context.Context, src sourceDeb, work string) error {
	mark := filepath.Join(work, "source.json")
	var there sourceDeb
	if err := readJSON(mark, &there); err == nil && there == src {
		return nil
	}
	if err := os.RemoveAll(filepath.Join(work, sourcePackage)); err != nil {
		return err
	}
	deb, err := os.MkdirTemp(o.kernelCache(), ".deb-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(deb)
	if err := o.run(ctx, deb, "dpkg-deb", "-x", filepath.Join(o.kernelCache(), "debs", src.File), deb); err != nil {
		return err
	}
	if err := os.MkdirAll(work, 0o755); err != nil {
		return err
	}
	if err := o.run(ctx, deb, "tar", "-C", work, "-xf", filepath.Join(deb, "usr", "src", sourcePackage+".tar.xz")); err != nil {
		return err
	}
	return writeJSON(mark, src)
}

// make runs the kernel's own. Who built it, where and when is left out, so that
// equal inputs make equal bytes.
func (o Options) make(ctx context.Context, tree string, args ...string) error {
	env := []string{"KBUILD_BUILD_TIMESTAMP=1970-01-01", "KBUILD_BUILD_USER=sampan", "KBUILD_BUILD_HOST=sampan", "KBUILD_BUILD_VERSION=1"}
	return o.run(ctx, tree, "make", append(append([]string{"-s"}, env...), args...)...)
}

// run runs a program; its words are the error's, or go to the log.
func (o Options) run(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "MAKEFLAGS=", "MAKELEVEL=")
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%s: not found: `make kernel` installs what building needs", name)
	}
	if err != nil {
		const most = 4 << 10
		return fmt.Errorf("%s %s: %w\n%s", name, args[len(args)-1], err, out[max(0, len(out)-most):])
	}
	return nil
}

// heeded says which of the fragment's lines are not in config: the kernel's
// configurator drops silently what lacks something else, or doesn't exist.
func heeded(fragment, config []byte) error {
	have := map[string]string{}
	for line := range strings.Lines(string(config)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			have[name] = value
		}
	}
	var lost []string
	for line := range strings.Lines(string(fragment)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || strings.HasPrefix(name, "#") {
			continue
		}
		if value == "n" {
			value = ""
		}
		if have[name] != value {
			lost = append(lost, name)
		}
	}
	if len(lost) > 0 {
		return fmt.Errorf("the kernel's configuration would not take %s: an option that it needs is off, or it does not exist", strings.Join(lost, " "))
	}
	return nil
}

func readJSON(path string, v any) error {
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, v)
	}
	return err
}

func writeJSON(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}
