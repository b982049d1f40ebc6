package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Keys of the file go before the environment's variables, each for itself.
func TestProxiesConfig(t *testing.T) {
	for _, kv := range [][2]string{{"http_proxy", ""}, {"https_proxy", ""}, {"no_proxy", ""}, {"HTTP_PROXY", "http://env:1"}, {"HTTPS_PROXY", "http://env:2"}, {"NO_PROXY", "env.test"}} {
		t.Setenv(kv[0], kv[1])
	}
	path := filepath.Join(t.TempDir(), "config.toml")
	for text, want := range map[string]string{
		"":                           "http://env:1 http://env:2 env.test",
		`http-proxy = "http://f:1"`:  "http://f:1 http://env:2 env.test",
		`no-proxy = "*"`:             "http://env:1 http://env:2 *",
		`https-proxy = "socks5://f"`: "http://env:1 socks5://f env.test",
		`https-proxy = "f:1"`:        "proxies.https-proxy: want http://HOST:PORT",
		`http-proxy = "ftp://f"`:     "proxies.http-proxy: want http://HOST:PORT",
		`ftp-proxy = "http://f"`:     `unknown key "proxies.ftp-proxy"`,
	} {
		if err := os.WriteFile(path, []byte("[proxies]\n"+text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := readConfig(path)
		if err != nil {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", text, err, want)
			}
			continue
		}
		p := c.registries("").Proxies
		if got := p.HTTPProxy + " " + p.HTTPSProxy + " " + p.NoProxy; got != want {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
}
