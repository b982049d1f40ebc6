package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares got with a file.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update writes it):\n%s", path, got)
	}
}

// Each line of options becomes one request. The golden file was compared with
// what Docker's own client 28.2 sends for the same options.
func TestCreateRequests(t *testing.T) {
	t.Setenv("FROMENV", "value")
	t.Setenv("SSH_AUTH_SOCK", "/agent")
	path, err := filepath.Abs("testdata/create.golden")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	write(t, "vars", "# comment\nA=1\nFROMENV\nNOTSET\n  B=x y \n")
	write(t, "labels", "# comment\na=file\nb=x y\nc\n")
	write(t, "seccomp.json", "{\n  \"defaultAction\": \"SCMP_ACT_ALLOW\"\n}\n")
	cases := []string{
		"x",
		"-i x cat",
		"-it x",
		"--rm --name n x a b -c",
		"-e A=1 -e FROMENV -e NOTSET --env-file vars x",
		"-w /a -u 1:2 -h hh --domainname d x",
		"-p 80 x",
		"-p 8080:80 -p 127.0.0.1:9000-9002:90-92/udp -p [::1]:1:2 x",
		"--expose 1000-1002 --expose 5/udp -P x",
		"-v /a:/b:ro -v vol:/c -v /anon x",
		"--tmpfs /t:size=1m --tmpfs /u x",
		"--cap-add sys_ptrace --cap-add ALL --cap-drop NET_RAW --privileged x",
		"--read-only --init --pids-limit 5 -m 64m --memory-swap -1 --memory-reservation 32m --cpus 1.5 -c 5 --cpuset-cpus 0-1 x",
		"--add-host a:1.2.3.4 --add-host b=host-gateway --add-host c:::1 --dns 1.1.1.1 --dns-search s --dns-option o x",
		"--ulimit nofile=10:20 --ulimit core=-1 x",
		"--stop-signal INT --stop-timeout 3 x",
		"--entrypoint sh x -c true",
		"--entrypoint= x",
		"-l a=b -l c --label d=e=f x",
		"--security-opt no-new-privileges --security-opt seccomp=unconfined --security-opt seccomp=seccomp.json x",
		"--network host --restart on-failure:3 x",
		"--health-cmd true --health-interval 5s --health-timeout 1m --health-retries 2 --health-start-period 1h --health-start-interval 1ms x",
		"--health-interval 5s x",
		"--no-healthcheck x",
		"--label-file labels -l a=over --annotation x=y --annotation z x",
		"--mount type=bind,src=/a,dst=/b,readonly,bind-propagation=rslave --mount source=vol,target=/c,volume-nocopy,volume-label=k=v,volume-subpath=s x",
		"--mount type=tmpfs,destination=/t,tmpfs-size=1m,tmpfs-mode=700 --mount type=bind,src=/a,dst=/d,bind-nonrecursive=true,consistency=cached x",
		"--mount type=image,src=busybox,dst=/i,image-subpath=bin --mount type=bind,src=/a,dst=/e,ro,bind-recursive=writable x",
		"--device /dev/fuse --device /dev/null:/dev/nothing:r --device /dev/zero:rw --device-cgroup-rule c~10:*~rwm x",
		"--blkio-weight 300 --cpu-period 50000 --cpu-quota 25000 --cpuset-mems 0 --oom-score-adj 500 --oom-kill-disable --userns host x",
		"-a stdout -i x",
		"-a STDERR x",
		"--ssh x",
		"--volumes-from one --volumes-from two:ro --volume-driver local x",
		"--platform linux/arm64/v8 --log-driver none x",
		"--log-driver json-file --log-opt max-size=10m --log-opt max-file=3 x",
		"--label-file vars --security-opt systempaths=unconfined --security-opt no-new-privileges x",
		"--network none --ipc host --pid host --uts host --shm-size 1g --sysctl net.core.somaxconn=5 --group-add 5 --cgroupns host x",
	}
	var b strings.Builder
	for _, c := range cases {
		f := newFake(t)
		f.answer("POST /containers/create", 201, map[string]any{"Id": testID})
		res := f.run(t, "", append([]string{"create"}, words(c)...)...)
		if res.code != 0 || res.out != testID+"\n" {
			t.Fatalf("create %s: %+v", c, res)
		}
		requests := f.seen()
		if len(requests) != 1 {
			t.Fatalf("create %s: requests %q", c, requests)
		}
		line, body, _ := strings.Cut(requests[0], " {")
		fmt.Fprintf(&b, "$ create %s\n%s\n%s\n", c, line, compact(t, "{"+body))
	}
	golden(t, path, b.String())
}

