package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

// Env is the variable that names the bundle's directory.
const Env = "SAMPAN_GUEST"

// ErrNotFound is wrapped by Find's error when there is no bundle.
var ErrNotFound = errors.New("no guest bundle")

// Find tells the directory of the bundle for this machine's architecture:
// SAMPAN_GUEST, else guest-ARCH beside the executable or in ../share/sampan,
// else dist/guest-ARCH in a directory above the executable (a source tree).
func Find() (dir string, err error) {
	exe, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find guest bundle: %w", err)
	}
	if real, err := filepath.EvalSymlinks(exe); err == nil {
		exe = real
	}
	return find(os.Getenv(Env), exe, runtime.GOARCH)
}

// FindFrom is Find for the dist/guest-ARCH in dir or above it, as tests in a
// source tree need it. SAMPAN_GUEST goes first here as well.
func FindFrom(dir string) (string, error) {
	dir, err := filepath.Abs(dir) // "." has nothing above it
	if err != nil {
		return "", err
	}
	return find(os.Getenv(Env), filepath.Join(dir, "x"), runtime.GOARCH)
}

func find(env, exe, arch string) (string, error) {
	if env != "" {
		// What was asked for is never silently replaced by something else.
		if !isBundle(env) {
			return "", fmt.Errorf("%w in %s (from %s): run `make guest`", ErrNotFound, env, Env)
		}
		return filepath.Abs(env)
	}
	name := "guest-" + arch
	start := filepath.Dir(exe)
	candidates := []string{
		filepath.Join(start, "..", "share", "sampan", name),
		filepath.Join(start, name),
	}
	for d := start; ; d = filepath.Dir(d) {
		candidates = append(candidates, filepath.Join(d, "dist", name))
		if d == filepath.Dir(d) {
			break
		}
	}
	for _, c := range candidates {
		if isBundle(c) {
			return c, nil
		}
	}
	return "", fmt.Errorf("%w for %s near %s: run `make guest`, or name one in %s", ErrNotFound, arch, start, Env)
}

func isBundle(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, ManifestFile))
	return err == nil
}
