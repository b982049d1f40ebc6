package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// proxyConfig is an entry of "proxies" in Docker's config.json.
type proxyConfig struct {
	HTTP  string `json:"httpProxy"`
	HTTPS string `json:"httpsProxy"`
	No    string `json:"noProxy"`
	FTP   string `json:"ftpProxy"`
	All   string `json:"allProxy"`
}

// proxies adds to the options of a container's environment the proxies that
// Docker's client configuration tells for this daemon, or for every one, as
// docker does: each in capitals and not, unless the command line says otherwise.
func (a *app) proxies(env []string) ([]string, error) {
	dir := a.getenv("DOCKER_CONFIG")
	if dir == "" {
		dir = filepath.Join(a.getenv("HOME"), ".docker")
	}
	path := filepath.Join(dir, "config.json")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return env, nil
	}
	if err != nil {
		return nil, err
	}
	var config struct {
		Proxies map[string]proxyConfig `json:"proxies"`
	}
	if err := json.Unmarshal(b, &config); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	home, err := a.home()
	if err != nil {
		return nil, err
	}
	p, ok := config.Proxies["unix://"+filepath.Join(home, "docker.sock")]
	if !ok {
		p = config.Proxies["default"]
	}
	out := slices.Clone(env)
	for _, v := range []struct{ name, value string }{
		{"HTTP_PROXY", p.HTTP}, {"HTTPS_PROXY", p.HTTPS}, {"NO_PROXY", p.No}, {"FTP_PROXY", p.FTP}, {"ALL_PROXY", p.All},
	} {
		for _, name := range []string{v.name, strings.ToLower(v.name)} {
			given := slices.ContainsFunc(env, func(kv string) bool { return kv == name || strings.HasPrefix(kv, name+"=") })
			if v.value != "" && !given {
				out = append(out, name+"="+v.value)
			}
		}
	}
	return out, nil
}
