package api

import (
	"context"
	"maps"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"

	"sampan/host/engine"
)

func (s *server) containerCreate(w http.ResponseWriter, r *http.Request) error {
	var asked createRequest
	if err := decode(w, r, &asked); err != nil {
		return err
	}
	req, err := asked.complete()
	if err != nil {
		return err
	}
	if p := r.FormValue("platform"); p != "" {
		arch, err := platform(p)
		if err != nil {
			return err
		}
		if arch != runtime.GOARCH {
			return invalid("sampan: the platform %s is not supported: the virtual machine runs linux/%s", p, runtime.GOARCH)
		}
	}
	resp, err := s.Engine.Create(r.Context(), r.FormValue("name"), req)
	if err != nil {
		return err
	}
	return answer(w, http.StatusCreated, resp)
}

func (s *server) containerList(w http.ResponseWriter, r *http.Request) error {
	f, err := filters(r)
	if err != nil {
		return err
	}
	limit, err := integer(r, "limit")
	if err != nil {
		return err
	}
	o := engine.ListOptions{All: boolean(r, "all"), Size: boolean(r, "size"), Filters: f}
	if limit != nil {
		o.Limit = *limit
	}
	list, err := s.Engine.List(r.Context(), o)
	if err != nil {
		return err
	}
	if less(clientVersion(r), "1.52") {
		for i := range list {
			list[i].Health = nil
		}
	}
	return answer(w, http.StatusOK, list)
}

func (s *server) containerPrune(w http.ResponseWriter, r *http.Request) error {
	f, err := filters(r)
	if err != nil {
		return err
	}
	report, err := s.Engine.Prune(r.Context(), f)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, report)
}

func (s *server) containerInspect(w http.ResponseWriter, r *http.Request) error {
	c, err := s.Engine.Inspect(r.Context(), r.PathValue("name"), boolean(r, "size"))
	if err != nil {
		return err
	}
	if less(clientVersion(r), "1.52") {
		return answer(w, http.StatusOK, earlierInspect{c, earlierSettings{NetworkSettings: c.NetworkSettings, defaultEndpoint: defaultEndpointOf(c.NetworkSettings)}})
	}
	return answer(w, http.StatusOK, c)
}