// words splits a line; "~" stands for a space within a word.
func words(line string) []string {
	list := strings.Fields(line)
	for i := range list {
		list[i] = strings.ReplaceAll(list[i], "~", " ")
	}
	return list
}

// compact leaves out what is empty.
func compact(t *testing.T, text string) string {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	if err := enc.Encode(prune(v)); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func prune(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			e = prune(e)
			// Anonymous volumes and exposed ports are keys with empty values.
			if e == nil && !strings.HasPrefix(k, "/") && !strings.Contains(k, "/") {
				delete(v, k)
			}
		}
		if len(v) == 0 {
			return nil
		}
	case []any:
		for i := range v {
			if p := prune(v[i]); p != nil {
				v[i] = p
			}
		}
		if len(v) == 0 || !slices.ContainsFunc(v, func(e any) bool { return e != 0.0 }) {
			return nil
		}
	case string:
		if v == "" {
			return nil
		}
	case bool:
		if !v {
			return nil
		}
	case float64:
		if v == 0 {
			return nil
		}
	}
	return v
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// What is wrong with the options is said without a daemon.
func TestCreateRefusals(t *testing.T) {
	f := newFake(t)
	t.Chdir(t.TempDir())
	write(t, "bad.json", "{")
	write(t, "badvars", "a b=c\n")
	const hint = "\n\nRun 'sampan run --help' for more information\n"
	usage := "\n\nUsage:  sampan run [OPTIONS] IMAGE [COMMAND] [ARG...]" + hint
	tests := []struct {
		args string
		code int
		err  string
	}{
		{"", 1, "sampan: 'sampan run' requires at least 1 argument" + usage},
		{"--foo x", 125, "unknown flag: --foo" + usage},
		{"--gpus all x", 125, `invalid argument "all" for "--gpus" flag: not supported: the guest has none` + usage},
		{"--storage-opt size=1G x", 125, `invalid argument "size=1G" for "--storage-opt" flag: not supported: layers have no quota` + usage},
		{"--mount type=bind x", 125, `invalid argument "type=bind" for "--mount" flag: target is required` + usage},
		{"-e", 125, "flag needs an argument: 'e' in -e" + usage},
		{"--cpus y x", 125, `invalid argument "y" for "--cpus" flag: failed to parse y as a rational number` + usage},
		{"--memory 1q x", 125, `invalid argument "1q" for "-m, --memory" flag: invalid suffix: 'q'` + usage},
		{"--ulimit foo x", 125, `invalid argument "foo" for "--ulimit" flag: invalid ulimit argument: foo` + usage},
		{"-p abc x", 125, "sampan: invalid containerPort: abc" + hint},
		{"-p 99999:1 x", 125, "sampan: invalid hostPort: 99999" + hint},
		{"-p nohost:1:1 x", 125, "sampan: invalid IP address: nohost" + hint},
		{"-v :/x x", 125, "sampan: invalid spec: :/x: empty section between colons" + hint},
		{"-e =a x", 125, `invalid argument "=a" for "-e, --env" flag: invalid environment variable: =a` + usage},
		{"-l =a x", 125, `invalid argument "=a" for "-l, --label" flag: invalid label '=a': empty name` + usage},
		{"--device /a:/b:q x", 125, "sampan: bad mode specified: q" + hint},
		{"--env-file /nope x", 125, "sampan: open /nope: no such file or directory" + hint},
		{"--env-file badvars x", 125, "sampan: invalid env file (badvars): variable 'a b' contains whitespaces" + hint},
		{"--pull foo x", 125, `sampan: invalid pull option: 'foo': must be one of "always", "missing" or "never"` + hint},
		{"--rm --restart always x", 125, "sampan: conflicting options: cannot specify both --restart and --rm" + hint},
		{"--add-host a:b x", 125, `invalid argument "a:b" for "--add-host" flag: invalid IP address in add-host: "b"` + usage},
		{"--dns a x", 125, `invalid argument "a" for "--dns" flag: IP address is not correctly formatted: a` + usage},
		{"--sysctl kernel.core_pattern=a x", 125, `invalid argument "kernel.core_pattern=a" for "--sysctl" flag: sysctl 'kernel.core_pattern=a' is not allowed` + usage},
		{"--device-cgroup-rule a x", 125, `invalid argument "a" for "--device-cgroup-rule" flag: invalid device cgroup format 'a'` + usage},
		{"-a out x", 125, `invalid argument "out" for "-a, --attach" flag: valid streams are STDIN, STDOUT and STDERR` + usage},
		{"-d -a stdout x", 1, "conflicting options: cannot specify both --attach and --detach\n"},
		{"--security-opt a x", 125, `sampan: Invalid --security-opt: "a"` + hint},
		{"--pid a x", 125, "sampan: --pid: invalid PID mode" + hint},
		{"--uts a x", 125, "sampan: --uts: invalid UTS mode" + hint},
		{"--userns a x", 125, "sampan: --userns: invalid USER mode" + hint},
		{"--cgroupns a x", 125, "sampan: --cgroupns: invalid CGROUP mode" + hint},
		{"--security-opt seccomp=bad.json x", 125, "sampan: compacting json for seccomp profile (bad.json) failed: unexpected end of JSON input" + hint},
		{"UPPER", 125, "sampan: invalid reference format: repository name (library/UPPER) must be lowercase" + hint},
		{"-it x", 1, "the input device is not a TTY\n"},
	}
	for _, tt := range tests {
		res := f.run(t, "", append([]string{"run"}, strings.Fields(tt.args)...)...)
		if res.code != tt.code || res.err != tt.err || res.out != "" {
			t.Errorf("run %s: code %d, stdout %q, stderr:\n%swant code %d:\n%s", tt.args, res.code, res.out, res.err, tt.code, tt.err)
		}
	}
	if seen := f.seen(); len(seen) > 0 {
		t.Errorf("requests: %q", seen)
	}
}

func TestCIDFile(t *testing.T) {
	f := newFake(t)
	f.answer("POST /containers/create", 201, map[string]any{"Id": testID})
	cid := filepath.Join(t.TempDir(), "cid")
	if res := f.run(t, "", "create", "--cidfile", cid, "x"); res.code != 0 {
		t.Fatalf("%+v", res)
	}
	if got, err := os.ReadFile(cid); err != nil || string(got) != testID {
		t.Errorf("%q, %v", got, err)
	}
	if res := f.run(t, "", "create", "--cidfile", cid, "x"); res.code != 1 || !strings.Contains(res.err, "container ID file found") {
		t.Errorf("a second time: %+v", res)
	}
	bad := newFake(t)
	bad.answer("POST /containers/create", 400, "no")
	other := cid + "2"
	if res := bad.run(t, "", "create", "--cidfile", other, "x"); res.code != 1 || res.err != "Error response from daemon: no\n" {
		t.Errorf("%+v", res)
	}
	if _, err := os.Stat(other); !os.IsNotExist(err) {
		t.Errorf("a file for a container that isn't: %v", err)
	}
}
