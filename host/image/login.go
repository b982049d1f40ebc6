package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Login shows credentials to a registry, which is named by its host, or by a
// URL as Docker's own is ("https://index.docker.io/v1/"). An error of the class
// errdefs.ErrUnauthenticated says that they are wrong.
func (s *Store) Login(ctx context.Context, server string, auth authn.Authenticator) error {
	host := strings.TrimPrefix(strings.TrimPrefix(server, "https://"), "http://")
	host, _, _ = strings.Cut(host, "/")
	if host == "" || host == "docker.io" {
		host = name.DefaultRegistry
	}
	if auth == nil {
		auth = authn.Anonymous
	}
	base, err := s.transport(host, nil)
	if err != nil {
		return err
	}
	reg, err := name.NewRegistry(host, s.nameOptions(host)...)
	if err != nil {
		return &classed{text: "invalid registry name: " + server, class: ErrInvalid, cause: err}
	}
	url := reg.Scheme() + "://" + reg.RegistryStr() + "/v2/"
	rt, err := transport.NewWithContext(ctx, reg, auth, base, nil)
	if err == nil {
		var req *http.Request
		if req, err = http.NewRequestWithContext(ctx, http.MethodGet, url, nil); err != nil {
			return err
		}
		var resp *http.Response
		if resp, err = (&http.Client{Transport: rt}).Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = &transport.Error{StatusCode: resp.StatusCode}
		}
	}
	var te *transport.Error
	if errors.As(err, &te) {
		text := fmt.Sprintf("login attempt to %s failed with status: %d %s", url, te.StatusCode, http.StatusText(te.StatusCode))
		if te.StatusCode == http.StatusUnauthorized || te.StatusCode == http.StatusForbidden {
			return &classed{text: text, class: errdefs.ErrUnauthenticated, cause: err}
		}
		return &classed{text: text, class: errdefs.ErrUnavailable, cause: err}
	}
	return fmt.Errorf("Get %q: %w", url, err)
}
