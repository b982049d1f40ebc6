package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// statsJSON is one container's usage: 25 % of one of two processors.
const statsJSON = `{"id":"` + testID + `","name":"/box","read":"2026-01-01T00:00:01Z",
"cpu_stats":{"cpu_usage":{"total_usage":1250000000},"system_cpu_usage":12000000000,"online_cpus":2},
"precpu_stats":{"cpu_usage":{"total_usage":1000000000},"system_cpu_usage":10000000000},
"memory_stats":{"usage":3145728,"limit":67108864,"stats":{"inactive_file":1048576}},"pids_stats":{"current":2},
"networks":{"eth0":{"rx_bytes":1000,"tx_bytes":2}},"blkio_stats":{"io_service_bytes_recursive":[{"op":"read","value":4096},{"op":"write","value":5}]}}`

// usageOnce answers with each text in turn, then with the last one again.
func (f *fakeDaemon) usageOnce(texts ...string) {
	var n atomic.Int32
	f.mux.HandleFunc("GET /sampan/machine/usage", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, texts[min(int(n.Add(1)), len(texts))-1])
	})
}

// usageText is 1.5 GiB of 2 resident; between the ages 1 s and 2 s QEMU has used
// 1.234 s on several processors.
func usageText(age, cpu string) string {
	return `{"state":"running","since":"2026-01-01T00:00:00Z","age":` + age + `,"memory":2147483648,
"hypervisor":{"cpu":` + cpu + `,"memory":1610612736,"threads":9,"storage":{"read":123456,"written":7890000}},"network":{"received":1500,"sent":600}}`
}

const stoppedText = `{"state":"stopped","since":"2026-01-01T00:00:00Z","age":5,"memory":2147483648}`

func TestStatsMachine(t *testing.T) {
	first, second := usageText("1000000000", "40000000000"), usageText("2000000000", "41234000000")
	rebooted := strings.Replace(second, "T00:00:00Z", "T00:00:09Z", 1)
	untold := `{"state":"running","since":"2026-01-01T00:00:00Z","age":5,"memory":2147483648,"network":{"received":1500,"sent":600}}`
	noStorage := strings.Replace(second, `,"storage":{"read":123456,"written":7890000}`, "", 1)
	tests := []struct {
		what  string
		usage []string
		args  string
	}{
		{"runs", []string{first, second}, "--no-stream"},
		{"runs", []string{first, second}, "--machine --no-stream"},
		{"runs", []string{first, second}, "--machine --no-stream --format json box"},
		{"runs", []string{first, second}, "--machine --no-stream --format {{.Name}}:{{.CPUPerc}} box"},
		{"booted in between", []string{first, rebooted}, "--machine --no-stream"},
		{"of a driver that can't tell", []string{untold}, "--machine --no-stream"},
		{"whose host doesn't count storage", []string{first, noStorage}, "--machine --no-stream"},
		{"stopped", []string{stoppedText}, "--machine --no-stream"},
		{"stopped", []string{stoppedText}, "--machine --no-stream --format json box"},
	}
	// Each waits for the second sample: they do so at once.
	texts := make([]string, len(tests))
	var wg sync.WaitGroup
	for i, tt := range tests {
		f := newFake(t)
		f.answer("GET /containers/json", 200, `[{"Id":"`+testID+`","Names":["/box"]}]`)
		f.answer("GET /containers/{id}/json", 200, `{"Id":"`+testID+`"}`)
		f.answer("GET /containers/{id}/stats", 200, statsJSON)
		f.usageOnce(tt.usage...)
		wg.Go(func() { texts[i] = f.statsText(t, tt.what, tt.args) })
	}
	wg.Wait()
	golden(t, "testdata/stats.golden", strings.Join(texts, ""))
}

// statsText is a command line and what it gave; it asks for figures of the
// machine only when told to, and changes nothing.
func (f *fakeDaemon) statsText(t *testing.T, what, flags string) string {
	args := append([]string{"stats"}, strings.Fields(flags)...)
	res := f.run(t, "", args...)
	var b strings.Builder
	fmt.Fprintf(&b, "$ sampan %s # the machine %s\n%s", strings.Join(args, " "), what, res.out)
	for line := range strings.Lines(res.err) {
		b.WriteString("stderr: " + line)
	}
	if res.code != 0 {
		t.Errorf("%q: %+v", args, res)
	}
	if strings.Contains(flags, "json") {
		for dec := json.NewDecoder(strings.NewReader(res.out)); dec.More(); {
			if err := dec.Decode(new(map[string]string)); err != nil {
				t.Errorf("%q: %v in %s", args, err, res.out)
			}
		}
	}
	for _, r := range f.seen() {
		if !strings.HasPrefix(r, "GET ") || strings.Contains(r, "/usage") && !strings.Contains(flags, "--machine") {
			t.Errorf("%q: request %s", args, r)
		}
	}
	return b.String()
}

// heard calls done when it has been written what it wants.
type heard struct {
	want string
	done func()

	mu  sync.Mutex
	all strings.Builder
}

func (h *heard) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all.Write(p)
	if strings.Contains(h.all.String(), h.want) {
		h.done()
	}
	return len(p), nil
}

// What the daemon refuses is told, and fails.
func TestStatsMachineFails(t *testing.T) {
	f := newFake(t)
	f.answer("GET /containers/json", 200, `[]`)
	f.answer("GET /sampan/machine/usage", 500, "no figures")
	for _, args := range [][]string{{"stats", "--machine", "--no-stream"}, {"stats", "--machine"}} {
		res := f.run(t, "", args...)
		if res.code != 1 || !strings.Contains(res.err, "Error response from daemon: no figures") {
			t.Errorf("%q: %+v", args, res)
		}
	}
}

// The live table ends with the machine's row, or says that it doesn't run.
func TestStatsMachineLive(t *testing.T) {
	for _, tt := range []struct {
		name, usage, want string
		format            []string
	}{
		{"row", usageText("1000000000", "1"), "--             (machine)   --        1.5GiB / 2GiB", nil},
		{"note", stoppedText, "\nThe virtual machine is stopped: there are no figures of it, and it was not booted for them.\x1b[K", nil},
		{"note of a template", stoppedText, "The virtual machine is stopped:", []string{"--format", "{{.Name}}"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t)
			f.answer("GET /containers/json", 200, `[]`)
			f.usageOnce(tt.usage)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			out := &heard{want: tt.want, done: cancel}
			a := newApp(strings.NewReader(""), out, out, func(k string) string { return map[string]string{"SAMPAN_HOME": f.home}[k] })
			run(ctx, append([]string{"stats", "--machine"}, tt.format...), a)
			if ctx.Err() != context.Canceled {
				t.Errorf("%v: %q", ctx.Err(), out.all.String())
			}
		})
	}
}
