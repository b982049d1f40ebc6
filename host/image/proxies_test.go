package image

import "testing"

func TestMasked(t *testing.T) {
	for proxy, want := range map[string]string{
		"":                               "",
		"http://proxy:3128":              "http://proxy:3128",
		"proxy:3128":                     "proxy:3128",
		"http://me:secret@proxy:3128":    "http://xxxxx:xxxxx@proxy:3128",
		"me:secret@proxy:3128":           "xxxxx:xxxxx@proxy:3128",
		"socks5://me:sec%ret@proxy:1080": "socks5://xxxxx:xxxxx@proxy:1080",
		"http://me:s@cret@proxy":         "http://xxxxx:xxxxx@proxy",
	} {
		if got := masked(proxy); got != want {
			t.Errorf("%q: %q, want %q", proxy, got, want)
		}
	}
}
