package bundle

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// source is one repository of an apt configuration.
type source struct {
	URI        string
	Suite      string
	Components []string
	SignedBy   string
}

// debianSuites are the names under which Debian itself publishes; other
// repositories are told apart by suites of their own, or by their keyring.
var debianSuites = []string{"bookworm", "trixie", "forky", "sid", "oldstable", "stable", "testing", "unstable"}

// mirrors picks the machine's Debian mirrors out of its apt sources: the
// archive's, and the security archive's if there is one.
func mirrors(sources []source) (archive, security string, err error) {
	for _, s := range sources {
		if !slices.Contains(s.Components, "main") ||
			s.SignedBy != "" && !strings.Contains(s.SignedBy, "debian-archive") {
			continue
		}
		base, isSecurity := strings.CutSuffix(s.Suite, "-security")
		if !slices.Contains(debianSuites, base) {
			continue
		}
		switch {
		case isSecurity && security == "":
			security = s.URI
		case !isSecurity && archive == "":
			archive = s.URI
		}
	}
	if archive == "" {
		return "", "", errors.New("no Debian mirror in /etc/apt: name one with -mirror")
	}
	return archive, security, nil
}

// readSources reads the apt sources under root (/etc/apt), the system's own
// files first.
func readSources(root string) ([]source, error) {
	files := []string{filepath.Join(root, "sources.list"), filepath.Join(root, "sources.list.d", "debian.sources")}
	more, err := filepath.Glob(filepath.Join(root, "sources.list.d", "*"))
	if err != nil {
		return nil, err
	}
	for _, f := range more {
		if !slices.Contains(files, f) {
			files = append(files, f)
		}
	}
	var all []source
	for _, f := range files {
		parse := parseList
		switch filepath.Ext(f) {
		case ".sources":
			parse = parseDeb822
		case ".list":
		default:
			continue
		}
		text, err := os.ReadFile(f)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
			continue // another repository's secret is none of our business
		}
		if err != nil {
			return nil, fmt.Errorf("apt sources: %w", err)
		}
		all = append(all, parse(string(text))...)
	}
	return all, nil
}

// parseList reads the one-line format, sources.list(5).
func parseList(text string) []source {
	var out []source
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb")
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '\t' {
			continue
		}
		var s source
		rest = strings.TrimSpace(rest)
		if opts, ok := strings.CutPrefix(rest, "["); ok {
			opts, rest, ok = strings.Cut(opts, "]")
			if !ok {
				continue
			}
			for _, o := range strings.Fields(opts) {
				if v, ok := strings.CutPrefix(o, "signed-by="); ok {
					s.SignedBy = v
				}
			}
		}
		f := strings.Fields(rest)
		if len(f) < 2 {
			continue
		}
		s.URI, s.Suite, s.Components = f[0], f[1], f[2:]
		out = append(out, s)
	}
	return out
}

// parseDeb822 reads stanzas of "Key: value" lines, sources.list(5). A value
// that goes on in further lines, indented, may be a key, which only has to be
// different from Debian's keyring.
func parseDeb822(text string) []source {
	var out []source
	stanza := map[string]string{}
	flush := func() {
		defer clear(stanza)
		if !slices.Contains(strings.Fields(stanza["types"]), "deb") || strings.EqualFold(stanza["enabled"], "no") {
			return
		}
		for _, uri := range strings.Fields(stanza["uris"]) {
			for _, suite := range strings.Fields(stanza["suites"]) {
				out = append(out, source{
					URI: uri, Suite: suite,
					Components: strings.Fields(stanza["components"]),
					SignedBy:   stanza["signed-by"],
				})
			}
		}
	}
	last := ""
	sc := bufio.NewScanner(strings.NewReader(text))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line := sc.Text()
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.TrimSpace(line) == "":
			flush()
		case line[0] == ' ' || line[0] == '\t':
			stanza[last] += "\n" + strings.TrimSpace(line)
		default:
			key, value, _ := strings.Cut(line, ":")
			last = strings.ToLower(strings.TrimSpace(key))
			stanza[last] = strings.TrimSpace(value)
		}
	}
	flush()
	return out
}
