package bundle

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Modules that the guest loads, in two groups. One that is built into the
// kernel is left out; one that doesn't exist fails the build.
var (
	// bootModules: the machine can't serve without them.
	bootModules = []string{
		"virtio_pci", "vsock", "vmw_vsock_virtio_transport",
		"virtio_blk", "ext4",
		"fuse", "virtiofs", "erofs", "overlay",
		"virtio_net",
		"virtio_balloon", // before the machine's second processor; see guest/boot
	}
	// lateModules: wanted by the first container's network, or by comfort.
	lateModules = []string{
		"bridge", "veth",
		"nf_tables", "nft_ct", "nft_chain_nat", "nft_masq", "nft_nat", // guest/network's tables
		"tun", "af_packet",
		"virtio_console", "virtio_rng",
	}
)

// module is one that is a file.
type module struct {
	name string // with underscores
	path string // in the kernel's package, ending in .ko
	data []byte // decompressed
}

// moduleSet reads modules out of a package's tree. Which module needs which is
// written in the modules themselves, so no depmod has to run.
type moduleSet struct {
	dir     string            // lib/modules/VERSION
	files   map[string]string // name → path below dir
	builtin map[string]bool
	loaded  map[string]bool
}

func openModules(dir string) (*moduleSet, error) {
	s := &moduleSet{dir: dir, files: map[string]string{}, builtin: map[string]bool{}, loaded: map[string]bool{}}
	text, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	for _, line := range strings.Fields(string(text)) {
		s.builtin[moduleName(line)] = true
	}
	err = filepath.WalkDir(filepath.Join(dir, "kernel"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.Contains(d.Name(), ".ko") {
			s.files[moduleName(path)] = path
		}
		return err
	})
	return s, err
}

// moduleName of a file: names use underscores where files may have dashes.
func moduleName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// resolve returns the files behind names and all they depend on, each after
// what it needs. What an earlier call returned is left out.
func (s *moduleSet) resolve(ctx context.Context, names []string) ([]module, error) {
	var out []module
	for _, name := range names {
		name = moduleName(name)
		if s.loaded[name] || s.builtin[name] {
			continue
		}
		path, ok := s.files[name]
		if !ok {
			return nil, fmt.Errorf("kernel module %s: neither a file nor built in", name)
		}
		s.loaded[name] = true
		data, err := readModule(ctx, path)
		if err != nil {
			return nil, fmt.Errorf("kernel module %s: %w", name, err)
		}
		needs, err := dependencies(data)
		if err != nil {
			return nil, fmt.Errorf("kernel module %s: %w", name, err)
		}
		below, err := s.resolve(ctx, needs)
		if err != nil {
			return nil, fmt.Errorf("%s needs: %w", name, err)
		}
		path, _, _ = strings.Cut(strings.TrimPrefix(path, s.dir+"/"), ".ko")
		out = append(out, below...)
		out = append(out, module{name: name, path: path + ".ko", data: data})
	}
	return out, nil
}

func readModule(ctx context.Context, path string) ([]byte, error) {
	switch filepath.Ext(path) {
	case ".ko":
		return os.ReadFile(path)
	case ".xz":
		var diag bytes.Buffer
		cmd := exec.CommandContext(ctx, "xz", "-dc", path)
		cmd.Stderr = &diag
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("xz: %w %s", err, bytes.TrimSpace(diag.Bytes()))
		}
		return out, nil
	default:
		return nil, fmt.Errorf("%s: unknown compression", path)
	}
}

// dependencies reads "depends=a,b" from the module's information section.
func dependencies(ko []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(ko))
	if err != nil {
		return nil, err
	}
	sec := f.Section(".modinfo")
	if sec == nil {
		return nil, fmt.Errorf("no section .modinfo")
	}
	info, err := sec.Data()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, field := range bytes.Split(info, []byte{0}) {
		if list, ok := bytes.CutPrefix(field, []byte("depends=")); ok {
			out = append(out, strings.Split(string(list), ",")...)
		}
	}
	return slices.DeleteFunc(out, func(s string) bool { return s == "" }), nil
}

// loadList is the text of the initramfs's list of modules.
func loadList(root string, boot, late []module) []byte {
	var b bytes.Buffer
	for i, group := range [][]module{boot, late} {
		if i > 0 {
			b.WriteByte('\n')
		}
		for _, m := range group {
			fmt.Fprintf(&b, "%s/%s\n", root, m.path)
		}
	}
	return b.Bytes()
}
