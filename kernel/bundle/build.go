package bundle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"

	"sampan/kernel"
)

// triplets are Debian's library directories, and the architectures we build.
var triplets = map[string]string{
	"amd64": "x86_64-linux-gnu",
	"arm64": "aarch64-linux-gnu",
}

// Options of a build.
type Options struct {
	// Arch as Go names it: amd64 or arm64. Required.
	Arch string
	// Root of the source tree. Required unless Agent and Stage2 are set.
	Root string
	// Kernel is kernel.Stock (the default) or kernel.Tuned, which has to be
	// built before (Kernel).
	Kernel string // optional
	// Out is the directory in which guest-ARCH appears. Required.
	Out string
	// Cache keeps packages between builds. Required.
	Cache string
	// Agent is a program to be /init in place of a freshly built agent.
	Agent string // optional
	// Stage2 is a program to be the runtime's stage 2 in place of a freshly
	// built one.
	Stage2 string // optional
	// Build is the version that the agent tells the host. Optional.
	Build string
	// Mirror and Security replace the machine's own mirrors. Optional.
	Mirror, Security string
	// Refresh looks for newer packages even if the cache is complete.
	Refresh bool
	// Log receives what is done, for people. Required.
	Log io.Writer
}

func (o Options) apt(dir string) (*apt, error) {
	archive, security := o.Mirror, o.Security
	if archive == "" {
		sources, err := readSources("/etc/apt")
		if err != nil {
			return nil, err
		}
		if archive, security, err = mirrors(sources); err != nil {
			return nil, err
		}
	}
	fmt.Fprintf(o.Log, "fetching the guest's kernel and tools from %s\n", archive)
	return newAPT(dir, o.Arch, archive, security, o.Log)
}

// Build makes the bundle Out/guest-ARCH and returns its directory. Cancelling
// ctx leaves the old bundle as it was.
func Build(ctx context.Context, o Options) (string, error) {
	dir, err := build(ctx, o)
	if err != nil {
		return "", fmt.Errorf("make guest bundle: %w", err)
	}
	return dir, nil
}

// stage2Entry is where sampan-stage2 starts: before Go's runtime, which its small
// init does without.
const stage2Entry = "sampan/guest/runtime/stage2.entry"

func build(ctx context.Context, o Options) (string, error) {
	triplet, ok := triplets[o.Arch]
	if !ok {
		return "", fmt.Errorf("architecture %q: want amd64 or arm64", o.Arch)
	}
	agent, err := o.program(ctx, o.Agent, "sampan-agent", "./cmd/sampan-agent", "")
	if err != nil {
		return "", err
	}
	stage2, err := o.program(ctx, o.Stage2, "sampan-stage2", "./guest/runtime/sampan-stage2", stage2Entry)
	if err != nil {
		return "", err
	}
	set, root, err := fetch(ctx, o)
	if err != nil {
		return "", err
	}
	t := skeleton()
	t.file("init", 0o755, agent)
	t.file("sbin/sampan-stage2", 0o755, stage2)
	if err := addTools(t, root, triplet); err != nil {
		return "", err
	}
	m := kernel.Manifest{
		Schema: kernel.Schema, Arch: o.Arch, Agent: digest(agent)[:12], Packages: maps.Clone(set.Versions),
	}
	var image []byte
	switch o.Kernel {
	case "", kernel.Stock:
		image, err = addStock(ctx, t, &m, set, root)
	case kernel.Tuned:
		image, err = o.addTuned(t, &m, set)
	default:
		err = fmt.Errorf("kernel %q: want %s or %s", o.Kernel, kernel.Stock, kernel.Tuned)
	}
	if err != nil {
		return "", err
	}
	var initrd bytes.Buffer
	if err := t.writeCPIO(&initrd); err != nil {
		return "", err
	}
	packed, err := kernel.PackInitrd(initrd.Bytes())
	if err != nil {
		return "", err
	}
	return publish(o, m, map[string][]byte{kernel.KernelFile: image, kernel.InitrdFile: packed})
}

