package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/distribution/reference"
	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	"github.com/docker/cli/cli/config/types"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// dockerHub is the name of Docker's own registry in the configuration.
const dockerHub = "https://index.docker.io/v1/"

// dockerConfig reads Docker's configuration, which holds credentials or says
// which helper does.
func (a *app) dockerConfig() (*configfile.ConfigFile, error) {
	dir := a.getenv("DOCKER_CONFIG")
	if dir == "" {
		dir = filepath.Join(a.getenv("HOME"), ".docker")
	}
	return config.Load(dir)
}

// registryKey names an image's registry in the configuration.
func registryKey(ref reference.Named) string {
	if domain := reference.Domain(ref); domain != "docker.io" {
		return domain
	}
	return dockerHub
}

// registryAuth is the X-Registry-Auth for an image; "" when nobody has logged
// in.
func (a *app) registryAuth(ref reference.Named) (string, error) {
	conf, err := a.dockerConfig()
	if err != nil {
		return "", err
	}
	c, err := conf.GetAuthConfig(registryKey(ref))
	if err != nil {
		return "", fmt.Errorf("credentials for %s: %w", reference.Domain(ref), err)
	}
	if c.Username == "" && c.Auth == "" && c.IdentityToken == "" && c.RegistryToken == "" {
		return "", nil
	}
	b, err := json.Marshal(registry.AuthConfig{Username: c.Username, Password: c.Password, Auth: c.Auth,
		ServerAddress: c.ServerAddress, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken})
	return base64.URLEncoding.EncodeToString(b), err
}

type loginFlags struct {
	user, password string
	stdin          bool
}

func newLoginCommand(a *app) *cobra.Command {
	var f loginFlags
	cmd := &cobra.Command{
		Use:   "login [OPTIONS] [SERVER]",
		Short: "Authenticate to a registry",
		Args:  argCount(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.password(cmd, &f); err != nil {
				return err
			}
			return a.login(cmd.Context(), server(args), f)
		},
	}
	cmd.Flags().StringVarP(&f.password, "password", "p", "", "Password or Personal Access Token (PAT)")
	cmd.Flags().BoolVar(&f.stdin, "password-stdin", false, "Take the Password or Personal Access Token (PAT) from stdin")
	cmd.Flags().StringVarP(&f.user, "username", "u", "", "Username")
	return cmd
}

// server is the registry that a command is about, as the configuration names
// it.
func server(args []string) string {
	if len(args) == 0 || args[0] == "docker.io" || args[0] == "index.docker.io" || args[0] == dockerHub {
		return dockerHub
	}
	host := strings.TrimPrefix(strings.TrimPrefix(args[0], "https://"), "http://")
	host, _, _ = strings.Cut(host, "/")
	return host
}

// password completes the flags, from stdin or by asking.
func (a *app) password(cmd *cobra.Command, f *loginFlags) error {
	if cmd.Flags().Changed("password") {
		fmt.Fprintln(a.err, "WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
		if f.stdin {
			return errors.New("--password and --password-stdin are mutually exclusive")
		}
	}
	if f.stdin {
		if f.user == "" {
			return errors.New("the --password-stdin option requires --username to be set")
		}
		b, err := io.ReadAll(io.LimitReader(a.in, 1<<20))
		f.password = strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
		return err
	}
	if f.user != "" && f.password != "" {
		return nil
	}
	in, ok := a.in.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return errors.New("Error: Cannot perform an interactive login from a non TTY device")
	}
	if f.user == "" {
		fmt.Fprint(a.out, "Username: ")
		line, err := readLine(in)
		if err != nil {
			return err
		}
		if f.user = strings.TrimSpace(line); f.user == "" {
			return errors.New("username is required")
		}
	}
	if f.password == "" {
		fmt.Fprint(a.out, "Password: ")
		b, err := term.ReadPassword(int(in.Fd()))
		fmt.Fprintln(a.out)
		if err != nil {
			return err
		}
		if f.password = string(b); f.password == "" {
			return errors.New("password is required")
		}
	}
	return nil
}

// readLine reads to the line's end and no further.
func readLine(r io.Reader) (string, error) {
	var line []byte
	for b := make([]byte, 1); ; {
		n, err := r.Read(b)
		if n == 1 && b[0] == '\n' {
			return string(line), nil
		}
		line = append(line, b[:n]...)
		if err != nil {
			return string(line), err
		}
	}
}

func (a *app) login(ctx context.Context, server string, f loginFlags) error {
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	res, err := docker.RegistryLogin(ctx, client.RegistryLoginOptions{Username: f.user, Password: f.password, ServerAddress: server})
	if err != nil {
		return err
	}
	conf, err := a.dockerConfig()
	if err != nil {
		return err
	}
	c := types.AuthConfig{Username: f.user, Password: f.password, ServerAddress: server}
	if res.Auth.IdentityToken != "" {
		c.Password, c.IdentityToken = "", res.Auth.IdentityToken
	}
	// It warns, on our stderr, when the password is kept in a file.
	if err := conf.GetCredentialsStore(server).Store(c); err != nil {
		return fmt.Errorf("error saving credentials: %w", err)
	}
	fmt.Fprintln(a.out, res.Auth.Status)
	return nil
}

func newLogoutCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "logout [SERVER]",
		Short: "Log out from a registry",
		Args:  argCount(0, 1),
		RunE:  func(_ *cobra.Command, args []string) error { return a.logout(server(args)) },
	}
}

func (a *app) logout(server string) error {
	conf, err := a.dockerConfig()
	if err != nil {
		return err
	}
	fmt.Fprintln(a.out, "Removing login credentials for", server)
	if err := conf.GetCredentialsStore(server).Erase(server); err != nil {
		return fmt.Errorf("could not erase credentials: %w", err)
	}
	return nil
}
