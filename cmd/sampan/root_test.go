package main

import (
	"strings"
	"testing"
)

func TestHelp(t *testing.T) {
	f := newFake(t)
	var b strings.Builder
	for _, args := range []string{"", "run --help", "exec --help", "machine --help", "volume --help", "logs --help"} {
		res := f.run(t, "", strings.Fields(args)...)
		if res.code != 0 || res.err != "" {
			t.Errorf("%s: %+v", args, res)
		}
		b.WriteString(strings.TrimSpace("$ sampan "+args) + "\n" + res.out + "\n")
	}
	golden(t, "testdata/help.golden", b.String())
	if len(f.seen()) > 0 {
		t.Errorf("requests %q", f.seen())
	}
}

func TestUsage(t *testing.T) {
	f := newFake(t)
	tests := []struct{ args, err string }{
		{"bogus", "sampan: unknown command: sampan bogus\n\nRun 'sampan --help' for more information\n"},
		{"machine bogus", "sampan: unknown command: sampan machine bogus\n\nUsage:  sampan machine COMMAND\n\nRun 'sampan machine --help' for more information\n"},
		{"ps x", "sampan: 'sampan ps' accepts no arguments\n\nUsage:  sampan ps [OPTIONS]\n\nRun 'sampan ps --help' for more information\n"},
		{"tag a", "sampan: 'sampan tag' requires 2 arguments\n\nUsage:  sampan tag SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]\n\nRun 'sampan tag --help' for more information\n"},
		{"logs", "sampan: 'sampan logs' requires 1 argument\n\nUsage:  sampan logs [OPTIONS] CONTAINER\n\nRun 'sampan logs --help' for more information\n"},
		{"images a b", "sampan: 'sampan images' requires at most 1 argument\n\nUsage:  sampan images [OPTIONS] [REPOSITORY[:TAG]]\n\nRun 'sampan images --help' for more information\n"},
		{"exec c", "sampan: 'sampan exec' requires at least 2 arguments\n\nUsage:  sampan exec [OPTIONS] CONTAINER COMMAND [ARG...]\n\nRun 'sampan exec --help' for more information\n"},
		{"start -a a b", "you cannot start and attach multiple containers at once\n"},
	}
	for _, tt := range tests {
		if res := f.run(t, "", strings.Fields(tt.args)...); res.code != 1 || res.err != tt.err || res.out != "" {
			t.Errorf("%s: %+v\nwant %s", tt.args, res, tt.err)
		}
	}
}
