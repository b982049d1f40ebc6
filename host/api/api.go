package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"runtime"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/common"
	"github.com/moby/moby/client"

	"sampan/host/engine"
	"sampan/host/image"
)

// Versions of the API that are served: those of the library.
const (
	MaxVersion = client.MaxAPIVersion
	MinVersion = client.MinAPIVersion
)

// maxBody bounds a JSON request.
const maxBody = 4 << 20

// Config of the API. All fields are required.
type Config struct {
	Engine *engine.Engine
	Images *image.Store
	// Build of this daemon; clients compare it with their own.
	Build string
	// Home is $SAMPAN_HOME, for /info.
	Home string
	Log  *slog.Logger
}

type server struct {
	Config
	mux *http.ServeMux
}

// New returns the API's handler.
func New(cfg Config) http.Handler {
	s := &server{Config: cfg, mux: http.NewServeMux()}
	for _, r := range s.routes() {
		s.mux.HandleFunc(r.pattern, s.handler(r.serve))
	}
	return s
}

// route is one endpoint: a pattern of http.ServeMux without the version.
type route struct {
	pattern string
	serve   func(http.ResponseWriter, *http.Request) error
}

func (s *server) routes() []route {
	return []route{
		{"GET /_ping", s.ping}, // and HEAD
		{"GET /version", s.version},
		{"GET /info", s.info},
		{"GET /events", s.events},
		{"GET /system/df", s.diskUsage},
		{"POST /auth", s.auth},
		{"POST /build/prune", s.buildPrune},

		{"POST /images/create", s.imageCreate},
		{"POST /images/load", s.imageLoad},
		{"POST /images/prune", s.imagePrune},
		{"GET /images/get", s.imageSaveAll},
		{"GET /images/search", s.imageSearch},
		{"GET /images/json", s.imageList},
		{"GET /images/{name...}", s.imageGet},
		{"POST /images/{name...}", s.imagePost},
		{"DELETE /images/{name...}", s.imageRemove},

		{"POST /containers/create", s.containerCreate},
		{"GET /containers/json", s.containerList},
		{"POST /containers/prune", s.containerPrune},
		{"GET /containers/{name}/json", s.containerInspect},
		{"GET /containers/{name}/logs", s.containerLogs},
		{"POST /containers/{name}/start", s.containerStart},
		{"POST /containers/{name}/stop", s.containerStop},
		{"POST /containers/{name}/restart", s.containerRestart},
		{"POST /containers/{name}/kill", s.containerKill},
		{"POST /containers/{name}/wait", s.containerWait},
		{"POST /containers/{name}/attach", s.containerAttach},
		{"POST /containers/{name}/resize", s.containerResize},
		{"POST /containers/{name}/rename", s.containerRename},
		{"DELETE /containers/{name}", s.containerRemove},
		{"DELETE /containers/{name}/{alias}", s.linkRemove},
		{"POST /commit", s.commit},
		{"POST /containers/{name}/pause", s.containerPause},
		{"POST /containers/{name}/unpause", s.containerUnpause},
		{"POST /containers/{name}/update", s.containerUpdate},
		{"GET /containers/{name}/top", s.containerTop},
		{"GET /containers/{name}/stats", s.containerStats},
		{"HEAD /containers/{name}/archive", s.archiveStat},
		{"GET /containers/{name}/archive", s.archiveGet},
		{"PUT /containers/{name}/archive", s.archivePut},
		{"GET /containers/{name}/export", s.containerExport},
		{"GET /containers/{name}/changes", s.containerChanges},

		{"POST /containers/{name}/exec", s.execCreate},
		{"POST /exec/{id}/start", s.execStart},
		{"POST /exec/{id}/resize", s.execResize},
		{"GET /exec/{id}/json", s.execInspect},

		{"GET /volumes", s.volumeList},
		{"POST /volumes/create", s.volumeCreate},
		{"POST /volumes/prune", s.volumePrune},
		{"GET /volumes/{name}", s.volumeInspect},
		{"DELETE /volumes/{name}", s.volumeRemove},

		{"GET /sampan/volumes/{name}/tar", s.volumeExport},
		{"PUT /sampan/volumes/{name}/tar", s.volumeImport},

		{"GET /networks", s.networkList},
		{"POST /networks/create", s.networkCreate},
		{"POST /networks/prune", s.networkPrune},
		{"GET /networks/{name}", s.networkInspect},
		{"DELETE /networks/{name}", s.networkRemove},
		{"POST /networks/{name}/connect", s.networkConnect},
		{"POST /networks/{name}/disconnect", s.networkDisconnect},

		{"POST /sampan/machine/check", s.imageCheck},
		{"GET /sampan/machine", s.machineStatus},
		{"GET /sampan/machine/usage", s.machineUsage},
		{"POST /sampan/machine/start", s.machineStart},
		{"POST /sampan/machine/stop", s.machineStop},
		{"POST /sampan/machine/disk", s.machineDisk},
		{"GET /sampan/machine/logs", s.machineLogs},
		{"POST /sampan/machine/exec", s.machineExec},
	}
}

