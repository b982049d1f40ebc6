package typecheck

import (
	"bytes"
	"go/types"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// darwin is the target, with the module's root.
func darwin(t *testing.T) (Target, string) {
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	return Target{Dir: root, GOOS: "darwin", GOARCH: "arm64"}, root
}

// TestTypeCheck is the lint: what only a Mac can build has no type errors.
func TestTypeCheck(t *testing.T) {
	target, root := darwin(t)
	patterns := []string{"./vm/vz"}
	if HasGo(target, filepath.Join(root, "cmd/sampand")) {
		patterns = append(patterns, "./cmd/sampand")
	}
	pkgs, err := Check(target, patterns...)
	if err != nil {
		t.Fatal(err)
	}
	driver := pkgs["sampan/vm/vz"].Scope().Lookup("Driver")
	contract := pkgs["sampan/vm"].Scope().Lookup("Driver").Type().Underlying().(*types.Interface)
	if !types.Implements(types.NewPointer(driver.Type()), contract) {
		t.Error("*vz.Driver is no vm.Driver")
	}
}

// TestTypeCheckField holds on to a field of the library that newConn reads by
// its name.
func TestTypeCheckField(t *testing.T) {
	target, _ := darwin(t)
	pkgs, err := Check(target, "./vm/vz")
	if err != nil {
		t.Fatal(err)
	}
	obj := pkgs["github.com/Code-Hex/vz/v3"].Scope().Lookup("VirtioSocketConnection")
	fields := obj.Type().Underlying().(*types.Struct)
	for f := range fields.Fields() {
		if f.Name() == "rawConn" && f.Type().String() == "net.Conn" {
			return
		}
	}
	t.Errorf("%s has no field rawConn of type net.Conn: fix newConn", obj)
}

// TestTypeCheckFindsErrors plants one error at a time.
func TestTypeCheckFindsErrors(t *testing.T) {
	for _, tt := range []struct {
		name, file, old, new, want string
	}{
		{
			"an argument of the library has another type", "vm/vz/driver_darwin.go",
			"uint64(cfg.Memory)", "cfg.Memory", "cannot use cfg.Memory",
		},
		{
			"the library has no such function", "vm/vz/devices_darwin.go",
			"vz.NewMACAddress(", "vz.NewMacAddress(", "undefined: vz.NewMacAddress",
		},
		{
			"a result too few", "vm/vz/machine_darwin.go",
			"c, err := m.socket.Connect(port)", "c := m.socket.Connect(port); var err error", "assignment mismatch",
		},
		{
			"not Go", "vm/vz/conn_darwin.go",
			"func newConn(", "func func newConn(", "expected",
		},
		{
			"an interface of vm is not met", "vm/vz/driver_darwin.go",
			"return m, nil", "return d, nil", "does not implement vm.Machine",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			target, root := darwin(t)
			path := filepath.Join(root, tt.file)
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			planted := bytes.Replace(text, []byte(tt.old), []byte(tt.new), 1)
			if bytes.Equal(planted, text) {
				t.Fatalf("%s has no %q any more: adapt the test", tt.file, tt.old)
			}
			target.Overlay = map[string][]byte{path: planted}
			_, err = Check(target, "./vm/vz")
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v, want one in %s with %q", err, tt.file, tt.want)
			}
		})
	}
}
