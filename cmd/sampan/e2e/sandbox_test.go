package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"sampan/host/imagetest"
)

// sandboxDir has the cases, the specs that Docker made of them, and which
// differences are allowed.
var sandboxDir = filepath.Join("testdata", "sandbox")

// makeSandbox makes two images: of the probe alone, and of crun with the probe
// and the specs.
func makeSandbox(root, images string) error {
	if runtime.GOARCH != "amd64" {
		return nil // the specs are of amd64
	}
	probe := filepath.Join(images, "probe")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", probe, "./cmd/sampan/e2e/probe")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build probe: %w\n%s", err, out)
	}
	program, err := os.ReadFile(probe)
	if err != nil {
		return err
	}
	own := imagetest.File{Name: "probe", Mode: 0o755, Data: program}
	if err := archive(filepath.Join(images, "probe.tar"), "probe:latest", v1.Config{Cmd: []string{"/probe"}}, nil, own); err != nil {
		return err
	}
	more := []imagetest.File{own, {Name: "files/"}, {Name: "specs/"}}
	for _, name := range []string{"hosts", "hostname", "resolv.conf", "docker-init"} {
		f := imagetest.File{Name: "files/" + name, Data: []byte("0123456789ab\n")}
		if name == "docker-init" {
			if f.Data, err = os.ReadFile(filepath.Join(root, "dist", "root-tini", "usr/bin/tini-static")); err != nil {
				return fmt.Errorf("%w: run `make dist/root-tini`", err)
			}
			f.Mode = 0o755
		}
		more = append(more, f)
	}
	named, err := readSpecs()
	if err != nil {
		return err
	}
	for name, spec := range named {
		text, err := json.Marshal(spec)
		if err != nil {
			return err
		}
		more = append(more, imagetest.File{Name: "specs/" + name + ".json", Data: text})
	}
	tree, err := imagetest.TreeLayer(filepath.Join(root, "dist", "root-crun"))
	if err != nil {
		return fmt.Errorf("%w: run `make dist/root-crun`", err)
	}
	return archive(filepath.Join(images, "crun.tar"), "crun:latest", v1.Config{Env: []string{"PATH=/usr/bin"}}, []v1.Layer{tree}, more...)
}

func archive(file, tag string, cfg v1.Config, layers []v1.Layer, top ...imagetest.File) error {
	layer, err := imagetest.Layer(top...)
	if err != nil {
		return err
	}
	img, err := imagetest.Image(cfg, append(layers, layer)...)
	if err != nil {
		return err
	}
	return imagetest.Archive(file, tag, img)
}

// sandboxCase is a line of cases.txt.
type sandboxCase struct {
	name    string
	often   bool // in make test, too
	options []string
}

func sandboxCases(t testing.TB) []sandboxCase {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(sandboxDir, "cases.txt"))
	if err != nil {
		t.Fatal(err)
	}
	profile := filepath.Join(files.dir, sandboxDir, "profile.json")
	var list []sandboxCase
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, rest, _ := strings.Cut(line, " ")
		c := sandboxCase{name: strings.TrimSuffix(name, "*"), often: strings.HasSuffix(name, "*")}
		for i, part := range strings.Split(rest, "'") { // quoted: every second
			if i%2 == 1 {
				c.options = append(c.options, part)
				continue
			}
			c.options = append(c.options, strings.Fields(strings.ReplaceAll(part, "$PROFILE", profile))...)
		}
		list = append(list, c)
	}
	return list
}

// What a process sees and may do in a container of ours is what it sees and may
// do in one that crun makes of the spec that dockerd gave it, in the same guest;
// but for what allowed.txt lists, and docs/security.md explains.
func TestSandbox(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		skip(t, "the specs are of amd64")
	}
	onceAsUser(t)
	allowed := readAllowed(t)
	h := newHome(t)
	for _, image := range []string{"probe.tar", "crun.tar"} {
		h.sampan(t, "load", "-q", "-i", filepath.Join(files.dir, "images", image))
	}
	h.sampan(t, "run", "-d", "--name", "crun", "--privileged", "--network", "host", "--pid", "host", "--ipc", "host", "--uts", "host",
		"--cgroupns", "host", "crun", "busybox", "sleep", "100000")
	h.sampan(t, "run", "-d", "--name", "owner", "--network", "none", "--ipc", "shareable", "probe", "/probe", "sleep")
	for _, c := range sandboxCases(t) {
		if !c.often && !nightly() {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			network := []string{"--network", "none"}
			if slices.Contains(c.options, "--network") {
				network = nil
			}
			ours, err := facts(h.sampan(t, slices.Concat([]string{"run", "--rm"}, network, c.options, []string{"probe"})...))
			if err != nil {
				t.Fatal(err)
			}
			exec := []string{"exec"}
			if slices.Contains(c.options, "-t") {
				exec = append(exec, "-t")
			}
			// crun drops what a terminal that is full for a moment does not take.
			var theirs map[string]string
			for range 5 {
				if theirs, err = facts(h.sampan(t, append(exec, "crun", "/probe", "crun", c.name)...)); err == nil {
					break
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(ours) < 1000 || len(theirs) < 1000 {
				t.Fatalf("only %d and %d facts", len(ours), len(theirs))
			}
			if slices.Contains(c.options, "--pid") && ours["process 1 trace"] == "" {
				t.Error("nothing was tried with another's process")
			}
			keys := maps.Clone(ours)
			maps.Copy(keys, theirs)
			for _, key := range slices.Sorted(maps.Keys(keys)) {
				if ours[key] != theirs[key] && !allowed.permit(c.name, key) {
					t.Errorf("%s: ours %q, crun's %q", key, ours[key], theirs[key])
				}
			}
		})
	}
	if nightly() {
		for _, a := range allowed {
			if !a.used {
				t.Errorf("allowed.txt: there is no difference %s %s", a.in, a.key)
			}
		}
	}
}

