package engine

import (
	"encoding/json"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Filters select objects in lists: values by key. Values of one key are
// alternatives, except labels, which must all match.
type Filters map[string][]string

// ParseFilters reads the query parameter in both of its forms:
// {"key":{"value":true}} and the older {"key":["value"]}.
func ParseFilters(s string) (Filters, error) {
	f := Filters{}
	if s == "" {
		return f, nil
	}
	var now map[string]map[string]bool
	if err := json.Unmarshal([]byte(s), &now); err == nil {
		for k, vals := range now {
			for v, on := range vals {
				if on {
					f[k] = append(f[k], v)
				}
			}
			slices.Sort(f[k])
		}
		return f, nil
	}
	var old map[string][]string
	if err := json.Unmarshal([]byte(s), &old); err != nil {
		return nil, invalid("invalid filter")
	}
	return Filters(old), nil
}

// allow refuses keys that are not known.
func (f Filters) allow(keys ...string) error {
	var bad []string
	for k := range f {
		if !slices.Contains(keys, k) {
			bad = append(bad, k)
		}
	}
	if len(bad) > 0 {
		sort.Strings(bad)
		return invalid("invalid filter '%s'", bad[0])
	}
	return nil
}

// boolean reads a key with one truth value.
func (f Filters) boolean(key string) (value, set bool, err error) {
	vals := f[key]
	if len(vals) == 0 {
		return false, false, nil
	}
	switch vals[0] {
	case "1", "true":
		value = true
	case "0", "false":
	default:
		return false, false, invalid("invalid filter '%s=%v'", key, vals)
	}
	return value, true, nil
}

func (f Filters) integer(key string) (value int, set bool, err error) {
	vals := f[key]
	if len(vals) == 0 {
		return 0, false, nil
	}
	if value, err = strconv.Atoi(vals[0]); err != nil {
		return 0, false, invalid("invalid filter '%s=%v'", key, vals)
	}
	return value, true, nil
}

// match says whether a key is unset or any of its values satisfies is.
func (f Filters) match(key string, is func(want string) bool) bool {
	vals := f[key]
	return len(vals) == 0 || slices.ContainsFunc(vals, is)
}

// equal: any value is one of got.
func (f Filters) equal(key string, got ...string) bool {
	return f.match(key, func(want string) bool { return slices.Contains(got, want) })
}

// contains: any value is a part of one of got, or matches it as a pattern.
func (f Filters) contains(key string, got ...string) bool {
	return f.match(key, func(want string) bool {
		re, err := regexp.Compile(want)
		return slices.ContainsFunc(got, func(s string) bool {
			return strings.Contains(s, want) || err == nil && re.MatchString(s)
		})
	})
}

// prefix: any value begins one of got.
func (f Filters) prefix(key string, got ...string) bool {
	return f.match(key, func(want string) bool {
		return slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, want) })
	})
}

// labels: every value, NAME or NAME=VALUE, is among got.
func (f Filters) labels(key string, got map[string]string) bool {
	return !slices.ContainsFunc(f[key], func(want string) bool { return !hasLabel(got, want) })
}

// noLabels: no value is among got.
func (f Filters) noLabels(key string, got map[string]string) bool {
	return !slices.ContainsFunc(f[key], func(want string) bool { return hasLabel(got, want) })
}

func hasLabel(got map[string]string, want string) bool {
	name, value, hasValue := strings.Cut(want, "=")
	v, ok := got[name]
	return ok && (!hasValue || v == value)
}

// until reads the key of that name: a time, a Unix time, or how long ago.
func (f Filters) until() (time.Time, error) {
	vals := f["until"]
	if len(vals) == 0 {
		return time.Time{}, nil
	}
	t, err := ParseTime(vals[0], time.Now())
	if err != nil {
		return t, invalid("invalid filter 'until=%v'", vals)
	}
	return t, nil
}

// ParseTime reads a time as Docker's clients give it: RFC 3339, seconds since
// the epoch with an optional fraction, or a duration before now.
func ParseTime(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil && strings.IndexFunc(s, unicode.IsLetter) >= 0 {
		return now.Add(-d), nil
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t, nil
	}
	sec, frac, _ := strings.Cut(s, ".")
	n, err := strconv.ParseInt(sec, 10, 64)
	if err != nil || len(frac) > 9 {
		return time.Time{}, invalid("invalid time: %q", s)
	}
	var nano int64
	if frac != "" {
		if nano, err = strconv.ParseInt((frac + "000000000")[:9], 10, 64); err != nil || nano < 0 {
			return time.Time{}, invalid("invalid time: %q", s)
		}
	}
	return time.Unix(n, nano), nil
}
