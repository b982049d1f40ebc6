package engine

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"text/template"

	"github.com/moby/moby/api/types/container"
)

// logSubject is what a log's tag may tell of its container, under Docker's names
// and with its short forms.
type logSubject struct{ FullID, Name, ImageFullID, ImageName string }

// ID is the container's, cut.
func (s logSubject) ID() string { return s.FullID[:min(12, len(s.FullID))] }

// ImageID is cut as Docker cuts it: with its algorithm.
func (s logSubject) ImageID() string { return s.ImageFullID[:min(12, len(s.ImageFullID))] }

// DaemonName is what dockerd calls itself.
func (s logSubject) DaemonName() string { return "docker" }

// logSelection is the options of the json-file driver that say what else goes
// into every record of a log.
type logSelection struct {
	labels, env           []string
	labelsRegex, envRegex *regexp.Regexp     // nil: none
	tag                   *template.Template // nil: none
}

// parseSelection refuses what can't be parsed. Options that are empty select
// nothing.
func parseSelection(options map[string]string) (s logSelection, err error) {
	list := func(name string) []string {
		if options[name] == "" {
			return nil
		}
		return strings.Split(options[name], ",")
	}
	s.labels, s.env = list("labels"), list("env")
	for name, to := range map[string]**regexp.Regexp{"labels-regex": &s.labelsRegex, "env-regex": &s.envRegex} {
		if options[name] == "" {
			continue
		}
		if *to, err = regexp.Compile(options[name]); err != nil {
			return s, invalid("%s: %s", name, err)
		}
	}
	if text := options["tag"]; text != "" {
		s.tag, err = template.New("log-tag").Funcs(template.FuncMap{
			"json": func(v any) (string, error) {
				var b strings.Builder
				enc := json.NewEncoder(&b)
				enc.SetEscapeHTML(false)
				err := enc.Encode(v)
				return strings.TrimSpace(b.String()), err
			},
			"join": strings.Join, "split": strings.Split, "lower": strings.ToLower, "upper": strings.ToUpper,
			"title": strings.Title, // deprecated, and what Docker uses
			"pad": func(s string, before, after int) string {
				return strings.Repeat(" ", before) + s + strings.Repeat(" ", after)
			},
			"truncate": func(s string, n int) string { return s[:max(0, min(n, len(s)))] },
		}).Parse(text)
		if err == nil { // a field that isn't there shows only now
			_, err = s.tagOf(logSubject{strings.Repeat("0", 64), "name", "sha256:" + strings.Repeat("0", 64), "image"})
		}
		if err != nil {
			return s, invalid("%s", err)
		}
	}
	return s, nil
}

func (s *logSelection) tagOf(of logSubject) (string, error) {
	if s.tag == nil {
		return "", nil
	}
	var b strings.Builder
	err := s.tag.Execute(&b, of)
	return b.String(), err
}

// attrs are what is selected of a container; of a label and a variable with the
// same name it is the variable.
func (s *logSelection) attrs(c *container.Config, of logSubject) (map[string]string, error) {
	env := map[string]string{}
	for _, e := range c.Env {
		if name, value, ok := strings.Cut(e, "="); ok {
			env[name] = value
		}
	}
	attrs := map[string]string{}
	for _, from := range []struct {
		values map[string]string
		names  []string
		regex  *regexp.Regexp
	}{{c.Labels, s.labels, s.labelsRegex}, {env, s.env, s.envRegex}} {
		for _, name := range from.names {
			if value, ok := from.values[name]; ok {
				attrs[name] = value
			}
		}
		for name, value := range from.values {
			if from.regex != nil && from.regex.MatchString(name) {
				attrs[name] = value
			}
		}
	}
	tag, err := s.tagOf(of)
	if err != nil {
		return nil, err
	}
	if tag != "" {
		attrs["tag"] = tag
	}
	return attrs, nil
}

// logAttrs is what every record of a container's log has beside its line, as
// JSON; nil when that is nothing.
func logAttrs(rec *record) ([]byte, error) {
	s, err := parseSelection(rec.HostConfig.LogConfig.Config)
	if err != nil {
		return nil, err
	}
	attrs, err := s.attrs(rec.Config, logSubject{rec.ID, rec.Name, rec.ImageID, rec.Config.Image})
	if err != nil {
		return nil, fmt.Errorf("failed to initialize logging driver: %w", err)
	}
	if len(attrs) == 0 {
		return nil, nil
	}
	return json.Marshal(attrs)
}
