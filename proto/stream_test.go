package proto

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

func TestHeaderRoundTrip(t *testing.T) {
	want := StreamHeader{Kind: StreamStdio, Container: "c", Exec: "e", Stream: Stdout}
	var b bytes.Buffer
	if err := WriteHeader(&b, want); err != nil {
		t.Fatal(err)
	}
	b.WriteString("bytes")
	got, err := ReadHeader(&b)
	if err != nil || got != want {
		t.Fatalf("got %+v, %v; want %+v", got, err, want)
	}
	if rest, _ := io.ReadAll(&b); string(rest) != "bytes" {
		t.Errorf("rest %q: the header's reader took more than its line", rest)
	}
}

func TestHeaderRefused(t *testing.T) {
	for name, in := range map[string]string{
		"empty":    "",
		"cut":      `{"kind":"stdio"`,
		"not JSON": "hello\n",
		"no kind":  "{}\n",
		"endless":  strings.Repeat("x", MaxHeader+1),
	} {
		if h, err := ReadHeader(strings.NewReader(in)); err == nil {
			t.Errorf("%s: accepted as %+v", name, h)
		}
	}
	if err := WriteHeader(io.Discard, StreamHeader{Kind: strings.Repeat("x", MaxHeader)}); err == nil {
		t.Error("a header longer than MaxHeader was written")
	}
}

func FuzzReadHeader(f *testing.F) {
	f.Add([]byte("{\"kind\":\"dial\",\"address\":\"1.2.3.4:80\"}\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		h, err := ReadHeader(bytes.NewReader(in))
		if err == nil && h.Kind == "" {
			t.Error("a header without a kind")
		}
	})
}
