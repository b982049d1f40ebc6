package bundle

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"sampan/kernel"
)

// root of the source tree.
const root = "../.."

// goodConfig has all that is required: the tuned kernel's.
func goodConfig(t *testing.T) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "kernel", "config-amd64"))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestRequiredOptions checks both kernels' configurations: Debian's, and ours
// as it was built on this machine, else as it is checked in (a build fails
// when the two differ).
func TestRequiredOptions(t *testing.T) {
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Root: root, Cache: filepath.Join(cache, "sampan")}
	t.Run("tuned", func(t *testing.T) {
		o := o
		o.Arch = "amd64" // the only one
		path := filepath.Join(root, "kernel", "config-amd64")
		if k, err := o.findKernel(); err == nil {
			path = k.config()
		}
		values, err := readConfig(path)
		if err != nil {
			t.Fatal(err)
		}
		for name, v := range values {
			if v != "y" {
				t.Errorf("%s=%s, want it built in", name, v)
			}
		}
		t.Logf("checked %s", path)
	})
	for arch := range triplets {
		t.Run("stock "+arch, func(t *testing.T) {
			var set packageSet
			dir := filepath.Join(o.Cache, "guest", arch)
			err := readJSON(filepath.Join(dir, "packages.json"), &set)
			if err == nil {
				path := filepath.Join(dir, set.treeName(), "boot", "config-"+set.Kernel)
				if _, err := readConfig(path); err != nil {
					t.Error(err)
				}
				t.Logf("checked %s", path)
				return
			}
			// No package here: a bundle that was brought tells what it was
			// made from.
			b, berr := kernel.Open(filepath.Join(root, "dist", "guest-"+arch))
			switch {
			case berr == nil && b.Manifest.Flavour != kernel.Tuned:
				var text strings.Builder
				for name, v := range b.Manifest.Config {
					text.WriteString("CONFIG_" + name + "=" + v + "\n")
				}
				if _, err := kernel.ReadConfig(strings.NewReader(text.String())); err != nil {
					t.Errorf("%s: %v", b.Dir, err)
				}
				t.Logf("checked the manifest in %s", b.Dir)
			case arch == runtime.GOARCH:
				t.Fatalf("neither Debian's kernel nor a bundle of it is here (%v; %v): run `make guest`", err, berr)
			default:
				t.Skipf("no kernel for %s was fetched on this machine: `make guest ARCH=%s` checks it", arch, arch)
			}
		})
	}
}

// fakeBuild puts programs into PATH that play the kernel's build, and the
// source's package into the cache. Each make is a line of the file calls.
func fakeBuild(t *testing.T, o *Options) (calls string) {
	t.Helper()
	bin := t.TempDir()
	calls = filepath.Join(bin, "calls")
	for name, body := range map[string]string{
		"dpkg-deb": `/bin/mkdir -p "$3/usr/src"`,
		"tar":      `/bin/mkdir "$2/linux-source-6.12"`,
		"strip":    `/bin/cp "$4" "$3"`,
		"make": `for a; do case $a in O=*) out=${a#O=};; KCONFIG_ALLCONFIG=*) part=${a#*=};; esac; last=$a; done
echo "$last" >> ` + calls + `
case $last in
allnoconfig) /bin/grep -v LOST "$part" > "$out/.config"; echo CONFIG_MORE=y >> "$out/.config";;
vmlinux) /bin/mkdir -p "$out/include/config"; echo 6.12.9-test > "$out/include/config/kernel.release"; echo image > "$out/vmlinux";;
esac`,
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\nset -e\n"+body+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin)
	o.Root = t.TempDir()
	writeFragment(t, o, goodConfig(t))
	debs := filepath.Join(o.kernelCache(), "debs")
	if err := os.MkdirAll(debs, 0o755); err != nil {
		t.Fatal(err)
	}
	src := sourceDeb{Version: "6.12.9-1", SHA256: "abc", File: "linux-source.deb"}
	if err := os.WriteFile(filepath.Join(debs, src.File), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := writeJSON(filepath.Join(o.kernelCache(), "source.json"), src); err != nil {
		t.Fatal(err)
	}
	return calls
}

func writeFragment(t *testing.T, o *Options, text []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(o.Root, "kernel"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(o.Root, "kernel", "config-"+o.Arch), text, 0o644); err != nil {
		t.Fatal(err)
	}
}

// A kernel is built once for each source and configuration, and a bundle with
// it has no modules.
func TestTuned(t *testing.T) {
	o := fakeCache(t)
	calls := fakeBuild(t, &o)
	o.Kernel = kernel.Tuned
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "run `make kernel`") {
		t.Errorf("a bundle with a kernel that is not built: error %v", err)
	}
	for range 2 {
		release, err := Kernel(t.Context(), o, "")
		if err != nil || release != "6.12.9-test" {
			t.Fatalf("%q, %v", release, err)
		}
	}
	if text, _ := os.ReadFile(calls); string(text) != "allnoconfig\nvmlinux\n" {
		t.Errorf("make was called for:\n%s", text)
	}
	left, err := filepath.Glob(filepath.Join(o.kernelCache(), ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left in the cache: %s, %v", left, err)
	}
	dir, err := Build(t.Context(), o)
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
	m := b.Manifest
	if m.Kernel != "6.12.9-test" || m.Flavour != kernel.Tuned || m.Packages[sourcePackage] != "6.12.9-1" || m.Packages["linux-image-6.12.1-cloud"] != "" || m.Config["BRIDGE"] != "y" {
		t.Errorf("manifest %+v", m)
	}
	if image, err := os.ReadFile(b.Kernel); err != nil || string(image) != "image\n" {
		t.Errorf("kernel %q, %v", image, err)
	}
	initrd, err := b.ReadInitrd()
	if err != nil || strings.Contains(string(initrd), ".ko\x00") || !strings.Contains(string(initrd), strings.TrimPrefix(kernel.ModuleList, "/")+"\x00") {
		t.Errorf("the initramfs has modules, or no empty list of them (%v)", err)
	}

	writeFragment(t, &o, append(goodConfig(t), "CONFIG_NEW=y\n"...))
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "of this configuration is not built") {
		t.Errorf("a bundle after the configuration has changed: error %v", err)
	}
}

// A configuration that the source does not take fails the build by name.
func TestTunedFails(t *testing.T) {
	o := fakeCache(t)
	fakeBuild(t, &o)
	for _, tt := range []struct{ fragment, want string }{
		{string(goodConfig(t)) + "CONFIG_LOST=y\n", "would not take CONFIG_LOST:"},
		{string(goodConfig(t)) + "CONFIG_MORE=n\n", "would not take CONFIG_MORE:"},
		{"CONFIG_64BIT=y\n", "required options are off: VIRTIO_PCI"},
	} {
		writeFragment(t, &o, []byte(tt.fragment))
		if _, err := Kernel(t.Context(), o, ""); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("error %v, want %q", err, tt.want)
		}
	}
	o.Arch = "mips"
	if _, err := Kernel(t.Context(), o, ""); err == nil || !strings.Contains(err.Error(), "no tuned kernel for mips") {
		t.Errorf("another architecture: error %v", err)
	}
}