// facts reads what the probe has printed.
func facts(text string) (map[string]string, error) {
	var all map[string]string
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return nil, fmt.Errorf("%w: %q", err, text)
	}
	id := regexp.MustCompile(`^[0-9a-f]{12}$`)
	for k, v := range all {
		if id.MatchString(v) {
			all[k] = "ID"
		}
	}
	return all, nil
}

// allowance is a line of allowed.txt: the cases and the facts, as patterns of
// path.Match.
type allowance struct {
	in, key, heading string
	used             bool
}

type allowances []*allowance

func (list allowances) permit(name, key string) bool {
	for _, a := range list {
		in, err := path.Match(a.in, name)
		// A pattern's * goes over slashes.
		of, err2 := path.Match(strings.ReplaceAll(a.key, "/", "|"), strings.ReplaceAll(key, "/", "|"))
		if in && of && errors.Join(err, err2) == nil {
			a.used = true
			return true
		}
	}
	return false
}

// readAllowed reads "# HEADING" and the "CASES FACTS" below it.
func readAllowed(t *testing.T) allowances {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(sandboxDir, "allowed.txt"))
	if err != nil {
		t.Fatal(err)
	}
	var list allowances
	heading := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if h, ok := strings.CutPrefix(line, "# "); ok {
			heading = h
		} else if line != "" {
			in, key, _ := strings.Cut(line, " ")
			list = append(list, &allowance{in: in, key: strings.TrimSpace(key), heading: heading})
		}
	}
	return list
}

// Every difference that the test lets pass is explained.
func TestSandboxExplained(t *testing.T) {
	root, err := repository()
	if os.Getenv(dirEnv) != "" {
		skip(t, "as an ordinary user there are no sources")
	}
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "docs", "security.md"))
	if err != nil {
		t.Fatal(err)
	}
	table := map[string]bool{}
	_, list, _ := strings.Cut(string(text), "## Differences to Docker")
	for line := range strings.Lines(list) {
		if cells := strings.Split(line, "|"); len(cells) > 2 {
			table[strings.TrimSpace(cells[1])] = false
		}
	}
	delete(table, "difference")
	delete(table, "---")
	for _, a := range readAllowed(t) {
		if _, ok := table[a.heading]; !ok {
			t.Errorf("docs/security.md does not explain %q", a.heading)
		}
		table[a.heading] = true
	}
	for what, known := range table {
		if !known {
			t.Errorf("docs/security.md explains %q, which allowed.txt doesn't allow", what)
		}
	}
}

// readSpecs joins the specs with their filters, which many share.
func readSpecs() (map[string]*specs.Spec, error) {
	named := map[string]*specs.Spec{}
	list, err := filepath.Glob(filepath.Join(sandboxDir, "specs", "*.json"))
	if err != nil {
		return nil, err
	}
	for _, file := range list {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		spec := new(specs.Spec)
		if err := json.Unmarshal(text, spec); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if filter := spec.Annotations[filterNote]; filter != "" {
			spec.Annotations = nil
			if text, err = os.ReadFile(filepath.Join(sandboxDir, "specs", filter)); err != nil {
				return nil, err
			}
			if err := json.Unmarshal(text, &spec.Linux.Seccomp); err != nil {
				return nil, fmt.Errorf("%s: %w", filter, err)
			}
		}
		named[strings.TrimSuffix(filepath.Base(file), ".json")] = spec
	}
	return named, nil
}

// filterNote names the file of a spec's seccomp filter.
const filterNote = "filter"