// docker are the first words of Docker's other endpoints: what we lack of them
// is not supported, anything else does not exist.
var docker = regexp.MustCompile(`^/(images|containers|exec|volumes|networks|build|commit|auth|session|grpc|system|distribution|swarm|nodes|services|tasks|secrets|configs|plugins)(/|$)`)

// linkPath is what clients ask of a container by the name that a link gives it,
// OWNER/ALIAS, which they put into the path as it is.
var linkPath = regexp.MustCompile(`^(/containers/)([^/]+/[^/]+)(/[a-z]+)$`)

var versioned = regexp.MustCompile(`^/v(\d+)\.(\d+)(/.*)$`)

// ServeHTTP checks and strips the version, and finds the endpoint.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Api-Version", MaxVersion)
	h.Set("Ostype", "linux")
	h.Set("Docker-Experimental", "false")
	h.Set("Server", "Sampan/"+s.Build+" (linux)")
	version := MaxVersion
	if m := versioned.FindStringSubmatch(r.URL.Path); m != nil {
		version = m[1] + "." + m[2]
		if less(version, MinVersion) {
			fail(w, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", version, MinVersion)))
			return
		}
		if less(MaxVersion, version) {
			fail(w, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("client version %s is too new. Maximum supported API version is %s", version, MaxVersion)))
			return
		}
		u := *r.URL
		u.Path, u.RawPath = m[3], ""
		r = r.WithContext(context.WithValue(r.Context(), versionKey{}, version))
		r.URL = &u
	}
	_, pattern := s.mux.Handler(r)
	if m := linkPath.FindStringSubmatch(r.URL.Path); m != nil && pattern == "" {
		u := *r.URL
		u.RawPath = m[1] + url.PathEscape(m[2]) + m[3]
		r = r.WithContext(r.Context())
		r.URL = &u
		_, pattern = s.mux.Handler(r)
	}
	if pattern == "" {
		if docker.MatchString(r.URL.Path) {
			fail(w, errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf("sampan: %s %s is not supported%s", r.Method, r.URL.Path, instead[r.URL.Path])))
		} else {
			fail(w, errdefs.ErrNotFound.WithMessage("page not found"))
		}
		return
	}
	s.mux.ServeHTTP(w, r)
}

// instead is what to do where a path is of no use, by path.
var instead = map[string]string{"/build": buildInstead, "/session": buildInstead, "/grpc": buildInstead}

const buildInstead = ": there is no builder in here. Build with another (buildah, podman, buildctl) into an archive, and load that: sampan load -i FILE"

type versionKey struct{}

// clientVersion is the version of the API that the client speaks.
func clientVersion(r *http.Request) string {
	if v, ok := r.Context().Value(versionKey{}).(string); ok {
		return v
	}
	return MaxVersion
}

// less compares versions number by number.
func less(a, b string) bool {
	aMajor, aMinor, _ := strings.Cut(a, ".")
	bMajor, bMinor, _ := strings.Cut(b, ".")
	if aMajor != bMajor {
		return number(aMajor) < number(bMajor)
	}
	return number(aMinor) < number(bMinor)
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 1 << 30 // too many digits
	}
	return n
}

