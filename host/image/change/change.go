// Package change applies Dockerfile instructions to an image's configuration,
// as `--change` of import and commit does.
package change

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
)

// Apply changes cfg by lines such as `ENV A=b` and `CMD ["sh"]`. Every error is
// of the class errdefs.ErrInvalidArgument; cfg is of no use after one.
func Apply(cfg *dockerspec.DockerOCIImageConfig, lines []string) error {
	a := applier{cfg: cfg}
	for _, line := range lines {
		for part := range strings.SplitSeq(strings.ReplaceAll(line, "\\\n", " "), "\n") {
			if part = strings.TrimSpace(part); part == "" || strings.HasPrefix(part, "#") {
				continue
			}
			if err := a.apply(part); err != nil {
				return errdefs.ErrInvalidArgument.WithMessage(err.Error())
			}
		}
	}
	return nil
}

type applier struct {
	cfg    *dockerspec.DockerOCIImageConfig
	cmdSet bool
}

func (a *applier) apply(line string) error {
	word, rest, _ := strings.Cut(line, " ")
	word, rest = strings.ToUpper(word), strings.TrimSpace(rest)
	do, ok := map[string]func(string) error{
		"CMD": a.cmd, "ENTRYPOINT": a.entrypoint, "ENV": a.env, "EXPOSE": a.expose, "HEALTHCHECK": a.healthcheck,
		"LABEL": a.label, "ONBUILD": a.onbuild, "STOPSIGNAL": a.stopsignal, "USER": a.user, "VOLUME": a.volume, "WORKDIR": a.workdir,
	}[word]
	if !ok {
		return fmt.Errorf("%s is not a valid change command", word)
	}
	if rest == "" {
		return fmt.Errorf("%s requires at least one argument", word)
	}
	if err := do(rest); err != nil {
		return fmt.Errorf("%s: %w", word, err)
	}
	return nil
}

// command is the exec form, a list in JSON, or else a line for the shell.
func (a *applier) command(s string) []string {
	if list, ok := jsonList(s); ok {
		return list
	}
	shell := a.cfg.Shell
	if len(shell) == 0 {
		shell = []string{"/bin/sh", "-c"}
	}
	return append(append([]string{}, shell...), s)
}

func jsonList(s string) ([]string, bool) {
	var list []string
	return list, strings.HasPrefix(s, "[") && json.Unmarshal([]byte(s), &list) == nil
}

func (a *applier) cmd(s string) error {
	a.cfg.Cmd, a.cmdSet = a.command(s), true
	return nil
}

func (a *applier) entrypoint(s string) error {
	a.cfg.Entrypoint = a.command(s)
	if !a.cmdSet { // what was the argument of another program
		a.cfg.Cmd = nil
	}
	return nil
}

func (a *applier) env(s string) error {
	return a.pairs(s, func(key, value string) {
		for i, e := range a.cfg.Env {
			if k, _, _ := strings.Cut(e, "="); k == key {
				a.cfg.Env[i] = key + "=" + value
				return
			}
		}
		a.cfg.Env = append(a.cfg.Env, key+"="+value)
	})
}

func (a *applier) label(s string) error {
	return a.pairs(s, func(key, value string) {
		if a.cfg.Labels == nil {
			a.cfg.Labels = map[string]string{}
		}
		a.cfg.Labels[key] = value
	})
}

// pairs reads "A=b C='d e'", or the old form "A b".
func (a *applier) pairs(s string, set func(key, value string)) error {
	words, err := a.words(s)
	if err != nil {
		return err
	}
	if !strings.Contains(words[0], "=") {
		if len(words) < 2 {
			return errors.New("must have two arguments")
		}
		_, value, _ := strings.Cut(s, " ")
		set(words[0], a.expand(strings.TrimSpace(value)))
		return nil
	}
	for _, w := range words {
		key, value, ok := strings.Cut(w, "=")
		if !ok {
			return fmt.Errorf("can't find = in %q. Must be of the form: name=value", w)
		}
		if key == "" {
			return errors.New("names can not be blank")
		}
		set(key, value)
	}
	return nil
}

// words splits like a shell, and expands variables but in single quotes.
func (a *applier) words(s string) ([]string, error) {
	var words []string
	var word, open strings.Builder // open: outside single quotes, not yet expanded
	quote, any := byte(0), false
	flush := func() { word.WriteString(a.expand(open.String())); open.Reset() }
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\' && quote != '\'' && i+1 < len(s):
			i++
			flush()
			word.WriteByte(s[i])
			any = true
		case quote == 0 && (c == '"' || c == '\''):
			flush()
			quote, any = c, true
		case c == quote && quote != 0:
			flush()
			quote = 0
		case quote == '\'':
			word.WriteByte(c)
		case quote == 0 && (c == ' ' || c == '\t'):
			if flush(); any {
				words = append(words, word.String())
			}
			word.Reset()
			any = false
		default:
			open.WriteByte(c)
			any = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("unexpected end of statement while looking for matching %c", quote)
	}
	if flush(); any {
		words = append(words, word.String())
	}
	if len(words) == 0 {
		return nil, errors.New("requires at least one argument")
	}
	return words, nil
}