func (s *server) containerStart(w http.ResponseWriter, r *http.Request) error {
	if err := s.Engine.Start(r.Context(), r.PathValue("name")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) containerStop(w http.ResponseWriter, r *http.Request) error {
	return s.stopWith(w, r, s.Engine.Stop)
}

func (s *server) containerRestart(w http.ResponseWriter, r *http.Request) error {
	return s.stopWith(w, r, s.Engine.Cycle)
}

// stopWith reads what stop and restart have in common: t in seconds, signal.
func (s *server) stopWith(w http.ResponseWriter, r *http.Request, f func(ctx context.Context, name, sig string, timeout *int) error) error {
	timeout, err := integer(r, "t")
	if err != nil {
		return err
	}
	// As with Docker, a stop that has begun goes on when its client leaves.
	if err := f(context.WithoutCancel(r.Context()), r.PathValue("name"), r.FormValue("signal"), timeout); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) containerKill(w http.ResponseWriter, r *http.Request) error {
	if err := s.Engine.Kill(r.Context(), r.PathValue("name"), r.FormValue("signal")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) containerRename(w http.ResponseWriter, r *http.Request) error {
	if err := s.Engine.Rename(r.PathValue("name"), r.FormValue("name")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) containerRemove(w http.ResponseWriter, r *http.Request) error {
	return s.remove(w, r, r.PathValue("name"))
}

// linkRemove is containerRemove of CONTAINER/ALIAS: of the link, or of who is at
// its other end.
func (s *server) linkRemove(w http.ResponseWriter, r *http.Request) error {
	return s.remove(w, r, r.PathValue("name")+"/"+r.PathValue("alias"))
}

func (s *server) remove(w http.ResponseWriter, r *http.Request, name string) error {
	if boolean(r, "link") {
		if err := s.Engine.Unlink(r.Context(), name); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	o := engine.RemoveOptions{Force: boolean(r, "force"), Volumes: boolean(r, "v")}
	if err := s.Engine.Remove(context.WithoutCancel(r.Context()), name, o); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) containerResize(w http.ResponseWriter, r *http.Request) error {
	rows, columns, err := size(r)
	if err != nil {
		return err
	}
	return s.Engine.Resize(r.Context(), r.PathValue("name"), rows, columns)
}

// size reads h and w.
func size(r *http.Request) (rows, columns uint32, err error) {
	for _, f := range []struct {
		key string
		to  *uint32
	}{{"h", &rows}, {"w", &columns}} {
		n, err := strconv.ParseUint(r.FormValue(f.key), 10, 32)
		if err != nil {
			return 0, 0, invalid("invalid terminal size %s=%q", f.key, r.FormValue(f.key))
		}
		*f.to = uint32(n)
	}
	return rows, columns, nil
}

// containerWait sends the header as soon as the wait is registered: the client
// starts the container only then.
func (s *server) containerWait(w http.ResponseWriter, r *http.Request) error {
	cond := container.WaitCondition(r.FormValue("condition"))
	wait, err := s.Engine.WaitFor(r.PathValue("name"), cond)
	if err != nil {
		return err
	}
	out := newStream(w)
	if err := out.begin(); err != nil {
		return err
	}
	result, err := wait.Result(r.Context())
	if err != nil {
		return err
	}
	return out.send(result)
}

func (s *server) containerLogs(w http.ResponseWriter, r *http.Request) error {
	o, err := logOptions(r)
	if err != nil {
		return err
	}
	name := r.PathValue("name")
	c, err := s.Engine.Inspect(r.Context(), name, false)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", contentType(r, c.Config.Tty))
	out := &framer{w: w, raw: c.Config.Tty}
	stamps, details := boolean(r, "timestamps"), boolean(r, "details")
	rc := http.NewResponseController(w)
	o.Begin = func() error { // a follower may wait long for the first line
		w.WriteHeader(http.StatusOK)
		return rc.Flush()
	}
	return s.Engine.Logs(r.Context(), name, o, func(l engine.LogEntry) error {
		line := l.Line
		if details {
			line = append([]byte(logDetails(l.Attrs)+" "), line...)
		}
		if stamps {
			line = append([]byte(l.Time.UTC().Format(logTime)+" "), line...)
		}
		if err := out.write(l.Stream, line); err != nil {
			return err
		}
		if o.Follow {
			return rc.Flush()
		}
		return nil
	})
}

// logDetails shows a record's attributes as Docker does: escaped, sorted.
func logDetails(attrs map[string]string) string {
	var pairs []string
	for _, name := range slices.Sorted(maps.Keys(attrs)) {
		pairs = append(pairs, url.QueryEscape(name)+"="+url.QueryEscape(attrs[name]))
	}
	return strings.Join(pairs, ",")
}

// logTime is RFC 3339 with all nine digits, as Docker's logs have it.
const logTime = "2006-01-02T15:04:05.000000000Z07:00"

func logOptions(r *http.Request) (engine.LogOptions, error) {
	o := engine.LogOptions{
		Stdout: boolean(r, "stdout"), Stderr: boolean(r, "stderr"),
		Follow: boolean(r, "follow"), Tail: -1,
	}
	if !o.Stdout && !o.Stderr {
		return o, invalid("Bad parameters: you must choose at least one stream")
	}
	if v := r.FormValue("tail"); v != "" && v != "all" {
		n, err := strconv.Atoi(v)
		if err == nil { // Docker shows everything for what is no number
			o.Tail = n
		}
	}
	now := time.Now()
	var err error
	if o.Since, err = optionalTime(r.FormValue("since"), now); err != nil {
		return o, err
	}
	o.Until, err = optionalTime(r.FormValue("until"), now)
	return o, err
}

// contentType of output.
func contentType(r *http.Request, tty bool) string {
	if !tty && !less(clientVersion(r), "1.42") {
		return "application/vnd.docker.multiplexed-stream"
	}
	return "application/vnd.docker.raw-stream"
}

func (s *server) reply(w http.ResponseWriter, code int, v any, err error) error {
	if err != nil {
		return err
	}
	return answer(w, code, v)
}

// platform reads OS/ARCH[/VARIANT]; only Linux runs here.
func platform(p string) (string, error) {
	parts := strings.Split(p, "/")
	arch := parts[len(parts)-1]
	if len(parts) > 1 {
		arch = parts[1]
	}
	if len(parts) > 3 || arch == "" || len(parts) > 1 && parts[0] != "linux" {
		return "", invalid("%q is an invalid OS component or architecture of %q: sampan runs linux images", parts[0], p)
	}
	return arch, nil
}
