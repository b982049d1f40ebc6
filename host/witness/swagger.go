package witness

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"
)

// API is what Docker's API is, version by version.
type API struct {
	// Latest version, which a request without one is of.
	Latest string

	dir string
	mu  sync.Mutex
	doc map[string]*document // nil for a version that is not described
}

// Open finds the descriptions, v1.40.yaml and so on, in the module's folder
// "docs". Each is read when somebody speaks that version.
func Open(dir, latest string) (*API, error) {
	a := &API{Latest: latest, dir: dir, doc: map[string]*document{}}
	if _, err := a.version(latest); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *API) version(v string) (*document, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if d, ok := a.doc[v]; ok {
		return d, nil
	}
	b, err := os.ReadFile(filepath.Join(a.dir, "v"+v+".yaml"))
	if err != nil {
		a.doc[v] = nil
		return nil, err
	}
	d, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("API version %s: %w", v, err)
	}
	a.doc[v] = d
	return d, nil
}

// find is nil when there is no such operation.
func (a *API) find(version, method, path string) *operation {
	d, err := a.version(version)
	if err != nil || d == nil {
		return nil
	}
	for _, o := range d.operations {
		if o.method == method && o.path.MatchString(path) {
			return o
		}
	}
	return nil
}

// failure is what every error looks like.
var failure = schema{Ref: "#/definitions/ErrorResponse"}

// document is one version's description.
type document struct {
	Definitions map[string]*schema
	operations  []*operation // the path with the fewest variables is first
}

// operation is one method of one path.
type operation struct {
	ID           string
	method       string
	path         *regexp.Regexp
	variables    int
	doc          *document
	parameters   map[string]bool // of the query: whether it's required
	body         *schema
	bodyRequired bool
	answers      map[int]*schema
}

// schema is as much of swagger's as Docker uses.
type schema struct {
	Ref        string `yaml:"$ref"`
	Type       string
	Properties map[string]*schema
	Additional additional `yaml:"additionalProperties"`
	Required   []string
	Items      *schema
	AllOf      []*schema `yaml:"allOf"`
	Enum       []any
	Nullable   bool `yaml:"x-nullable"`
}

// additional is a schema or a boolean.
type additional struct {
	allowed bool
	schema  *schema // optional
}

func (a *additional) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		return n.Decode(&a.allowed)
	}
	a.allowed = true
	return n.Decode(&a.schema)
}

// described: there is something to hold a value against.
func (s *schema) described() bool {
	return s != nil && (s.Ref != "" || s.Type == "object" || s.Type == "array" || s.Type == "" && (len(s.Properties) > 0 || len(s.AllOf) > 0))
}

// values names what is sent as a series of values, which swagger 2 can't say.
var values = map[string]string{"ImageCreate": "CreateImageInfo", "ImagePush": "PushImageInfo"}

func parse(b []byte) (*document, error) {
	var raw struct {
		Definitions map[string]*schema
		Paths       map[string]map[string]struct {
			ID         string `yaml:"operationId"`
			Parameters []struct {
				Name, In string
				Required bool
				Schema   *schema
			}
			Responses map[string]struct{ Schema *schema }
		}
	}
	if err := yaml.Unmarshal(b, &raw); err != nil {
		return nil, err
	}
	d := &document{Definitions: raw.Definitions}
	for path, methods := range raw.Paths {
		for method, r := range methods {
			o := &operation{ID: r.ID, method: strings.ToUpper(method), path: pattern(path), variables: strings.Count(path, "{"), doc: d,
				parameters: map[string]bool{}, answers: map[int]*schema{}}
			for _, p := range r.Parameters {
				switch p.In {
				case "query":
					o.parameters[p.Name] = p.Required
				case "body":
					o.body, o.bodyRequired = p.Schema, p.Required
				}
			}
			for code, answer := range r.Responses {
				n, err := strconv.Atoi(code)
				if err != nil {
					return nil, fmt.Errorf("%s %s: status %q", method, path, code)
				}
				if name := values[r.ID]; name != "" && n == 200 {
					answer.Schema = &schema{Ref: "#/definitions/" + name}
				}
				o.answers[n] = answer.Schema
			}
			d.operations = append(d.operations, o)
		}
	}
	slices.SortFunc(d.operations, func(a, b *operation) int {
		if n := a.variables - b.variables; n != 0 {
			return n
		}
		return strings.Compare(a.path.String()+a.method, b.path.String()+b.method)
	})
	return d, nil
}

var variable = regexp.MustCompile(`\\\{[a-z]+\\\}`)

