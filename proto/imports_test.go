package proto_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// rules are who may import whom within the module, by path prefix: a package
// below "in" imports nothing of ours but what is below "may" or "in" itself.
var rules = []struct {
	in  string
	may []string
}{
	{"proto", nil},
	{"kernel", nil},
	{"guest", []string{"proto"}},
	{"vm", []string{"kernel"}},
	{"host", []string{"vm", "kernel", "proto"}},
	{"cmd/sampan-agent", []string{"guest", "proto"}},
	{"cmd/sampan", []string{"proto", "kernel"}},
}

func TestImports(t *testing.T) {
	for _, goos := range []string{"linux", "darwin"} {
		cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Imports", "sampan/...")
		cmd.Env = append(cmd.Environ(), "GOOS="+goos)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go list: %v", err)
		}
		for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
			var p struct {
				ImportPath string
				Imports    []string
			}
			if err := dec.Decode(&p); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			for _, bad := range forbidden(p.ImportPath, p.Imports) {
				t.Errorf("%s (%s) may not import %s", p.ImportPath, goos, bad)
			}
		}
	}
}

// forbidden returns the imports that break a rule.
func forbidden(pkg string, imports []string) []string {
	var bad []string
	for _, r := range rules {
		if !below(pkg, "sampan/"+r.in) {
			continue
		}
		for _, imp := range imports {
			ok := !strings.HasPrefix(imp, "sampan/") || below(imp, "sampan/"+r.in)
			for _, may := range r.may {
				ok = ok || below(imp, "sampan/"+may)
			}
			if !ok {
				bad = append(bad, imp)
			}
		}
	}
	return bad
}

func below(pkg, dir string) bool { return pkg == dir || strings.HasPrefix(pkg, dir+"/") }

// A rule that catches nothing is no rule.
func TestImportsForbidden(t *testing.T) {
	for _, c := range []struct{ pkg, imp string }{
		{"sampan/guest/agent", "sampan/host/engine"},
		{"sampan/vm/qemu", "sampan/proto"},
		{"sampan/host/api", "sampan/guest/boot"},
		{"sampan/cmd/sampan", "sampan/host/engine"},
		{"sampan/cmd/sampan", "sampan/vm"},
		{"sampan/proto", "sampan/vm"},
	} {
		if len(forbidden(c.pkg, []string{"fmt", c.imp})) != 1 {
			t.Errorf("%s may import %s", c.pkg, c.imp)
		}
	}
	if bad := forbidden("sampan/host/machine", []string{"context", "sampan/vm", "sampan/proto"}); bad != nil {
		t.Errorf("refused: %v", bad)
	}
}
