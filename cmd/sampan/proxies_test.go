package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What docker's client configuration says of proxies, containers are told.
func TestProxies(t *testing.T) {
	dir, home := t.TempDir(), "/tmp/sampan-home"
	a := &app{getenv: func(name string) string {
		return map[string]string{"DOCKER_CONFIG": dir, "SAMPAN_HOME": home}[name]
	}}
	set := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check := func(env []string, want ...string) {
		t.Helper()
		if got, err := a.proxies(env); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	check([]string{"A=1"}, "A=1")
	set(`{"proxies":{"default":{"httpProxy":"http://p:1","noProxy":"x,y","allProxy":"a"},"unix:///elsewhere":{"httpsProxy":"no"}}}`)
	check([]string{"A=1"}, "A=1", "HTTP_PROXY=http://p:1", "http_proxy=http://p:1", "NO_PROXY=x,y", "no_proxy=x,y", "ALL_PROXY=a", "all_proxy=a")
	check([]string{"HTTP_PROXY=mine", "no_proxy"}, "HTTP_PROXY=mine", "no_proxy", "http_proxy=http://p:1", "NO_PROXY=x,y", "ALL_PROXY=a", "all_proxy=a")
	set(`{"proxies":{"default":{"httpProxy":"http://p:1"},"unix://` + home + `/docker.sock":{"httpsProxy":"s","ftpProxy":"f"}}}`)
	check(nil, "HTTPS_PROXY=s", "https_proxy=s", "FTP_PROXY=f", "ftp_proxy=f")
	set(`{`)
	if _, err := a.proxies(nil); err == nil || !strings.Contains(err.Error(), "config.json") {
		t.Errorf("a damaged file: %v", err)
	}
}
