package api

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var updateDoc = flag.Bool("update", false, "write docs/compatibility.md's part about endpoints")

// partial says what is missing of an endpoint that is there.
var partial = map[string]string{
	"GET /containers/{id}/top":     "ps_args: see `top` above",
	"PUT /containers/{id}/archive": "bzip2 and xz are not unpacked",
	"POST /containers/create":      "fields that are not supported are refused by name",
	"GET /containers/json":         "the filter is-task is refused",
	"POST /containers/{id}/update": "devices and limits that `run` refuses are refused by name",
	"GET /events":                  "those of containers, images, volumes and networks",
	"POST /volumes/create":         "the driver local, without options",
	"POST /networks/create":        "see docs/network.md: what is not supported is refused by name",
	"GET /images/search":           "asks no registry: refused",
	"GET /info":                    "what there is to tell",
}

// endings of the patterns that take a name with slashes and what follows it.
var endings = map[string][]string{
	"GET /images/{name...}":  {"json", "history", "get"},
	"POST /images/{name...}": {"tag", "push"},
}

// why says for groups of endpoints that are not there what is in their way.
var why = map[string]string{
	"build": "no builder", "session": "no builder", "swarm": "no swarm", "nodes": "no swarm", "services": "no swarm", "tasks": "no swarm",
	"secrets": "no swarm", "configs": "no swarm", "plugins": "no plugins",
}

var (
	swaggerPath   = regexp.MustCompile(`^  (/\S*):`)
	swaggerMethod = regexp.MustCompile(`^    (get|head|post|put|delete):`)
)

// endpoints are those of the API's definition, in its order.
func endpoints(t *testing.T) (list []string) {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/moby/api").Output()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "swagger.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	path := ""
	for line := range strings.Lines(string(text)) {
		if m := swaggerPath.FindStringSubmatch(line); m != nil {
			path = m[1]
		} else if m := swaggerMethod.FindStringSubmatch(line); m != nil && path != "" {
			list = append(list, strings.ToUpper(m[1])+" "+path)
		}
	}
	if len(list) < 100 {
		t.Fatalf("only %d endpoints in the definition", len(list))
	}
	return list
}

// TestCompatibility keeps the document's part about endpoints true.
func TestCompatibility(t *testing.T) {
	s := &server{mux: http.NewServeMux()}
	for _, r := range s.routes() {
		s.mux.HandleFunc(r.pattern, func(http.ResponseWriter, *http.Request) {})
	}
	var b strings.Builder
	b.WriteString("| endpoint | |\n|---|---|\n")
	for _, e := range endpoints(t) {
		status := "yes"
		switch about := partial[e]; {
		case !s.serves(t, e):
			if about = why[strings.Split(e, "/")[1]]; about == "" {
				about = "not there yet"
			}
			status = "no (" + about + ")"
		case about != "":
			status = "partial (" + about + ")"
		}
		fmt.Fprintf(&b, "| `%s` | %s |\n", e, status)
	}
	own := 0
	for _, r := range s.routes() {
		if strings.Contains(r.pattern, "/sampan/") {
			fmt.Fprintf(&b, "| `%s` | Sampan's own |\n", r.pattern)
			own++
		}
	}
	if own == 0 {
		t.Error("no endpoints of Sampan's own")
	}
	compare(t, b.String())
}

// serves says whether there is a route for an endpoint.
func (s *server) serves(t *testing.T, endpoint string) bool {
	t.Helper()
	method, path, _ := strings.Cut(endpoint, " ")
	r, err := http.NewRequest(method, "http://sampan"+regexp.MustCompile(`\{[^}]*\}`).ReplaceAllString(path, "x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, pattern := s.mux.Handler(r)
	if ends, ok := endings[pattern]; ok {
		return slices.Contains(ends, path[strings.LastIndexByte(path, '/')+1:])
	}
	return pattern != ""
}

// compare compares the document's part with what it should be, or writes it.
func compare(t *testing.T, want string) {
	t.Helper()
	const doc = "../../docs/compatibility.md"
	text, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	begin, end := "<!-- endpoints: made by go test -update -->\n", "<!-- end of endpoints -->"
	before, rest, ok := strings.Cut(string(text), begin)
	got, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s: no part about endpoints", doc)
	}
	if got == want {
		return
	}
	if !*updateDoc {
		t.Fatalf("%s is not what the API does (go test ./host/api -run TestCompatibility -update writes it)", doc)
	}
	if err := os.WriteFile(doc, []byte(before+begin+want+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}
