package main

import (
	"io"
	"net"
	"slices"
	"testing"
)

func TestMachine(t *testing.T) {
	f := newFake(t)
	f.answer("GET /sampan/machine", 200, `{"state":"running","driver":"QEMU 7.2.0, TCG","pid":42,"kernel":"6.12.1","cpus":2,"memory":2147483648,"dataDisk":"/h/data.img","diskSize":68719476736,"diskDone":"clean","boot":[{"name":"process","at":30000000},{"name":"kernel","at":1200000000}],"lastError":"ended by itself","warnings":["port 0.0.0.0:80/tcp of container web does not work"],"guest":{"memory_total":2000000000,"memory_available":1900000000}}`)
	f.answer("POST /sampan/machine/start", 204, nil)
	f.answer("POST /sampan/machine/stop", 500, "the machine does not answer")
	f.answer("GET /sampan/machine/logs", 200, "console\n")
	f.answer("POST /sampan/machine/exec", 201, map[string]any{"Id": "e1"})
	f.hijack("POST /exec/e1/start", func(conn net.Conn, in io.Reader) { _, _ = io.Copy(stdcopyWriter(conn, 1), in) })
	f.answer("GET /exec/e1/json", 200, map[string]any{"ID": "e1", "ExitCode": 2})

	status := `State:      running
Driver:     QEMU 7.2.0, TCG
Process:    42
Kernel:     6.12.1
CPUs:       2
Memory:     2GiB, 95.37MiB used
Data disk:  /h/data.img, 64GiB (clean)
Last error: ended by itself
Warning:    port 0.0.0.0:80/tcp of container web does not work
Boot:
  process         30ms  +30ms
  kernel          1.2s  +1.17s
`
	tests := []struct {
		args []string
		want result
	}{
		{[]string{"machine", "status"}, result{0, status, ""}},
		{[]string{"machine", "start"}, result{0, "", ""}},
		{[]string{"machine", "stop"}, result{1, "", "Error response from daemon: the machine does not answer\n"}},
		{[]string{"machine", "logs", "-f"}, result{0, "console\n", ""}},
		{[]string{"machine", "shell"}, result{2, "typed", ""}},
		{[]string{"machine", "shell", "ls", "-l"}, result{2, "typed", ""}},
	}
	for _, tt := range tests {
		if got := f.run(t, "typed", tt.args...); got != tt.want {
			t.Errorf("%q: %+v\nwant %+v", tt.args, got, tt.want)
		}
	}
	for _, r := range []string{
		"GET /sampan/machine/logs?follow=1",
		`POST /sampan/machine/exec {"User":"","Privileged":false,"Tty":false,"AttachStdin":true,"AttachStderr":true,"AttachStdout":true,"DetachKeys":"","Env":["PATH=/bin:/sbin","HOME=/root","PS1=sampan:\\w# "],"WorkingDir":"","Cmd":["/bin/busybox","sh","-c","exec \"$@\"","sh","ls","-l"]}`,
	} {
		if !slices.Contains(f.seen(), r) {
			t.Errorf("no request %s in %q", r, f.seen())
		}
	}
}