// TestRecordSandbox writes testdata/sandbox/specs: what dockerd of the guest's
// Debian gives to its runtime. It runs only when asked to, in Sampan's guest:
//
//	make dist/root-dockerd && SAMPAN_RECORD=1 go test -run TestRecordSandbox ./cmd/sampan/e2e
func TestRecordSandbox(t *testing.T) {
	if os.Getenv("SAMPAN_RECORD") == "" {
		skip(t, "SAMPAN_RECORD is not set")
	}
	root, err := repository()
	if err != nil {
		t.Fatal(err)
	}
	tree, err := imagetest.TreeLayer(filepath.Join(root, "dist", "root-dockerd"))
	if err != nil {
		t.Fatalf("%v: run `make dist/root-dockerd`", err)
	}
	top := []imagetest.File{{Name: "sandbox/"}}
	for _, name := range []string{"cases.txt", "profile.json", "record.sh"} {
		text, err := os.ReadFile(filepath.Join(sandboxDir, name))
		if err != nil {
			t.Fatal(err)
		}
		top = append(top, imagetest.File{Name: "sandbox/" + name, Data: text})
	}
	program, err := os.ReadFile(filepath.Join(files.dir, "images", "probe"))
	if err != nil {
		t.Fatal(err)
	}
	top = append(top, imagetest.File{Name: "sandbox/probe", Mode: 0o755, Data: program})
	image := filepath.Join(t.TempDir(), "dockerd.tar")
	if err := archive(image, "dockerd:latest", v1.Config{}, []v1.Layer{tree}, top...); err != nil {
		t.Fatal(err)
	}
	h := newHome(t)
	h.sampan(t, "load", "-q", "-i", image)
	h.sampan(t, "run", "-d", "--name", "record", "--privileged", "--cgroupns", "host", "dockerd", "sh", "/sandbox/record.sh")
	h.env = nil
	if code := strings.TrimSpace(h.waitLong(t, "record")); code != "0" {
		t.Fatalf("record.sh: %s\n%s", code, h.sampan(t, "logs", "record"))
	}
	out := t.TempDir()
	h.sampan(t, "cp", "record:/out", out)
	if err := keepSpecs(filepath.Join(out, "out")); err != nil {
		t.Fatal(err)
	}
}

// waitLong is `sampan wait`, which may take a few minutes.
func (h *home) waitLong(t *testing.T, name string) string {
	t.Helper()
	for range 4 {
		if r := h.try(t, "", "timeout", "100", filepath.Join(files.bin, "sampan"), "wait", name); r.code == 0 {
			return r.stdout
		}
	}
	return "too slow"
}

// keepSpecs normalises what was recorded.
func keepSpecs(dir string) error {
	target := filepath.Join(sandboxDir, "specs")
	if err := errors.Join(os.RemoveAll(target), os.MkdirAll(target, 0o755)); err != nil {
		return err
	}
	filters := map[string]string{} // name by text
	return filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if filepath.Ext(file) != ".json" {
			return os.WriteFile(filepath.Join(target, d.Name()), text, 0o644)
		}
		var spec specs.Spec
		if err := json.Unmarshal(text, &spec); err != nil {
			return err
		}
		name := strings.TrimSuffix(d.Name(), ".json")
		normalise(&spec, name)
		if spec.Linux.Seccomp != nil {
			filter, err := json.MarshalIndent(spec.Linux.Seccomp, "", " ")
			if err != nil {
				return err
			}
			if filters[string(filter)] == "" {
				filters[string(filter)] = name + ".filter"
				if err := os.WriteFile(filepath.Join(target, name+".filter"), append(filter, '\n'), 0o644); err != nil {
					return err
				}
			}
			spec.Annotations = map[string]string{filterNote: filters[string(filter)]}
			spec.Linux.Seccomp = nil
		}
		if text, err = json.MarshalIndent(spec, "", " "); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(target, d.Name()), append(text, '\n'), 0o644)
	})
}

// normalise takes away what is different each time, or dockerd's own.
func normalise(spec *specs.Spec, name string) {
	const id = "0123456789ab"
	spec.Hooks = nil
	spec.Root.Path = "rootfs"
	spec.Linux.CgroupsPath = "/docker/" + name
	if strings.HasPrefix(name, "privileged") {
		spec.Linux.Devices = nil // of the machine; the probe lists those of the guest
	}
	if spec.Hostname != "" && name != "uts-host" {
		spec.Hostname = id
	}
	for i, kv := range spec.Process.Env {
		if strings.HasPrefix(kv, "HOSTNAME=") && name != "uts-host" {
			spec.Process.Env[i] = "HOSTNAME=" + id
		}
	}
	for i, ns := range spec.Linux.Namespaces {
		if ns.Path != "" { // of the container `owner`
			spec.Linux.Namespaces[i].Path = "/proc/OWNER/ns/" + filepath.Base(ns.Path)
		}
	}
	for i, m := range spec.Mounts {
		if m.Type == "bind" && m.Source != m.Destination {
			spec.Mounts[i].Source = "/files/" + filepath.Base(m.Source)
		}
	}
}
