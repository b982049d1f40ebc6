package api_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"sampan/host/api"
)

func TestVersions(t *testing.T) {
	d := start(t)
	for _, c := range []struct {
		version, words string
		code           int
	}{
		{"1.40", "", 200},
		{api.MaxVersion, "", 200},
		{"1.39", "client version 1.39 is too old. Minimum supported API version is 1.40", 400},
		{"0.99", "too old", 400},
		{"1.4", "too old", 400},
		{"1.999", "client version 1.999 is too new. Maximum supported API version is " + api.MaxVersion, 400},
		{"99999999999999999999.1", "too new", 400},
	} {
		if code, body := d.raw("GET", "/v"+c.version+"/version", ""); code != c.code || !strings.Contains(body, c.words) {
			t.Errorf("version %s: %d %s; want %d %q", c.version, code, body, c.code, c.words)
		}
	}
	if _, err := d.client.Ping(t.Context(), client.PingOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := d.client.ServerVersion(t.Context(), client.ServerVersionOptions{}); err != nil {
		t.Error(err)
	}
	if got := d.client.ClientVersion(); got != api.MaxVersion {
		t.Errorf("negotiated %s, want %s", got, api.MaxVersion)
	}
	d.ok("version")
	d.ok("info")
	if d.machine.boots != 0 {
		t.Errorf("booted %d times", d.machine.boots)
	}
}

func TestStatusCodes(t *testing.T) {
	d := start(t)
	d.ok("run", "-d", "--name", "up", "img", "sleep")
	for _, c := range []struct {
		method, path, body, words string
		code                      int
	}{
		{"GET", "/nope", "", "page not found", 404},
		{"DELETE", "/containers", "", "sampan: DELETE /containers is not supported", 501},
		{"GET", "/containers/nope/json", "", "No such container: nope", 404},
		{"GET", "/containers/up/checkpoints", "", "sampan: GET /containers/up/checkpoints is not supported", 501},
		{"POST", "/build", "", "sampan: POST /build is not supported: there is no builder in here. Build with another (buildah, podman, buildctl) into an archive, and load that: sampan load -i FILE", 501},
		{"POST", "/swarm/init", "{}", "is not supported", 501},
		{"POST", "/containers/up/start", "", "", 304},
		{"POST", "/containers/up/kill?signal=NOPE", "", "invalid signal: NOPE", 400},
		{"POST", "/containers/up/stop?t=x", "", "invalid syntax", 400},
		{"DELETE", "/containers/up", "", "stop the container before removing", 409},
		{"POST", "/containers/create", "{", "invalid JSON", 400},
		{"POST", "/containers/create", `{"Image":"img"} x`, "invalid JSON", 400},
		{"POST", "/containers/create", `[]`, "invalid JSON", 400},
		{"POST", "/containers/create", ``, "config cannot be empty", 400},
		{"POST", "/containers/create", `{"Image":"nope"}`, "No such image: nope:latest", 404},
		{"POST", "/containers/create?name=a/b", `{"Image":"img"}`, "Invalid container name (a/b)", 400},
		{"POST", "/containers/create", `{"Image":"img","HostConfig":{"Devices":[{"PathOnHost":"null"}]}}`, "invalid device specification", 400},
		{"POST", "/containers/create", `{"Image":"img","HostConfig":{"CgroupParent":"/x"}}`, "sampan: HostConfig.CgroupParent is not supported", 501},
		{"POST", "/containers/create", `{"Image":"` + strings.Repeat("x", 5<<20) + `"}`, "larger than", 413},
		{"GET", "/containers/up/logs", "", "you must choose at least one stream", 400},
		{"POST", "/containers/up/wait?condition=nope", "", "invalid condition", 400},
		{"POST", "/containers/up/attach?detachKeys=nope-x", "", "Invalid detach keys", 400},
		{"GET", "/containers/json?filters=x", "", "invalid filter", 400},
		{"GET", "/containers/json?limit=x", "", "invalid syntax", 400},
		{"POST", "/volumes/create", `{"Driver":"nfs"}`, "plugin \\\"nfs\\\" not found", 404},
		{"POST", "/volumes/create", `{"DriverOpts":{"type":"nfs"}}`, "DriverOpts of a volume is not supported", 501},
		{"POST", "/containers/up/resize?h=1", "", "invalid terminal size", 400},
	} {
		if code, body := d.raw(c.method, c.path, c.body); code != c.code || !strings.Contains(body, c.words) {
			t.Errorf("%s %s: %d %.200s; want %d %q", c.method, c.path, code, body, c.code, c.words)
		}
	}
}

// A request of which half has come makes nothing.
func TestHalfSentRequest(t *testing.T) {
	d := start(t)
	c := d.dial()
	fmt.Fprintf(c, "POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"Image\":\"img\"")
	c.CloseWrite()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != 400 {
		t.Errorf("%v, %v; want 400", resp, err)
	}
	if out := d.ok("ps", "-aq"); out != "" {
		t.Errorf("made: %s", out)
	}
}

// A client that knows nothing of upgrades, sends its input at once and ends its
// side gets everything: the end of the client's side is no end of the request.
func TestHijackWithoutUpgrade(t *testing.T) {
	d := start(t)
	for _, c := range []struct{ name, headers, input, want string }{
		{"plain", "", "hello", "5\n"},
		{"upgrade", "Connection: Upgrade\r\nUpgrade: tcp\r\n", "hello", "5\n"},
		// Its end comes before the connection is taken over.
		{"no input", "", "", "0\n"},
		// A body is no input: dockerode sends one.
		{"body", "Content-Type: application/json\r\nContent-Length: 15\r\n", `{"stream":true}hello`, "5\n"},
		{"body and upgrade", "Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 15\r\n", `{"stream":true}hello`, "5\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			id := d.ok("create", "-i", "img", "wc")
			conn := d.dial()
			fmt.Fprintf(conn, "POST /containers/%s/attach?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1\r\nHost: x\r\n%s\r\n%s", id, c.headers, c.input)
			conn.CloseWrite()
			r := bufio.NewReader(conn)
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			want := map[bool]int{true: 101, false: 200}[strings.Contains(c.headers, "Upgrade")]
			if resp.StatusCode != want || resp.Header.Get("Content-Type") != "application/vnd.docker.multiplexed-stream" {
				t.Errorf("%d %q, want %d", resp.StatusCode, resp.Header, want)
			}
			time.Sleep(20 * time.Millisecond) // for a server that would notice the end
			d.ok("start", id)
			body, err := io.ReadAll(r)
			if want := "\x01\x00\x00\x00\x00\x00\x00\x02" + c.want; string(body) != want || err != nil {
				t.Errorf("%q, %v; want %q", body, err, want)
			}
		})
	}
}

// The same for exec; what follows the request's JSON is no input.
func TestExecHijackWithoutUpgrade(t *testing.T) {
	d := start(t)
	d.ok("run", "-d", "--name", "up", "img", "sleep")
	for _, body := range []string{`{}`, "{}\n", "{\"Tty\":false}\n \n"} {
		_, answer := d.raw("POST", "/containers/up/exec", `{"Cmd":["cat"],"AttachStdin":true,"AttachStdout":true}`)
		id := strings.Split(answer, `"`)[3]
		c := d.dial()
		// The body's end comes late.
		fmt.Fprintf(c, "POST /exec/%s/start HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", id, len(body), body[:len(body)-1])
		time.Sleep(10 * time.Millisecond)
		fmt.Fprintf(c, "%shello", body[len(body)-1:])
		c.CloseWrite()
		r := bufio.NewReader(c)
		if _, err := http.ReadResponse(r, nil); err != nil {
			t.Fatal(err)
		}
		out, err := io.ReadAll(r)
		if want := "\x01\x00\x00\x00\x00\x00\x00\x05hello"; string(out) != want || err != nil {
			t.Errorf("body %q: %q, %v; want %q", body, out, err, want)
		}
	}
}
