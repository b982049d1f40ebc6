package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/pkg/stdcopy"
)

func TestLogs(t *testing.T) {
	f := newFake(t)
	f.answer("GET /containers/c/json", 200, `{"Id":"cid","Config":{"Tty":false}}`)
	f.answer("GET /containers/t/json", 200, `{"Id":"tid","Config":{"Tty":true}}`)
	f.mux.HandleFunc("GET /containers/cid/logs", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(stdcopyWriter(w, stdcopy.Stdout), "out\n")
		fmt.Fprint(stdcopyWriter(w, stdcopy.Stderr), "err\n")
	})
	f.answer("GET /containers/tid/logs", 200, "raw\x01\x02bytes")
	if res := f.run(t, "", "logs", "-f", "-t", "--tail", "5", "c"); res != (result{0, "out\n", "err\n"}) {
		t.Errorf("%+v", res)
	}
	if got, want := f.seen()[1], "GET /containers/cid/logs?follow=1&stderr=1&stdout=1&tail=5&timestamps=1"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if res := f.run(t, "", "logs", "t"); res != (result{0, "raw\x01\x02bytes", ""}) {
		t.Errorf("%+v", res)
	}
}

func TestAttach(t *testing.T) {
	f := newFake(t)
	f.container(4, "more\n", "")
	f.answer("POST /containers/other/start", 204, nil)
	f.answer("GET /containers/c/json", 200, `{"Id":"c","State":{"Running":true},"Config":{"OpenStdin":true},"HostConfig":{}}`)
	f.answer("GET /containers/s/json", 200, `{"Id":"s","State":{"Running":false},"Config":{},"HostConfig":{}}`)
	// The fake's container runs once it is started.
	if res := f.run(t, "", "start", "c"); res.code != 0 {
		t.Fatalf("%+v", res)
	}
	if res := f.run(t, "typed\n", "attach", "c"); res != (result{4, "more\ntyped\n", ""}) {
		t.Errorf("%+v", res)
	}
	want := []string{"POST /containers/c/start", "GET /containers/c/json", "POST /containers/c/attach", "POST /containers/c/wait"}
	if got := kinds(f.seen()); !slices.Equal(got, want) {
		t.Errorf("requests %q", got)
	}
	if res := f.run(t, "", "attach", "s"); res != (result{1, "", "You cannot attach to a stopped container, start it first\n"}) {
		t.Errorf("%+v", res)
	}
}

func TestStartAttached(t *testing.T) {
	f := newFake(t)
	f.container(9, "hello\n", "")
	f.answer("GET /containers/c/json", 200, `{"Id":"c","State":{},"Config":{"OpenStdin":true},"HostConfig":{"AutoRemove":false}}`)
	if res := f.run(t, "", "start", "-ai", "c"); res != (result{9, "hello\n", ""}) {
		t.Errorf("%+v", res)
	}
	if got := kinds(f.seen()); got[len(got)-1] != "POST /containers/c/start" {
		t.Errorf("requests %q", got)
	}
}

