package main

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
)

// years go by.
var years = regexp.MustCompile(`\d+ years ago`)

// epoch is the same moment in every time zone.
var epoch = regexp.MustCompile(`19(69|70)-\d\d-\d\d(T[0-9:]+([+-][0-9:]+|Z)| [0-9:]+ [+-]\d{4} [A-Z0-9+-]+)`)

const psJSON = `[
{"Id":"aaaaaaaaaaaabbbbbbbbbbbbccccccccccccddddddddddddeeeeeeeeeeeeffff","Names":["/web"],"Image":"nginx:1","ImageID":"sha256:11","Command":"nginx -g 'daemon off;' and more words","Created":1,
 "Ports":[{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":8080,"Type":"tcp"},{"IP":"::","PrivatePort":80,"PublicPort":8080,"Type":"tcp"},{"PrivatePort":9000,"Type":"tcp"}],
 "Labels":{"a":"1","org.x/b":"two"},"State":"running","Status":"Up 2 hours","HostConfig":{"NetworkMode":"bridge"},"NetworkSettings":{"Networks":{"bridge":{}}},
 "Mounts":[{"Type":"volume","Name":"data","Source":"","Destination":"/d"},{"Type":"bind","Source":"/home/user/a/long/folder","Destination":"/s"}]},
{"Id":"bbbbbbbbbbbbbbbbbbbbbbbbccccccccccccddddddddddddeeeeeeeeeeeeffff","Names":["/sleepy_dog"],"Image":"sha256:99999999999999999999","ImageID":"sha256:99999999999999999999","Command":"sh","Created":1,"Ports":[],"Labels":{},"State":"exited","Status":"Exited (137) 5 minutes ago","HostConfig":{},"NetworkSettings":{"Networks":{"host":{}}},"Mounts":[]}
]`

const imagesJSON = `[
{"Id":"sha256:1111111111112222222222223333333333334444444444445555555555556666","RepoTags":["nginx:1","localhost:5000/team/nginx:latest"],"RepoDigests":["nginx@sha256:abcabc"],"Created":1,"Size":187654321},
{"Id":"sha256:7777777777772222222222223333333333334444444444445555555555556666","RepoTags":[],"RepoDigests":[],"Created":1,"Size":999},
{"Id":"sha256:8888888888882222222222223333333333334444444444445555555555556666","RepoTags":["two:1"],"RepoDigests":["two@sha256:aa","two@sha256:bb","gone@sha256:cc"],"Created":1,"Size":1234567}
]`

// The golden files were compared with the output of Docker's own client 28.2.
func TestLists(t *testing.T) {
	f := newFake(t)
	f.answer("GET /containers/json", 200, psJSON)
	f.answer("GET /images/json", 200, imagesJSON)
	f.answer("GET /volumes", 200, `{"Volumes":[{"Name":"data","Driver":"local","Scope":"local","Mountpoint":"/x"},{"Name":"a","Driver":"local","Scope":"local","Mountpoint":"/y","Labels":{"l":"1"}}]}`)
	f.answer("GET /images/x/history", 200, `[{"Id":"sha256:1111111111112222222222223333333333334444444444445555555555556666","Created":1,"CreatedBy":"/bin/sh -c #(nop)\tCMD [\"a long command, which is cut\"]","Size":1234567,"Tags":["x:1"]},
{"Id":"<missing>","Created":1,"CreatedBy":"","Comment":"Imported","Size":3}]`)
	var b strings.Builder
	for _, args := range [][]string{
		{"ps"}, {"ps", "-a", "--no-trunc", "-s"}, {"ps", "-q"},
		{"ps", "--format", `{{.ID}} {{.Mounts}} {{.Networks}} {{.State}} {{.Labels}}`},
		{"ps", "--format", `table {{.Names}}\t{{.Label "org.x/b"}}`},
		{"ps", "--format", "json"}, {"ps", "--format", "table {{.Names}}\t{{.Platform}}"},
		{"images"}, {"images", "--digests", "--no-trunc"}, {"images", "-q"},
		{"images", "--format", "{{.Repository}}:{{.Tag}} {{.Size}}"},
		{"images", "--format", "{{.Repository}} {{.Digest}} {{.VirtualSize}} {{title .Repository}}"},
		{"images", "--format", "json"}, {"images", "--format", "raw"}, {"images", "-q", "--format", "raw"},
		{"images", "-q", "--format", "table"}, {"images", "-q", "--format", "{{.Tag}}"},
		{"history", "x"}, {"history", "-q", "--format", "table", "x"},
		{"history", "-H=false", "--no-trunc", "--format", "{{json .}}", "x"},
		{"volume", "ls"}, {"volume", "ls", "-q"}, {"volume", "ls", "--format", "json"},
	} {
		res := f.run(t, "", args...)
		if res.code != 0 || res.err != "" {
			t.Errorf("%q: %+v", args, res)
		}
		// "56 years ago" changes with the years.
		lines := strings.Split(strings.ReplaceAll(res.out, "\u00a0", " "), "\n")
		for i := range lines {
			lines[i] = epoch.ReplaceAllString(years.ReplaceAllString(lines[i], "NN years ago"), "EPOCH")
		}
		b.WriteString("$ " + strings.Join(args, " ") + "\n" + strings.Join(lines, "\n"))
	}
	golden(t, "testdata/lists.golden", b.String())
}

