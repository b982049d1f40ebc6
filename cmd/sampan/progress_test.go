package main

import (
	"strings"
	"testing"
	"time"
)

// A layer's rate is that of the last seconds; messages without bytes stay what
// they are.
func TestRates(t *testing.T) {
	in := `{"status":"Pulling from a","id":"latest"}
{"status":"Downloading","progressDetail":{"current":1000,"total":9000000},"id":"x"}
{"status":"Downloading","progressDetail":{"current":2001000,"total":9000000},"id":"x"}
{"status":"Downloading","progressDetail":{"current":7000,"total":8000},"id":"y"}
{"status":"Downloading","progressDetail":{"current":2501000,"total":9000000},"id":"x"}
{"status":"Downloading","progressDetail":{"current":3001000,"total":9000000},"id":"x"}
{"status":"Downloading","progressDetail":{"current":3501000,"total":9000000},"id":"x"}
{"status":"Extracting","progressDetail":{"current":3501000,"total":9000000},"id":"x"}
{"errorDetail":{"message":"no"},"error":"no"}
`
	want := []string{`"Pulling from a"`, `"Downloading          "`, `"Downloading     2MB/s"`, `"Downloading          "`, `"Downloading  1.25MB/s"`, `"Downloading   250kB/s"`, `"Downloading   250kB/s"`, `"Extracting          "`, `"error":"no"`}
	var at int
	var out strings.Builder
	// x has a message at 0, 1, 2, 4 and 6 seconds or so.
	times := []time.Duration{0, 1, 1, 2, 4, 6, 7}
	err := addRates(strings.NewReader(in), &out, func() time.Time {
		at++
		return time.Unix(0, 0).Add(times[at-1] * time.Second)
	})
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != len(want) {
		t.Fatalf("got %d lines:\n%s", len(lines), out.String())
	}
	for i := range want {
		if !strings.Contains(lines[i], want[i]) {
			t.Errorf("line %d: got %s, want %s", i, lines[i], want[i])
		}
	}
	if err := addRates(strings.NewReader(`{"status":3}`), &out, time.Now); err == nil {
		t.Error("took a number for a status")
	}
}
