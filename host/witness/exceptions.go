package witness

import (
	_ "embed"
	"slices"
	"strings"
	"sync"
)

//go:embed exceptions.txt
var list string

// exceptions are the findings that are no mistake, each with its reason.
var exceptions = sync.OnceValue(func() map[string]string {
	out := map[string]string{}
	reason := ""
	for line := range strings.Lines(list) {
		line = strings.TrimRight(line, "\n")
		if text, ok := strings.CutPrefix(line, "# "); ok {
			reason = text
		} else if line != "" {
			out[line] = reason
		}
	}
	return out
})

// Unexpected are the findings that are not.
func (p *Proxy) Unexpected() []Finding {
	return slices.DeleteFunc(p.Findings(), func(f Finding) bool { return Excepted(f.What) })
}

// Excepted reports whether a finding is listed in exceptions.txt.
func Excepted(what string) bool { _, ok := exceptions()[what]; return ok }

// Unexplained are the exceptions for which no reason is given.
func Unexplained() []string {
	var out []string
	for what, reason := range exceptions() {
		if reason == "" {
			out = append(out, what)
		}
	}
	return out
}