func TestListQueries(t *testing.T) {
	tests := []struct{ args, want string }{
		{"ps", "GET /containers/json"},
		{"ps -a -n 3", "GET /containers/json?all=1&limit=3"},
		{"ps -l -s", "GET /containers/json?limit=1&size=1"},
		{"ps --format {{.Size}}", "GET /containers/json?size=1"},
		{"ps -q --format {{.Size}}", "GET /containers/json"},
		{"ps -f status=exited -f status=dead --filter name=x", `GET /containers/json?filters=%7B%22name%22%3A%7B%22x%22%3Atrue%7D%2C%22status%22%3A%7B%22dead%22%3Atrue%2C%22exited%22%3Atrue%7D%7D`},
		{"images nginx", `GET /images/json?filters=%7B%22reference%22%3A%7B%22nginx%22%3Atrue%7D%7D`},
	}
	for _, tt := range tests {
		f := newFake(t)
		f.answer("GET /containers/json", 200, "[]")
		f.answer("GET /images/json", 200, "[]")
		f.run(t, "", strings.Fields(tt.args)...)
		if got := f.seen(); len(got) != 1 || got[0] != tt.want {
			t.Errorf("%s: %q, want %q", tt.args, got, tt.want)
		}
	}
	f := newFake(t)
	f.answer("GET /containers/json", 200, "[]")
	if res := f.run(t, "", "ps", "-f", "bad"); res.code != 125 || !strings.HasPrefix(res.err, `invalid argument "bad" for "-f, --filter" flag: bad format of filter (expected name=value)`) {
		t.Errorf("%+v", res)
	}
	// What is wrong with a format is told in docker's words, with its codes.
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"ps", "--format", "{{.Nope"}, 1, "failed to parse template: template: :1: unclosed action\n"},
		{[]string{"ps", "--format", "table {{.Nope}}"}, 1, "failed to execute template: template: :1:8: executing \"\" at <.Nope>: "},
		{[]string{"images", "--format", "{{.Nope"}, 1, "template parsing error: template: :1: unclosed action\n"},
		{[]string{"version", "--format", "{{.Nope"}, 64, "template parsing error: template: :1: unclosed action\n"},
		{[]string{"events", "--format", "{{.Nope"}, 64, "Error parsing format: template: :1: unclosed action\n"},
		{[]string{"events", "--format", "{{.Nope}}"}, 64, "Error parsing format: template: :1:2: executing \"\" at <.Nope>: "},
	} {
		f.answer("GET /version", 200, "{}")
		if res := f.run(t, "", tt.args...); res.code != tt.code || !strings.HasPrefix(res.err, tt.want) {
			t.Errorf("%q: %+v", tt.args, res)
		}
		f = newFake(t)
		f.answer("GET /images/json", 200, "[]")
	}
}

