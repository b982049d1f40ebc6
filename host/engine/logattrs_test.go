package engine

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
)

func TestLogAttrs(t *testing.T) {
	rec := func(options map[string]string) *record {
		return &record{
			ID: strings.Repeat("0123456789", 6), Name: "web", ImageID: "sha256:abcdefgh",
			Config: &container.Config{
				Image: "nginx:1", Env: []string{"A=1", "B=2=3", "both=env", "unset"},
				Labels: map[string]string{"k": "v", "org.x": "y", "both": "label"},
			},
			HostConfig: &container.HostConfig{LogConfig: container.LogConfig{Config: options}},
		}
	}
	type m = map[string]string
	for _, tt := range []struct {
		options m
		want    string
	}{
		{nil, ""},
		{m{"labels": "", "env": "", "tag": "", "labels-regex": ""}, ""},
		{m{"labels": "nosuch,unset", "env": "unset"}, ""},
		{m{"labels": "k,org.x"}, `{"k":"v","org.x":"y"}`},
		{m{"env": "A,B"}, `{"A":"1","B":"2=3"}`},
		{m{"labels": "both", "env": "both"}, `{"both":"env"}`},
		{m{"labels-regex": "^(k|org)", "env-regex": "^A$"}, `{"A":"1","k":"v","org.x":"y"}`},
		{m{"tag": "{{.Name}}/{{.ID}}/{{.ImageName}}/{{.ImageID}}/{{.DaemonName}}"}, `{"tag":"web/012345678901/nginx:1/sha256:abcde/docker"}`},
		{m{"tag": `{{title .Name}}{{pad .Name 1 2}}{{json "<&>"}}`}, `{"tag":"Web web  \"\u003c\u0026\u003e\""}`},
		{m{"tag": "{{upper .Name}} {{truncate .FullID 3}}", "labels": "k"}, `{"k":"v","tag":"WEB 012"}`},
	} {
		got, err := logAttrs(rec(tt.options))
		if err != nil || string(got) != tt.want {
			t.Errorf("%v: %s, %v\nwant %s", tt.options, got, err, tt.want)
		}
	}
	for _, options := range []m{{"labels-regex": "("}, {"env-regex": "["}, {"tag": "{{.Nope"}, {"tag": "{{.Nope}}"}, {"tag": "{{nope}}"}} {
		if err := checkLog(container.LogConfig{Type: "json-file", Config: options}); err == nil {
			t.Errorf("%v is accepted", options)
		}
	}
}

// What a log's options select is in its file as Docker writes it, and is read
// back.
func TestLogAttrsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "json.log")
	w, err := openLog(path, rotation{}, discardLog())
	if err != nil {
		t.Fatal(err)
	}
	w.attrs = []byte(`{"k":"v"}`)
	w.write(Stderr, []byte("one\n"))
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil || !strings.HasPrefix(string(text), `{"log":"one\n","stream":"stderr","attrs":{"k":"v"},"time":"`) {
		t.Errorf("%s, %v", text, err)
	}
	if e, ok := parseEntry(text); !ok || e.Attrs["k"] != "v" || time.Since(e.Time) > time.Hour {
		t.Errorf("%+v, %t", e, ok)
	}
}
