package main

import (
	"runtime"
	"testing"
)

func TestParsePlatform(t *testing.T) {
	for in, want := range map[string]string{
		"amd64": "linux/amd64/", "Linux/AMD64": "linux/amd64/", "linux/x86_64": "linux/amd64/", "linux/amd64/v1": "linux/amd64/v1",
		"aarch64": "linux/arm64/", "linux/arm64/v8": "linux/arm64/v8", "armhf": "linux/arm/", "linux/foo": "linux/foo/",
		"linux": "linux/" + runtime.GOARCH + "/", "windows/amd64": "windows/amd64/",
		"foo":     `"foo": unknown operating system or architecture: invalid argument`,
		"a/b/c/d": `"a/b/c/d": cannot parse platform specifier: invalid argument`,
		"x/":      `"" is an invalid component of "x/": platform specifier component must match "^[A-Za-z0-9_.-]+$": invalid argument`,
	} {
		got := ""
		if p, err := parsePlatform(in); err != nil {
			got = err.Error()
		} else {
			got = p.OS + "/" + p.Architecture + "/" + p.Variant
		}
		if got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
