package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/docker/go-units"
	"github.com/moby/moby/client"
)

// writeRows writes rows in one of Docker's formats: "" and "table" (the
// default columns), "table TEMPLATE", "json", or a template for each row.
// header is a row whose fields hold the columns' titles.
func writeRows[T any](w io.Writer, format, columns string, header T, rows []T) error {
	rest, table := strings.CutPrefix(format, "table")
	switch {
	case format == "" || format == "table":
		table, format = true, columns
	case format == "json":
		format = "{{json .}}"
	case table:
		format = strings.TrimSpace(rest)
	}
	format = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(format)
	t, err := newTemplate(format)
	if err != nil {
		return err
	}
	if !table {
		return executeAll(w, t, rows)
	}
	tw := tabwriter.NewWriter(w, 10, 1, 3, ' ', 0)
	if err := executeAll(tw, t, append([]T{header}, rows...)); err != nil {
		return err
	}
	return tw.Flush()
}

func executeAll[T any](w io.Writer, t *template.Template, rows []T) error {
	for _, r := range rows {
		if err := execute(w, t, r); err != nil {
			return err
		}
	}
	return nil
}

// execute writes one line.
func execute(w io.Writer, t *template.Template, data any) error {
	var b bytes.Buffer
	if err := t.Execute(&b, data); err != nil {
		return fmt.Errorf("template parsing error: %w", err) // in Docker's words
	}
	b.WriteByte('\n')
	_, err := w.Write(b.Bytes())
	return err
}

func newTemplate(text string) (*template.Template, error) {
	t, err := template.New("").Funcs(template.FuncMap{
		"json": func(v any) (string, error) {
			var b bytes.Buffer
			enc := json.NewEncoder(&b)
			enc.SetEscapeHTML(false)
			err := enc.Encode(v)
			return strings.TrimSpace(b.String()), err
		},
		"split": strings.Split,
		"join":  strings.Join,
		"lower": strings.ToLower,
		"upper": strings.ToUpper,
		"title": title,
		"pad": func(s string, before, after int) string {
			return strings.Repeat(" ", before) + s + strings.Repeat(" ", after)
		},
		"truncate": func(s string, n int) string { return s[:min(n, len(s))] },
		"println":  fmt.Sprintln,
	}).Parse(text)
	if err != nil {
		return nil, fmt.Errorf("template parsing error: %w", err)
	}
	return t, nil
}

// title begins every word with a capital letter.
func title(s string) string {
	before := ' '
	return strings.Map(func(r rune) rune {
		inside := unicode.IsLetter(before) || unicode.IsDigit(before) || before == '_'
		before = r
		if inside {
			return r
		}
		return unicode.ToTitle(r)
	}, s)
}

// indented is JSON as Docker prints it.
func indented(v any) (string, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "    ")
	err := enc.Encode(v)
	return b.String(), err
}

// shortID is an ID's first 12 digits, without the algorithm.
func shortID(id string) string {
	if _, hex, ok := strings.Cut(id, ":"); ok {
		id = hex
	}
	return id[:min(12, len(id))]
}

// ellipsis cuts s to n characters, the last of them a mark.
func ellipsis(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}

// ago is a time as people tell it.
func ago(unix int64, now time.Time) string {
	if unix <= 0 {
		return "N/A"
	}
	return units.HumanDuration(now.Sub(time.Unix(unix, 0))) + " ago"
}

// filterFlag is a list of "KEY=VALUE" conditions.
type filterFlag struct{ client.Filters }

func (f *filterFlag) String() string { return "" }
func (f *filterFlag) Type() string   { return "filter" }
func (f *filterFlag) Set(s string) error {
	key, value, ok := strings.Cut(s, "=")
	if !ok {
		return errors.New("bad format of filter (expected name=value)")
	}
	if f.Filters == nil {
		f.Filters = client.Filters{}
	}
	f.Add(strings.ToLower(strings.TrimSpace(key)), strings.TrimSpace(value))
	return nil
}
