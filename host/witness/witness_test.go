package witness_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sampan/host/witness"
)

var described = sync.OnceValues(func() (*witness.API, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/moby/api").Output()
	if err != nil {
		return nil, err
	}
	return witness.Open(filepath.Join(strings.TrimSpace(string(out)), "docs"), "1.50")
})

// newProxy is a witness before a daemon that answers all alike.
func newProxy(t *testing.T, daemon http.HandlerFunc) (*witness.Proxy, *http.Client, func() *net.UnixConn) {
	t.Helper()
	api, err := described()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ln, err := net.Listen("unix", filepath.Join(dir, "daemon"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: daemon}
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
	p := &witness.Proxy{Socket: filepath.Join(dir, "daemon"), API: api}
	path := filepath.Join(dir, "socket")
	if err := p.Listen(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	dial := func() *net.UnixConn {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(30 * time.Second))
		t.Cleanup(func() { c.Close() })
		return c.(*net.UnixConn)
	}
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return dial(), nil }}}
	return p, client, dial
}

// Whatever is wrong in either direction is found, by its place; what is right,
// and what is refused, is not.
func TestFindings(t *testing.T) {
	for _, c := range []struct {
		ask    string // METHOD PATH [BODY]
		status int
		answer string
		want   []string
	}{
		{`GET /v1.50/volumes`, 200, `{"Volumes":[{"Name":"a","Driver":"local","Mountpoint":"/","Labels":null,"Options":{},"Scope":"local"}],"Warnings":null}`, nil},
		{`GET /v1.50/volumes`, 200, `{"Volumes":[{"Name":1,"Foo":1,"Mountpoint":"/","Labels":{"a":2},"Options":{},"Scope":"here"}]}`, []string{
			`VolumeList answer .Volumes[].Foo: unknown`,
			`VolumeList answer .Volumes[].Labels.*: integer for string`,
			`VolumeList answer .Volumes[].Name: integer for string`,
			`VolumeList answer .Volumes[].Scope: "here" is none of ["local" "global"]`,
			`VolumeList answer .Volumes[].Driver: missing`}},
		{`GET /volumes?wrong=1`, 200, `{}`, []string{`VolumeList request ?wrong: unknown`}},
		{`GET /v1.50/volumes`, 206, `{}`, []string{`VolumeList answer 206: unknown`}},
		{`GET /v1.50/volumes`, 500, `{"msg":"x"}`, []string{`VolumeList error .msg: unknown`, `VolumeList error .message: missing`}},
		{`POST /v1.50/containers/a/rename`, 204, ``, []string{`ContainerRename request ?name: missing`}},
		{`POST /v1.50/containers/create {"Image":"a","Imago":"b","HostConfig":{"Memory":"1"}}`, 201, `{"Id":"a","Warnings":[]}`, []string{
			`ContainerCreate request .HostConfig.Memory: string for integer`,
			`ContainerCreate request .Imago: unknown`}},
		{`POST /v1.50/containers/create {"Imago":"b"}`, 400, `{"message":"no"}`, nil},
		{`GET /v1.50/images/with/slash:1/json`, 200, `{"Foo":1}`, []string{`ImageInspect answer .Foo: unknown`}},
		{`GET /v1.50/nothing`, 200, ``, []string{`GET /v1.50/nothing: not described`}},
		{`GET /v1.50/events`, 200, `{"Type":"container"}{"Type":"boat"}`, []string{
			`SystemEvents answer .Type: "boat" is none of ["builder" "config" "container" "daemon" "image" "network" "node" "plugin" "secret" "service" "volume"]`}},
		{`GET /sampan/machine`, 200, `{"Foo":1}`, nil},
	} {
		p, client, _ := newProxy(t, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(c.status)
			io.WriteString(w, c.answer)
		})
		method, rest, _ := strings.Cut(c.ask, " ")
		path, body, _ := strings.Cut(rest, " ")
		req, err := http.NewRequest(method, "http://docker"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		if err != nil || string(got) != c.answer || resp.StatusCode != c.status {
			t.Errorf("%s: the client sees %d %q, %v", c.ask, resp.StatusCode, got, err)
		}
		resp.Body.Close()
		p.Close() // all has been read
		var what []string
		for _, f := range p.Findings() {
			what = append(what, f.What)
		}
		slices.Sort(what)
		slices.Sort(c.want)
		if !slices.Equal(what, c.want) {
			t.Errorf("%s: %d %s\nfound %q\nwant  %q", c.ask, c.status, c.answer, what, c.want)
		}
	}
}

// A connection that becomes something else is handed on as it is, and the end of
// one direction does not end the other.
func TestUpgrade(t *testing.T) {
	p, _, dial := newProxy(t, func(w http.ResponseWriter, r *http.Request) {
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
		text, _ := io.ReadAll(buffered) // to the half-close
		fmt.Fprintf(conn, "%d bytes: %s", len(text), text)
	})
	c := dial()
	io.WriteString(c, "POST /v1.50/containers/a/attach?stream=1 HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	in := bufio.NewReader(c)
	if resp, err := http.ReadResponse(in, nil); err != nil || resp.StatusCode != 101 {
		t.Fatal(resp, err)
	}
	io.WriteString(c, "GET / HTTP/0\r\n\r\nno\x00HTTP")
	c.CloseWrite()
	if got, err := io.ReadAll(in); err != nil || string(got) != "23 bytes: GET / HTTP/0\r\n\r\nno\x00HTTP" {
		t.Errorf("%q, %v", got, err)
	}
	p.Close()
	if f := p.Findings(); len(f) > 0 {
		t.Error(f)
	}
}

// Every exception has its reason.
func TestReasons(t *testing.T) {
	if n := witness.Unexplained(); len(n) > 0 {
		t.Errorf("exceptions without a reason: %q", n)
	}
	if !witness.Excepted("ContainerExec request .Detach: unknown") || witness.Excepted("ContainerExec request .Detach") {
		t.Error("the list is not read as it is written")
	}
}