// handler adapts an endpoint: its error becomes the answer, unless one has
// begun.
func (s *server) handler(serve func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		t := &tracker{ResponseWriter: w}
		err := serve(t, r)
		switch {
		case err == nil || errors.Is(err, context.Canceled) && r.Context().Err() != nil:
		case t.began:
			s.Log.Warn("an answer was cut short", "method", r.Method, "path", r.URL.Path, "error", err)
		default:
			if code := status(err); code >= 500 && code != http.StatusNotImplemented {
				s.Log.Error("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
			}
			fail(w, err)
		}
	}
}

// tracker knows whether an answer has begun.
type tracker struct {
	http.ResponseWriter
	began bool
}

func (t *tracker) WriteHeader(code int) { t.began = true; t.ResponseWriter.WriteHeader(code) }

func (t *tracker) Write(p []byte) (int, error) { t.began = true; return t.ResponseWriter.Write(p) }

// Unwrap is for http.ResponseController: flushing and hijacking.
func (t *tracker) Unwrap() http.ResponseWriter { return t.ResponseWriter }

// status maps an error's class to HTTP.
func status(err error) int {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return http.StatusRequestEntityTooLarge
	case errdefs.IsNotFound(err):
		return http.StatusNotFound
	case errdefs.IsInvalidArgument(err):
		return http.StatusBadRequest
	case errdefs.IsConflict(err), errdefs.IsAlreadyExists(err):
		return http.StatusConflict
	case errdefs.IsNotImplemented(err):
		return http.StatusNotImplemented
	case errdefs.IsNotModified(err):
		return http.StatusNotModified
	case errdefs.IsUnauthorized(err):
		return http.StatusUnauthorized
	case errdefs.IsPermissionDenied(err):
		return http.StatusForbidden
	case errdefs.IsUnavailable(err):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

func fail(w http.ResponseWriter, err error) {
	code := status(err)
	if code == http.StatusNotModified { // which has no body
		w.WriteHeader(code)
		return
	}
	answer(w, code, common.ErrorResponse{Message: err.Error()})
}

// answer sends v as JSON.
func answer(w http.ResponseWriter, code int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	return json.NewEncoder(w).Encode(v)
}

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

// decode reads a JSON request; an empty one leaves v as it is. It reads to the
// body's end: what a hijacked connection would leave of it, were it only a line
// feed, would be the process's input.
func decode(w http.ResponseWriter, r *http.Request, v any) error {
	inTime := hurry(w)
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	err := dec.Decode(v)
	if err == nil {
		if _, err = dec.Token(); err == nil {
			err = errors.New("unexpected content after JSON")
		}
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.Is(err, io.EOF):
		inTime()
		return nil
	case errors.As(err, &tooLarge):
		// A client that is still sending would not read the answer.
		io.CopyN(io.Discard, r.Body, 8*maxBody)
		return fmt.Errorf("request body is larger than %d bytes: %w", maxBody, err)
	}
	return invalid("invalid JSON: %v", err)
}

// boolean reads a query parameter as Docker does: anything but a few words is
// true.
func boolean(r *http.Request, key string) bool {
	switch strings.ToLower(strings.TrimSpace(r.FormValue(key))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// integer reads a query parameter; absent is nil.
func integer(r *http.Request, key string) (*int, error) {
	v := r.FormValue(key)
	if v == "" {
		return nil, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		return nil, invalid("strconv.Atoi: parsing %q: invalid syntax", v)
	}
	return &n, nil
}

func filters(r *http.Request) (engine.Filters, error) {
	return engine.ParseFilters(r.FormValue("filters"))
}

// stream sends JSON values one by one, each at once.
type stream struct {
	w   http.ResponseWriter
	enc *json.Encoder
}

func newStream(w http.ResponseWriter) *stream {
	return &stream{w, json.NewEncoder(w)}
}

// begin sends the header.
func (s *stream) begin() error {
	s.w.Header().Set("Content-Type", "application/json")
	s.w.WriteHeader(http.StatusOK)
	return http.NewResponseController(s.w).Flush()
}

func (s *stream) send(v any) error {
	if err := s.enc.Encode(v); err != nil {
		return err
	}
	return http.NewResponseController(s.w).Flush()
}

// goVersion is told by /version.
func goVersion() string { return runtime.Version() }
