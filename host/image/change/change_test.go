package change

import (
	"encoding/json"
	"testing"

	"github.com/containerd/errdefs"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
)

func TestApply(t *testing.T) {
	for _, c := range []struct {
		lines []string
		want  string // JSON
	}{
		{[]string{`CMD ["sh", "-x"]`}, `{"Cmd":["sh","-x"]}`},
		{[]string{`cmd echo "a b"`}, `{"Cmd":["/bin/sh","-c","echo \"a b\""]}`},
		{[]string{`CMD a`, `ENTRYPOINT ["/e"]`}, `{"Entrypoint":["/e"],"Cmd":["/bin/sh","-c","a"]}`},
		{[]string{`ENV A=1 B="x $A y" C='$A' D=a\ b`, `ENV A two words`}, `{"Env":["A=two words","B=x  y","C=$A","D=a b"]}`},
		{[]string{`ENV A=1`, `ENV B=${A}2`, `LABEL l=$B`}, `{"Env":["A=1","B=12"],"Labels":{"l":"12"}}`},
		{[]string{"EXPOSE 80 53/udp 8000-8001"}, `{"ExposedPorts":{"53/udp":{},"80/tcp":{},"8000/tcp":{},"8001/tcp":{}}}`},
		{[]string{"USER 1:2", "WORKDIR /a", "WORKDIR b/../c", "VOLUME /v /w", `VOLUME ["/x y"]`, "STOPSIGNAL SIGQUIT"},
			`{"User":"1:2","Volumes":{"/v":{},"/w":{},"/x y":{}},"WorkingDir":"/a/c","StopSignal":"SIGQUIT"}`},
		{[]string{"ONBUILD RUN x"}, `{"OnBuild":["RUN x"]}`},
		{[]string{"HEALTHCHECK --interval=5s --retries=2 CMD curl x"}, `{"Healthcheck":{"Test":["CMD-SHELL","curl x"],"Interval":5000000000,"Retries":2}}`},
		{[]string{"HEALTHCHECK NONE"}, `{"Healthcheck":{"Test":["NONE"]}}`},
		{[]string{"ENV A=1\nENV B=2"}, `{"Env":["A=1","B=2"]}`},
	} {
		var cfg dockerspec.DockerOCIImageConfig
		if err := Apply(&cfg, c.lines); err != nil {
			t.Errorf("%q: %v", c.lines, err)
			continue
		}
		if got, _ := json.Marshal(cfg); string(got) != c.want {
			t.Errorf("%q:\n got %s\nwant %s", c.lines, got, c.want)
		}
	}
}

// An entrypoint drops the command that came with the image.
func TestEntrypointResetsCommand(t *testing.T) {
	var cfg dockerspec.DockerOCIImageConfig
	cfg.Cmd = []string{"old"}
	if err := Apply(&cfg, []string{`ENTRYPOINT ["/e"]`}); err != nil || cfg.Cmd != nil {
		t.Errorf("got %q, %v", cfg.Cmd, err)
	}
}

func TestRefused(t *testing.T) {
	for _, line := range []string{"RUN x", "CMD", "ENV A", `ENV A="b`, "EXPOSE x", "EXPOSE 80/x", "EXPOSE 9-8", "ONBUILD ONBUILD RUN x", "ONBUILD FROM x", "HEALTHCHECK x", "HEALTHCHECK --x=1 CMD y", "LABEL =x"} {
		var cfg dockerspec.DockerOCIImageConfig
		if err := Apply(&cfg, []string{line}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: got %v, want an invalid argument", line, err)
		}
	}
}

func FuzzApply(f *testing.F) {
	for _, s := range []string{`ENV A="b c" D=$A`, `CMD ["x"]`, "HEALTHCHECK --interval=5s CMD x", "EXPOSE 1-3/udp", `LABEL a='b'`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var cfg dockerspec.DockerOCIImageConfig
		if err := Apply(&cfg, []string{s}); err != nil {
			return
		}
		if len(cfg.ExposedPorts) > 65536*3 {
			t.Fatal("too many ports")
		}
	})
}