// pattern of a path: an image's name has slashes, and a container's may have one,
// that of a link.
func pattern(path string) *regexp.Regexp {
	one := `[^/]+`
	switch {
	case strings.HasPrefix(path, "/images/"), strings.HasPrefix(path, "/distribution/"):
		one = `.+`
	case strings.HasPrefix(path, "/containers/"):
		one = `[^/]+(?:/[^/]+)?`
	}
	return regexp.MustCompile("^" + variable.ReplaceAllLiteralString(regexp.QuoteMeta(path), one) + "$")
}

// query says what is wrong with a request's parameters.
func (o *operation) query(q url.Values) []string {
	var what []string
	for _, name := range slices.Sorted(maps.Keys(q)) {
		if _, ok := o.parameters[name]; !ok {
			what = append(what, "?"+name+": unknown")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(o.parameters)) {
		if o.parameters[name] && !q.Has(name) {
			what = append(what, "?"+name+": missing")
		}
	}
	return what
}

// checker collects what is wrong with values.
type checker struct {
	api   *document
	found []string
}

func (c *checker) object(at, format string, args ...any) {
	if at == "" {
		at = "."
	}
	c.found = append(c.found, at+": "+fmt.Sprintf(format, args...))
}

// flat is a schema with what it refers to and consists of put together.
func (c *checker) flat(s *schema) *schema {
	for s.Ref != "" {
		to := c.api.Definitions[strings.TrimPrefix(s.Ref, "#/definitions/")]
		if to == nil {
			return &schema{}
		}
		s = to
	}
	if len(s.AllOf) == 0 {
		return s
	}
	all := &schema{Type: "object", Properties: map[string]*schema{}, Additional: s.Additional, Nullable: s.Nullable}
	parts := append(slices.Clone(s.AllOf), &schema{Properties: s.Properties, Required: s.Required})
	for _, part := range parts {
		f := c.flat(part)
		maps.Copy(all.Properties, f.Properties)
		all.Required = append(all.Required, f.Required...)
		all.Nullable = all.Nullable || f.Nullable
		if f.Type != "" {
			all.Type = f.Type
		}
		if len(f.Enum) > 0 {
			all.Enum = f.Enum
		}
		if f.Items != nil {
			all.Items = f.Items
		}
		if f.Additional.allowed {
			all.Additional = f.Additional
		}
	}
	return all
}

// value holds v against s. Go's nil maps and lists are null, here as in dockerd:
// null stands for whatever is not there, and so does an empty string.
func (c *checker) value(at string, v any, s *schema) {
	s = c.flat(s)
	switch v := v.(type) {
	case nil:
	case map[string]any:
		if c.is(at, s, "object") {
			c.fields(at, v, s)
		}
	case []any:
		if c.is(at, s, "array") && s.Items != nil {
			for _, item := range v {
				c.value(at+"[]", item, s.Items)
			}
		}
	case string:
		if c.is(at, s, "string") && v != "" && len(s.Enum) > 0 && !oneOf(s.Enum, v) {
			c.object(at, "%q is none of %q", v, s.Enum)
		}
	case bool:
		c.is(at, s, "boolean")
	case json.Number:
		if strings.ContainsAny(v.String(), ".eE") {
			c.is(at, s, "number")
		} else {
			c.is(at, s, "integer", "number")
		}
	}
}

// is reports whether the schema is of one of the types.
func (c *checker) is(at string, s *schema, types ...string) bool {
	of := s.Type
	if of == "" && len(s.Properties) > 0 {
		of = "object"
	}
	if of == "" || slices.Contains(types, of) {
		return true
	}
	c.object(at, "%s for %s", types[0], of)
	return false
}

func (c *checker) fields(at string, v map[string]any, s *schema) {
	for _, name := range slices.Sorted(maps.Keys(v)) {
		switch field, ok := s.Properties[name]; {
		case ok:
			c.value(at+"."+name, v[name], field)
		case s.Additional.schema != nil:
			c.value(at+".*", v[name], s.Additional.schema)
		case v[name] != nil && len(s.Properties) > 0 && !s.Additional.allowed:
			c.object(at+"."+name, "unknown")
		}
	}
	for _, name := range s.Required {
		if _, ok := v[name]; !ok {
			c.object(at+"."+name, "missing")
		}
	}
}

// oneOf: enumerations of objects, which there are, make a plain comparison panic.
func oneOf(list []any, v string) bool {
	return slices.ContainsFunc(list, func(e any) bool { s, ok := e.(string); return ok && s == v })
}
