package bundle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
)

// toolPackages are what the tools in the initramfs come from. A library that
// is missing here fails the build by name.
var toolPackages = []string{
	"busybox-static", "e2fsprogs",
	"libext2fs2t64", "libcom-err2", "libblkid1", "libuuid1", "libc6",
}

// packageSet is a set of fetched packages (packages.json in the cache).
type packageSet struct {
	Kernel   string            `json:"kernel"`   // uname -r
	Versions map[string]string `json:"versions"` // package → version
}

var kernelDep = regexp.MustCompile(`^linux-image-(6\.12\.[^ ,]+-cloud-(amd64|arm64))\b`)

// fetch makes sure that the packages are in the cache, and returns them and
// the directory into which all are unpacked. Nothing is fetched when the cache
// is complete, unless refresh.
func fetch(ctx context.Context, o Options) (packageSet, string, error) {
	var set packageSet
	dir := filepath.Join(o.Cache, "guest", o.Arch)
	unlock, err := lockDir(dir)
	if err != nil {
		return set, "", err
	}
	defer unlock()
	record := filepath.Join(dir, "packages.json")
	if err := readJSON(record, &set); err == nil && set.complete() && !o.Refresh {
		tree := filepath.Join(dir, set.treeName())
		if _, err := os.Stat(tree); err == nil {
			return set, tree, nil
		}
	}
	set, tree, err := download(ctx, o, dir)
	if err != nil {
		return set, "", err
	}
	return set, tree, writeJSON(record, set)
}

// lockDir makes a directory of the cache and waits for its lock, which unlock
// gives back, as does the end of the process.
func lockDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		lock.Close()
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	return func() { lock.Close() }, nil
}

func (s packageSet) complete() bool {
	for _, p := range toolPackages {
		if s.Versions[p] == "" {
			return false
		}
	}
	return s.Kernel != "" && s.Versions["linux-image-"+s.Kernel] != ""
}

// treeName names the directory that holds exactly these packages.
func (s packageSet) treeName() string {
	text, err := json.Marshal(s.Versions) // sorted by key
	if err != nil {
		panic(err) // strings can always be encoded
	}
	return "tree-" + s.Versions["linux-image-"+s.Kernel] + "-" + digest(text)[:12]
}

// download resolves the packages' newest versions, fetches what the cache
// lacks, and unpacks them all.
func download(ctx context.Context, o Options, dir string) (set packageSet, tree string, err error) {
	a, err := o.apt(filepath.Join(dir, "apt"))
	if err != nil {
		return set, "", err
	}
	if err := a.update(ctx); err != nil {
		return set, "", err
	}
	meta, err := a.show(ctx, "linux-image-cloud-"+o.Arch)
	if err != nil {
		return set, "", err
	}
	m := kernelDep.FindStringSubmatch(meta["Depends"])
	if m == nil {
		return set, "", fmt.Errorf("%s depends on %q: want a kernel 6.12", meta["Package"], meta["Depends"])
	}
	set = packageSet{Kernel: m[1], Versions: map[string]string{}}
	debs := filepath.Join(dir, "debs")
	if err := os.MkdirAll(debs, 0o755); err != nil {
		return set, "", err
	}
	var missing, files []string
	for _, pkg := range append([]string{"linux-image-" + set.Kernel}, toolPackages...) {
		fields, err := a.show(ctx, pkg)
		if err != nil {
			return set, "", err
		}
		set.Versions[pkg] = fields["Version"]
		file := filepath.Join(debs, debName(fields))
		files = append(files, file)
		// apt gives a file its name only when it is whole and verified.
		if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
			missing = append(missing, pkg+"="+fields["Version"])
		}
	}
	if len(missing) > 0 {
		if err := a.download(ctx, debs, missing...); err != nil {
			return set, "", err
		}
	}
	tree = filepath.Join(dir, set.treeName())
	return set, tree, unpack(ctx, tree, files)
}

// debName is the name that `apt-get download` gives a package's file.
func debName(fields map[string]string) string {
	version := strings.ReplaceAll(url.PathEscape(fields["Version"]), ":", "%3a")
	return fields["Package"] + "_" + version + "_" + fields["Architecture"] + ".deb"
}

// unpack fills tree, which appears only when it is whole.
func unpack(ctx context.Context, tree string, debs []string) error {
	if _, err := os.Stat(tree); err == nil {
		return nil
	}
	tmp, err := os.MkdirTemp(filepath.Dir(tree), ".unpack-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	for _, deb := range debs {
		if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", deb, tmp).CombinedOutput(); err != nil {
			return fmt.Errorf("unpack %s: %w\n%s", filepath.Base(deb), err, out)
		}
	}
	return os.Rename(tmp, tree)
}