// addStock takes Debian's kernel from the unpacked packages in root, and puts
// its modules into t.
func addStock(ctx context.Context, t tree, m *kernel.Manifest, set packageSet, root string) (image []byte, err error) {
	m.Kernel, m.Flavour = set.Kernel, kernel.Stock
	if m.Config, err = readConfig(filepath.Join(root, "boot", "config-"+set.Kernel)); err != nil {
		return nil, err
	}
	if err := addModules(ctx, t, root, set.Kernel); err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join(root, "boot", "vmlinuz-"+set.Kernel))
}

// addTuned takes our own kernel from the cache. It has no modules.
func (o Options) addTuned(t tree, m *kernel.Manifest, set packageSet) (image []byte, err error) {
	k, err := o.findKernel()
	if err != nil {
		return nil, err
	}
	m.Kernel, m.Flavour = k.Release, kernel.Tuned
	delete(m.Packages, "linux-image-"+set.Kernel)
	m.Packages[sourcePackage] = k.Version
	if m.Config, err = readConfig(k.config()); err != nil {
		return nil, err
	}
	t.file(kernel.ModuleList, 0o644, nil)
	return os.ReadFile(k.image())
}

// program returns one of the guest's own programs: ready, or built from pkg.
func (o Options) program(ctx context.Context, ready, name, pkg, entry string) ([]byte, error) {
	if ready != "" {
		return os.ReadFile(ready)
	}
	tmp, err := os.MkdirTemp("", name+"-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	bin := filepath.Join(tmp, name)
	flags := "-s -w -buildid="
	if o.Build != "" {
		flags += " -X 'main.build=" + o.Build + "'"
	}
	if entry != "" {
		flags += " -E " + entry
	}
	// No VCS stamp: a clone that belongs to another user would fail to build.
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags="+flags, "-o", bin, pkg)
	cmd.Dir = o.Root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+o.Arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build %s: %w\n%s", name, err, bytes.TrimSpace(out))
	}
	return os.ReadFile(bin)
}

// skeleton is the root file system without programs. The root is read-only
// once booted, so every mount point is here.
func skeleton() tree {
	t := tree{}
	for _, d := range []string{"dev", "proc", "sys", "run", "data", "etc", "mnt", "var"} {
		t.dir(d, 0o755)
	}
	t.dir("root", 0o700)
	t.dir("tmp", 0o1777)
	t.char("dev/console", 0o600, 5, 1)
	t.char("dev/null", 0o666, 1, 3)
	t.link("var/run", "/run")
	t.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\n"))
	t.file("etc/group", 0o644, []byte("root:x:0:\n"))
	return t
}

func addModules(ctx context.Context, t tree, root, version string) error {
	dir := filepath.Join(root, "usr/lib/modules", version)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		dir = filepath.Join(root, "lib/modules", version)
	}
	set, err := openModules(dir)
	if err != nil {
		return err
	}
	boot, err := set.resolve(ctx, bootModules)
	if err != nil {
		return err
	}
	late, err := set.resolve(ctx, lateModules)
	if err != nil {
		return err
	}
	where := "/lib/modules/" + version
	for _, m := range append(boot, late...) {
		t.file(where+"/"+m.path, 0o644, m.data)
	}
	t.file(kernel.ModuleList, 0o644, loadList(where, boot, late))
	return nil
}

// readConfig returns the required options of a kernel's configuration.
func readConfig(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	values, err := kernel.ReadConfig(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return values, nil
}

// publish writes the files and the manifest, and puts the directory in place.
func publish(o Options, m kernel.Manifest, files map[string][]byte) (string, error) {
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(o.Out, ".guest-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp) // what was there before, if all went well
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", err
	}
	files = maps.Clone(files)
	m.Files = map[string]kernel.File{}
	for name, data := range files {
		m.Files[name] = kernel.File{Size: int64(len(data)), SHA256: digest(data)}
	}
	manifest, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return "", err
	}
	files[kernel.ManifestFile] = append(manifest, '\n')
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(tmp, name), data, 0o644); err != nil {
			return "", err
		}
	}
	dir := filepath.Join(o.Out, "guest-"+o.Arch)
	return dir, exchange(tmp, dir)
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