// expand replaces $NAME and ${NAME} by the configuration's environment.
func (a *applier) expand(s string) string {
	return os.Expand(s, func(name string) string {
		for _, e := range a.cfg.Env {
			if k, v, _ := strings.Cut(e, "="); k == name {
				return v
			}
		}
		return ""
	})
}

func (a *applier) expose(s string) error {
	words, err := a.words(s)
	if err != nil {
		return err
	}
	for _, w := range words {
		port, proto, ok := strings.Cut(strings.ToLower(w), "/")
		if !ok {
			proto = "tcp"
		}
		first, last, ok := strings.Cut(port, "-")
		if !ok {
			last = first
		}
		from, err := strconv.ParseUint(first, 10, 16)
		to, err2 := strconv.ParseUint(last, 10, 16)
		if err != nil || err2 != nil || to < from || proto != "tcp" && proto != "udp" && proto != "sctp" {
			return fmt.Errorf("invalid containerPort: %s", w)
		}
		if a.cfg.ExposedPorts == nil {
			a.cfg.ExposedPorts = map[string]struct{}{}
		}
		for p := from; p <= to; p++ {
			a.cfg.ExposedPorts[fmt.Sprintf("%d/%s", p, proto)] = struct{}{}
		}
	}
	return nil
}

func (a *applier) onbuild(s string) error {
	word, _, _ := strings.Cut(strings.ToUpper(s), " ")
	switch word {
	case "ONBUILD":
		return errors.New("chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
	case "MAINTAINER", "FROM":
		return fmt.Errorf("%s isn't allowed as an ONBUILD trigger", word)
	}
	a.cfg.OnBuild = append(a.cfg.OnBuild, s)
	return nil
}

func (a *applier) stopsignal(s string) error {
	a.cfg.StopSignal = a.expand(s)
	return nil
}

func (a *applier) user(s string) error {
	a.cfg.User = a.expand(s)
	return nil
}

func (a *applier) volume(s string) error {
	list, ok := jsonList(s)
	if !ok {
		var err error
		if list, err = a.words(s); err != nil {
			return err
		}
	}
	for _, v := range list {
		if strings.TrimSpace(v) == "" {
			return errors.New("VOLUME specified can not be an empty string")
		}
		if a.cfg.Volumes == nil {
			a.cfg.Volumes = map[string]struct{}{}
		}
		a.cfg.Volumes[v] = struct{}{}
	}
	return nil
}

func (a *applier) workdir(s string) error {
	dir := a.expand(s)
	if !path.IsAbs(dir) {
		dir = path.Join("/", a.cfg.WorkingDir, dir)
	}
	a.cfg.WorkingDir = path.Clean(dir)
	return nil
}

func (a *applier) healthcheck(s string) error {
	h := &dockerspec.HealthcheckConfig{}
	for strings.HasPrefix(s, "--") {
		option, rest, _ := strings.Cut(s, " ")
		s = strings.TrimSpace(rest)
		name, value, _ := strings.Cut(option, "=")
		var err error
		switch name {
		case "--interval":
			h.Interval, err = time.ParseDuration(value)
		case "--timeout":
			h.Timeout, err = time.ParseDuration(value)
		case "--start-period":
			h.StartPeriod, err = time.ParseDuration(value)
		case "--start-interval":
			h.StartInterval, err = time.ParseDuration(value)
		case "--retries":
			h.Retries, err = strconv.Atoi(value)
		default:
			err = fmt.Errorf("unknown flag: %s", name)
		}
		if err != nil {
			return err
		}
	}
	kind, rest, _ := strings.Cut(s, " ")
	rest = strings.TrimSpace(rest)
	switch strings.ToUpper(kind) {
	case "NONE":
		if rest != "" {
			return errors.New("NONE takes no arguments")
		}
		h.Test = []string{"NONE"}
	case "CMD":
		if rest == "" {
			return errors.New("missing command after HEALTHCHECK CMD")
		}
		if list, ok := jsonList(rest); ok {
			h.Test = append([]string{"CMD"}, list...)
		} else {
			h.Test = []string{"CMD-SHELL", rest}
		}
	default:
		return fmt.Errorf("unknown type %q in HEALTHCHECK (try CMD)", kind)
	}
	a.cfg.Healthcheck = h
	return nil
}
