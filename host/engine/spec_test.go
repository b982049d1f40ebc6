package engine

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/opencontainers/runtime-spec/specs-go"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func ptr[T any](v T) *T { return &v }

// TestSpec compares OCI specs with testdata/spec-*.json. -update writes
// them anew: look at the difference before you commit it. The seccomp rules
// have tests of their own; here only their number shows.
func TestSpec(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  container.Config
		host container.HostConfig
	}{
		{name: "default"},
		{name: "privileged", host: container.HostConfig{Privileged: true}},
		{name: "privileged-seccomp", host: container.HostConfig{Privileged: true, SecurityOpt: []string{`seccomp={"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}]}`}}},
		{name: "caps", host: container.HostConfig{CapDrop: []string{"ALL"}, CapAdd: []string{"NET_ADMIN"}}},
		{name: "user", cfg: container.Config{User: "user:staff", Tty: true, WorkingDir: "/home", Hostname: "box", Env: []string{"A=b", "PATH=/bin"}},
			host: container.HostConfig{GroupAdd: []string{"50"}, ConsoleSize: [2]uint{24, 80}}},
		{name: "readonly", host: container.HostConfig{ReadonlyRootfs: true, SecurityOpt: []string{"no-new-privileges", "seccomp=unconfined"}}},
		{name: "limits", host: container.HostConfig{
			Resources: container.Resources{
				Memory: 64 << 20, MemoryReservation: 32 << 20, NanoCPUs: 1_500_000_000, CPUShares: 512, CpusetCpus: "0-1",
				PidsLimit: ptr(int64(100)), Ulimits: []*container.Ulimit{{Name: "nofile", Soft: 1024, Hard: 2048}},
				DeviceCgroupRules: []string{"c 10:229 rwm"},
			},
			OomScoreAdj: 500, ShmSize: 1 << 20, Sysctls: map[string]string{"net.core.somaxconn": "1024"},
		}},
		{name: "shared-namespaces", host: container.HostConfig{IpcMode: "container:x", PidMode: "container:x"}},
		{name: "shareable-ipc", host: container.HostConfig{IpcMode: "shareable"}},
		{name: "host-namespaces", host: container.HostConfig{NetworkMode: "host", PidMode: "host", UTSMode: "host", CgroupnsMode: "host"}},
		{name: "mounts", cfg: container.Config{Volumes: map[string]struct{}{"/image": {}}}, host: container.HostConfig{
			Binds: []string{"data:/data/deep:nocopy", "/etc:/host:ro"},
			Tmpfs: map[string]string{"/run": "rw,exec,size=1m", "/dev/shm": ""},
			Mounts: []mount.Mount{
				{Type: mount.TypeVolume, Source: "named", Target: "/data", ReadOnly: true},
				{Type: mount.TypeTmpfs, Target: "/tmp", TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 1 << 20, Mode: 0o1777}},
			},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := container.CreateRequest{Config: &c.cfg, HostConfig: &c.host}
			if err := checkRequest(&req); err != nil {
				t.Fatal(err)
			}
			rec := record{ID: "0123456789abcdef", Config: &c.cfg, HostConfig: &c.host}
			if err := fill(&rec, &container.Config{Cmd: []string{"sh"}, Env: []string{"PATH=/usr/bin", "IMAGE=1"}}); err != nil {
				t.Fatal(err)
			}
			ms, err := planMounts(rec.Config, rec.HostConfig, nil)
			if err != nil {
				t.Fatal(err)
			}
			for i := range ms {
				ms[i].VolumeID = "volume-at-" + filepath.Base(ms[i].Destination)
			}
			e := &Engine{cfg: Config{Export: func(path string, _ bool) (Export, error) { return namedExport(path), nil }}}
			mounts, _, err := e.ociMounts(ms)
			if err != nil {
				t.Fatal(err)
			}
			spec, err := makeSpec(specInput{ID: rec.ID, Arch: "amd64", Config: rec.Config, Host: rec.HostConfig, Args: rec.Args, Mounts: mounts, SharedIPC: "ipc-owner", SharedPID: "pid-owner"})
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "spec-"+c.name, spec)
		})
	}
}

type namedExport string

func (n namedExport) Name() string { return "export-of-" + filepath.Base(string(n)) }
func (namedExport) Close() error   { return nil }

func golden(t *testing.T, name string, spec *specs.Spec) {
	t.Helper()
	rules := 0
	if s := spec.Linux.Seccomp; s != nil {
		rules, s.Syscalls = len(s.Syscalls), nil
	}
	got, err := json.MarshalIndent(struct {
		Spec         *specs.Spec
		SeccompRules int
	}{spec, rules}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	file := filepath.Join("testdata", name+".json")
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("%s differs:\n%s", file, got)
	}
}

// Nothing of a spec is lost on its way into the guest, in two parts.
func TestEncodeSpec(t *testing.T) {
	for name, opts := range map[string][]string{"default": nil, "unconfined": {"seccomp=unconfined"}} {
		host := &container.HostConfig{SecurityOpt: opts}
		spec, err := makeSpec(specInput{ID: "x", Arch: "amd64", Config: &container.Config{}, Host: host, Args: []string{"sh"}})
		if err != nil {
			t.Fatal(err)
		}
		text, filter, err := encodeSpec(spec)
		if err != nil {
			t.Fatal(err)
		}
		var back specs.Spec
		if err := json.Unmarshal(text, &back); err != nil {
			t.Fatal(err)
		}
		if back.Linux.Seccomp != nil || (filter == nil) != (name == "unconfined") {
			t.Errorf("%s: the filter is in the spec: %t; apart: %d bytes", name, back.Linux.Seccomp != nil, len(filter))
		}
		if filter != nil {
			if err := json.Unmarshal(filter, &back.Linux.Seccomp); err != nil {
				t.Fatal(err)
			}
		}
		got, err := json.Marshal(back)
		if err != nil {
			t.Fatal(err)
		}
		want, err := json.Marshal(spec)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != string(want) {
			t.Errorf("%s: the two parts make\n%s, want\n%s", name, got, want)
		}
	}
}

// A spec must not change what the next one is made from.
func TestSpecSharesNothing(t *testing.T) {
	make := func() string {
		spec, err := makeSpec(specInput{ID: "x", Arch: "amd64", Config: &container.Config{}, Host: &container.HostConfig{}, Args: []string{"sh"}})
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(spec)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	before := make()
	if _, err := makeSpec(specInput{ID: "x", Arch: "amd64", Config: &container.Config{}, Host: &container.HostConfig{Privileged: true}, Args: []string{"sh"}}); err != nil {
		t.Fatal(err)
	}
	if make() != before {
		t.Error("a privileged container has changed the default")
	}
}