func TestImageCommands(t *testing.T) {
	f := newFake(t)
	f.mux.HandleFunc("POST /images/load", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"stream":"Loaded image: x:latest\n"}`+"\n")
	})
	f.answer("POST /images/x/tag", 201, nil)
	f.answer("DELETE /images/x", 200, `[{"Untagged":"x:latest"},{"Deleted":"sha256:1"}]`)
	f.answer("DELETE /images/y", 409, "conflict: unable to remove repository reference")
	tar := filepath.Join(t.TempDir(), "x.tar")
	if err := os.WriteFile(tar, []byte("archive"), 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		args    []string
		want    result
		request string
	}{
		{[]string{"load"}, result{0, "Loaded image: x:latest\n", ""}, "POST /images/load?quiet=1 stdin"},
		{[]string{"load", "-i", tar}, result{0, "Loaded image: x:latest\n", ""}, "POST /images/load?quiet=1 archive"},
		{[]string{"tag", "x", "host:5000/y:1"}, result{0, "", ""}, "POST /images/x/tag?repo=host%3A5000%2Fy&tag=1"},
		{[]string{"rmi", "-f", "y", "x"}, result{1, "Untagged: x:latest\nDeleted: sha256:1\n", "Error response from daemon: conflict: unable to remove repository reference\n"}, "DELETE /images/x?force=1"},
	}
	for _, tt := range tests {
		got := f.run(t, "stdin", tt.args...)
		seen := f.seen()
		if got != tt.want || seen[len(seen)-1] != tt.request {
			t.Errorf("%q: %+v, %q", tt.args, got, seen[len(seen)-1])
		}
	}
	if res := f.run(t, "", "load", "-i", "/nope"); res != (result{1, "", "open /nope: no such file or directory\n"}) {
		t.Errorf("%+v", res)
	}
}

func TestPort(t *testing.T) {
	f := newFake(t)
	f.answer("GET /containers/c/json", 200, `{"Id":"c","NetworkSettings":{"Ports":{"443/tcp":null,"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"8080"},{"HostIp":"::","HostPort":"8080"}],"53/udp":[{"HostIp":"127.0.0.1","HostPort":"5353"}]}}}`)
	if res := f.run(t, "", "port", "c"); res != (result{0, "53/udp -> 127.0.0.1:5353\n80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080\n", ""}) {
		t.Errorf("%+v", res)
	}
	if res := f.run(t, "", "port", "c", "80"); res != (result{0, "0.0.0.0:8080\n[::]:8080\n", ""}) {
		t.Errorf("%+v", res)
	}
	if res := f.run(t, "", "port", "c", "443"); res != (result{1, "", "Error: No public port '443' published for c\n"}) {
		t.Errorf("%+v", res)
	}
}

func TestEvents(t *testing.T) {
	f := newFake(t)
	f.answer("GET /events", 200, `{"Type":"container","Action":"start","Actor":{"ID":"abc","Attributes":{"name":"n","image":"i"}},"timeNano":1000000001}`+"\n")
	res := f.run(t, "", "events", "--format", "{{.Type}} {{.Action}} {{.Actor.Attributes.name}}", "--since", "5", "--until", "6", "-f", "type=container")
	if res != (result{0, "container start n\n", ""}) {
		t.Errorf("%+v", res)
	}
	if got := f.seen()[0]; got != "GET /events?filters=%7B%22type%22%3A%7B%22container%22%3Atrue%7D%7D&since=5&until=6" {
		t.Error(got)
	}
	res = f.run(t, "", "events")
	if !strings.HasSuffix(res.out, ".000000001Z container start abc (image=i, name=n)\n") && !strings.HasSuffix(res.out, "container start abc (image=i, name=n)\n") {
		t.Errorf("%+v", res)
	}
	if res = f.run(t, "", "events", "--format", "{{"); res != (result{64, "", "Error parsing format: template: :1: unclosed action\n"}) {
		t.Errorf("%+v", res)
	}
}

func TestVolumes(t *testing.T) {
	f := newFake(t)
	f.answer("POST /volumes/create", 201, `{"Name":"v"}`)
	f.answer("GET /volumes/v", 200, `{"Name":"v","Driver":"local"}`)
	f.answer("DELETE /volumes/v", 204, nil)
	f.answer("POST /volumes/prune", 200, `{"VolumesDeleted":["a","b"],"SpaceReclaimed":2000}`)
	const pruned = "Deleted Volumes:\na\nb\n\nTotal reclaimed space: 2kB\n"
	const question = "WARNING! This will remove anonymous local volumes not used by at least one container.\nAre you sure you want to continue? [y/N] "
	tests := []struct {
		stdin, args string
		want        result
	}{
		{"", "volume create --label a=b v", result{0, "v\n", ""}},
		{"", "volume inspect -f {{.Driver}} v", result{0, "local\n", ""}},
		{"", "volume rm -f v", result{0, "v\n", ""}},
		{"", "volume prune -f -a", result{0, pruned, ""}},
		{"y\n", "volume prune", result{0, question + pruned, ""}},
		{"\n", "volume prune", result{0, question, ""}},
		{"", "volume prune", result{0, question, ""}},
	}
	for _, tt := range tests {
		if got := f.run(t, tt.stdin, strings.Fields(tt.args)...); got != tt.want {
			t.Errorf("%s: %+v\nwant %+v", tt.args, got, tt.want)
		}
	}
	want := []string{`POST /volumes/create {"Driver":"local","Labels":{"a":"b"},"Name":"v"}`, "GET /volumes/v", "DELETE /volumes/v?force=1",
		"POST /volumes/prune?filters=%7B%22all%22%3A%7B%22true%22%3Atrue%7D%7D", "POST /volumes/prune"}
	if got := f.seen(); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func TestVersionAndInfo(t *testing.T) {
	f := newFake(t)
	f.answer("GET /version", 200, `{"Platform":{"Name":"Sampan"},"Version":"1.2","ApiVersion":"1.50","MinAPIVersion":"1.40","Os":"linux","Arch":"amd64","Components":[{"Name":"Engine","Version":"1.2"}]}`)
	f.answer("GET /info", 200, `{"Containers":3,"NCPU":2,"MemTotal":1073741824,"Warnings":["careful"]}`)
	if res := f.run(t, "", "version", "--format", "{{.Client.Version}} {{.Server.Version}} {{.Client.APIVersion}}"); res != (result{0, "unknown 1.2 1.50\n", ""}) {
		t.Errorf("%+v", res)
	}
	res := f.run(t, "", "version")
	if res.code != 0 || !strings.Contains(res.out, "Server: Sampan\n Version:           1.2\n API version:       1.50 (minimum version 1.40)\n OS/Arch:           linux/amd64\n Engine:\n") {
		t.Errorf("%+v", res)
	}
	if res := f.run(t, "", "info", "-f", "{{.NCPU}}"); res != (result{0, "2\n", ""}) {
		t.Errorf("%+v", res)
	}
	if res := f.run(t, "", "info", "-f", "{{"); res.code != 64 || !strings.Contains(res.err, "template parsing error: template: :1: unclosed action") {
		t.Errorf("%+v", res)
	}
	if res := f.run(t, "", "info"); res.code != 0 || !strings.Contains(res.out, " Total Memory:      1GiB\n") || res.err != "careful\n" {
		t.Errorf("%+v", res)
	}
}