func TestDisplayPorts(t *testing.T) {
	port := func(ip string, inside, public uint16, proto string) container.PortSummary {
		p := container.PortSummary{PrivatePort: inside, PublicPort: public, Type: proto}
		if ip != "" {
			p.IP = netip.MustParseAddr(ip)
		}
		return p
	}
	tests := []struct {
		ports []container.PortSummary
		want  string
	}{
		{nil, ""},
		{[]container.PortSummary{port("", 80, 0, "tcp")}, "80/tcp"},
		{[]container.PortSummary{port("", 82, 0, "tcp"), port("", 80, 0, "tcp"), port("", 81, 0, "tcp"), port("", 81, 0, "udp")}, "80-82/tcp, 81/udp"},
		{[]container.PortSummary{port("0.0.0.0", 80, 8080, "tcp"), port("::", 80, 8080, "tcp")}, "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp"},
		{[]container.PortSummary{port("1.2.3.4", 5, 5, "tcp"), port("1.2.3.4", 6, 6, "tcp"), port("1.2.3.4", 8, 8, "tcp")}, "1.2.3.4:5-6->5-6/tcp, 1.2.3.4:8->8/tcp"},
		{[]container.PortSummary{port("::", 5, 5, "tcp"), port("", 9000, 0, "tcp"), port("::", 7, 70, "udp")}, "[::]:5->5/tcp, 9000/tcp, [::]:70->7/udp"},
	}
	for _, tt := range tests {
		if got := displayPorts(tt.ports); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

func TestInspect(t *testing.T) {
	f := newFake(t)
	f.answer("GET /containers/c/json", 200, `{"Id":"abc","State":{"Running":true,"ExitCode":0},"Novel":{"x":7}}`)
	f.answer("GET /containers/n/json", 200, `{"Id":"n","NetworkSettings":{"Networks":{"none":{"IPAddress":""}}}}`)
	f.answer("GET /containers/{id}/json", 404, "No such container: i")
	f.answer("GET /images/i/json", 200, `{"Id":"sha256:1"}`)
	f.answer("GET /images/{id}/json", 404, "No such image: i")
	f.answer("GET /volumes/{id}", 404, "get v: no such volume")
	tests := []struct {
		args []string
		want result
	}{
		{[]string{"inspect", "c"}, result{0, "[\n    {\n        \"Id\": \"abc\",\n        \"State\": {\n            \"Running\": true,\n            \"ExitCode\": 0\n        },\n        \"Novel\": {\n            \"x\": 7\n        }\n    }\n]\n", ""}},
		{[]string{"inspect", "-f", "{{.ID}} {{.State.Running}}", "c"}, result{0, "abc true\n", ""}},
		{[]string{"inspect", "-f", "{{.Id}} {{.Novel.x}}", "c"}, result{0, "abc 7\n", ""}},
		{[]string{"inspect", "-f", "{{.Id}}", "i", "c"}, result{0, "sha256:1\nabc\n", ""}},
		{[]string{"inspect", "-f", "{{.Id}}", "gone"}, result{1, "\n", "Error: No such object: gone\n"}},
		{[]string{"inspect", "-f", "{{range .NetworkSettings.Networks}}<{{.IPAddress}}>{{end}}", "n"}, result{0, "<>\n", ""}},
		{[]string{"inspect", "gone"}, result{1, "[]\n", "Error: No such object: gone\n"}},
		{[]string{"inspect", "--type", "image", "gone"}, result{1, "[]\n", "Error response from daemon: No such image: i\n"}},
		{[]string{"inspect", "-f", "{{", "c"}, result{64, "", "template parsing error: template: :1: unclosed action\n"}},
		{[]string{"inspect", "-f", "{{.Nope}}", "c"}, result{1, "\n", "template parsing error: template: :1:2: executing \"\" at <.Nope>: map has no entry for key \"Nope\"\n"}},
		{[]string{"inspect", "--type", "foo", "c"}, result{1, "", "unknown type: \"foo\": must be one of \"container\", \"image\", \"network\", \"volume\"\n"}},
	}
	for _, tt := range tests {
		if got := f.run(t, "", tt.args...); got != tt.want {
			t.Errorf("%q: %+v\nwant %+v", tt.args, got, tt.want)
		}
	}
}

// Commands for several containers do what they can, and tell the rest.
func TestSeveral(t *testing.T) {
	f := newFake(t)
	for _, c := range []string{"POST /containers/a/stop", "POST /containers/a/kill", "POST /containers/a/restart", "POST /containers/a/start", "DELETE /containers/a"} {
		f.answer(c, 204, nil)
	}
	for _, c := range []string{"POST /containers/b/stop", "POST /containers/b/kill", "POST /containers/b/restart", "POST /containers/b/start", "DELETE /containers/b"} {
		f.answer(c, 404, "No such container: b")
	}
	f.answer("POST /containers/a/wait", 200, `{"StatusCode":7}`)
	f.answer("POST /containers/b/wait", 404, "No such container: b")
	f.answer("POST /containers/b/rename", 404, "No such container: b")
	const gone = "Error response from daemon: No such container: b\n"
	tests := []struct {
		args    string
		want    result
		request string
	}{
		{"stop -t 3 -s INT b a", result{1, "a\n", gone}, "POST /containers/a/stop?signal=INT&t=3"},
		{"restart b a", result{1, "a\n", gone}, "POST /containers/a/restart"},
		{"kill -s HUP b a", result{1, "a\n", gone}, "POST /containers/a/kill?signal=HUP"},
		{"rm -v b a", result{1, "a\n", gone}, "DELETE /containers/a?v=1"},
		{"rm -f -v b a", result{0, "a\n", gone}, "DELETE /containers/a?force=1&v=1"},
		{"start b a", result{1, "a\n", gone + "Error: failed to start containers: b\n"}, "POST /containers/a/start"},
		{"rename b a", result{1, "", gone + "Error: failed to rename container named b\n"}, "POST /containers/b/rename?name=a"},
		{"wait b a", result{1, "7\n", gone}, "POST /containers/a/wait?condition=not-running"},
	}
	for _, tt := range tests {
		got := f.run(t, "", strings.Fields(tt.args)...)
		if seen := f.seen(); got != tt.want || !slices.Contains(seen, tt.request) { // side by side, in any order
			t.Errorf("%s: %+v, %q", tt.args, got, seen)
		}
	}
}
