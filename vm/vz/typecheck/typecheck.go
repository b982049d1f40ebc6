// Package typecheck type-checks our code for macOS on any system, cgo
// packages included, against the real sources of what it imports.
//
// "go vet" for darwin would run cgo, which needs Apple's compiler and headers.
// Here "go list" picks the files and go/types reads them with FakeImportC,
// which takes every C.name for granted: the Go side of each call is checked,
// the C side is not. Only errors in our own packages count; of the others
// function bodies are not even looked at.
package typecheck

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// Target is what to check for.
type Target struct {
	Dir          string // inside the module; required
	GOOS, GOARCH string // required
	// Overlay is text to take instead of a file's, by absolute path. Optional.
	Overlay map[string][]byte
}

// listed is what we use of go list's output.
type listed struct {
	ImportPath, Dir   string
	GoFiles, CgoFiles []string
	ImportMap         map[string]string
	Module            *struct {
		Main      bool
		GoVersion string
	}
	Error *struct{ Err string }
}

// ours is a package of the module that Target.Dir belongs to.
func (p listed) ours() bool { return p.Module != nil && p.Module.Main }

// Packages are checked packages by import path.
type Packages map[string]*types.Package

// Check type-checks the packages that match patterns, and all they import. The
// error joins every error in our own packages.
func Check(t Target, patterns ...string) (Packages, error) {
	pkgs, err := list(t, patterns)
	if err != nil {
		return nil, err
	}
	checked := Packages{"unsafe": types.Unsafe}
	var errs []error
	for _, p := range pkgs { // dependencies come first
		if p.Error != nil {
			errs = append(errs, fmt.Errorf("%s: %s", p.ImportPath, p.Error.Err))
			continue
		}
		if p.ImportPath == "unsafe" {
			continue
		}
		pkg, found := check(t, p, checked)
		checked[p.ImportPath] = pkg
		errs = append(errs, found...)
	}
	return checked, errors.Join(errs...)
}

// check checks one package and returns its errors if it is ours.
func check(t Target, p listed, checked Packages) (*types.Package, []error) {
	var errs []error
	note := func(err error) {
		if p.ours() {
			errs = append(errs, err)
		}
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range slices.Concat(p.GoFiles, p.CgoFiles) {
		path := filepath.Join(p.Dir, name)
		var src any
		if text, ok := t.Overlay[path]; ok {
			src = text
		}
		file, err := parser.ParseFile(fset, path, src, parser.SkipObjectResolution)
		if err != nil {
			note(err)
		}
		if file != nil {
			files = append(files, file)
		}
	}
	conf := types.Config{
		FakeImportC:      true,
		IgnoreFuncBodies: !p.ours(),
		Importer:         importer{checked, p.ImportMap},
		Sizes:            types.SizesFor("gc", t.GOARCH),
		Error:            note,
	}
	if p.Module != nil && p.Module.GoVersion != "" {
		conf.GoVersion = "go" + p.Module.GoVersion
	}
	pkg, _ := conf.Check(p.ImportPath, fset, files, nil) // errors went to note
	return pkg, errs
}

// importer finds what was checked before, as one package's imports name it.
type importer struct {
	checked Packages
	names   map[string]string // of vendored packages in the standard library
}

func (i importer) Import(path string) (*types.Package, error) {
	if real, ok := i.names[path]; ok {
		path = real
	}
	if pkg := i.checked[path]; pkg != nil {
		return pkg, nil
	}
	return nil, fmt.Errorf("package %s was not listed", path)
}

// list runs go list.
func list(t Target, patterns []string) ([]listed, error) {
	args := append([]string{"list", "-e", "-deps", "-json=ImportPath,Dir,GoFiles,CgoFiles,ImportMap,Module,Error", "--"}, patterns...)
	cmd := exec.Command("go", args...)
	cmd.Dir = t.Dir
	cmd.Env = append(os.Environ(), "GOOS="+t.GOOS, "GOARCH="+t.GOARCH, "CGO_ENABLED=1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w: %s", err, stderr.Bytes())
	}
	var pkgs []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); err == io.EOF {
			return pkgs, nil
		} else if err != nil {
			return nil, fmt.Errorf("parse go list's output: %w", err)
		}
		pkgs = append(pkgs, p)
	}
}

// HasGo says whether a directory has Go files for t.
func HasGo(t Target, dir string) bool {
	ctx := build.Default
	ctx.GOOS, ctx.GOARCH, ctx.CgoEnabled = t.GOOS, t.GOARCH, true
	_, err := ctx.ImportDir(dir, 0)
	return err == nil
}
