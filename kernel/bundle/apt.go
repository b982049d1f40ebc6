package bundle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const (
	suite   = "trixie"
	keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
)

// apt runs apt-get and apt-cache with a configuration of its own, so that
// neither the machine's package lists nor its locks are touched and no
// privileges are needed. The machine's apt.conf stays in force: it may hold
// the proxy. Its hooks don't: they assume root.
type apt struct {
	dir  string // holds the configuration and the package lists
	conf string
	log  io.Writer
}

// newAPT writes a configuration for the Debian architecture arch into dir.
// security may be empty.
func newAPT(dir, arch, archive, security string, log io.Writer) (*apt, error) {
	if _, err := os.Stat(keyring); err != nil {
		return nil, fmt.Errorf("%w: install the package debian-archive-keyring", err)
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial", "empty.d"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	opts := fmt.Sprintf("[target=Packages arch=%s signed-by=%s]", arch, keyring)
	list := fmt.Sprintf("deb %s %s %s main\n", opts, archive, suite)
	if security != "" {
		list += fmt.Sprintf("deb %s %s %s-security main\n", opts, security, suite)
	}
	a := &apt{dir: dir, conf: filepath.Join(dir, "apt.conf"), log: log}
	for name, text := range map[string]string{
		"sources.list": list,
		"status":       "",
		"apt.conf":     aptConf(dir, arch),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func aptConf(dir, arch string) string {
	var b strings.Builder
	for _, name := range []string{
		"APT::Architectures", "APT::Update::Pre-Invoke", "APT::Update::Post-Invoke",
		"APT::Update::Post-Invoke-Success", "DPkg::Post-Invoke", "APT::Default-Release",
	} {
		fmt.Fprintf(&b, "#clear %s;\n", name)
	}
	for _, o := range [][2]string{
		{"APT::Architecture", arch},
		{"APT::Architectures::", arch},
		{"APT::Sandbox::User", ""},
		{"Debug::NoLocking", "1"},
		{"Acquire::Languages", "none"},
		{"Acquire::Retries", "3"},
		{"Dir::State", dir},
		{"Dir::State::lists", dir + "/lists"},
		{"Dir::State::status", dir + "/status"},
		{"Dir::Cache", dir + "/cache"},
		{"Dir::Etc::sourcelist", dir + "/sources.list"},
		{"Dir::Etc::sourceparts", dir + "/empty.d"},
		{"Dir::Etc::preferences", "/dev/null"},
		{"Dir::Etc::preferencesparts", dir + "/empty.d"},
	} {
		fmt.Fprintf(&b, "%s %q;\n", o[0], o[1])
	}
	return b.String()
}

// update fetches the package lists.
func (a *apt) update(ctx context.Context) error {
	_, err := a.run(ctx, a.dir, "apt-get", "-c", a.conf, "-q", "--error-on=any", "update")
	return err
}

// show returns the fields of the newest version of a package.
func (a *apt) show(ctx context.Context, pkg string) (map[string]string, error) {
	out, err := a.run(ctx, a.dir, "apt-cache", "-c", a.conf, "show", "--no-all-versions", pkg)
	if err != nil {
		return nil, err
	}
	fields := map[string]string{}
	for line := range strings.Lines(out) {
		if strings.TrimSpace(line) == "" {
			break
		}
		if key, value, ok := strings.Cut(line, ":"); ok && line[0] != ' ' {
			fields[key] = strings.TrimSpace(value)
		}
	}
	if fields["Package"] != pkg {
		return nil, fmt.Errorf("package %s is not in %s", pkg, suite)
	}
	return fields, nil
}

// download fetches packages into dir; apt verifies their digests.
func (a *apt) download(ctx context.Context, dir string, pkgs ...string) error {
	_, err := a.run(ctx, dir, "apt-get", append([]string{"-c", a.conf, "-q", "download"}, pkgs...)...)
	return err
}

// run returns the command's output; what it tells people goes to the log.
func (a *apt) run(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var out, diag bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diag
	if name == "apt-get" {
		cmd.Stdout = io.MultiWriter(&out, a.log)
	}
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return "", fmt.Errorf("%s: not found: the guest bundle is made from Debian packages, which needs apt", name)
		}
		return "", fmt.Errorf("%s %s: %w\n%s", name, args[len(args)-1], err, strings.TrimSpace(diag.String()))
	}
	return out.String(), nil
}
