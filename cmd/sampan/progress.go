package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/client/pkg/jsonmessage"
	"github.com/moby/term"
)

// showProgress prints the steps of a transfer: on a terminal a bar for each
// layer, with its bytes and how fast they come, else a line for each step.
func showProgress(r io.Reader, out io.Writer) error {
	if _, is := term.GetFdInfo(out); !is {
		return jsonmessage.DisplayStream(r, out)
	}
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		pw.CloseWithError(addRates(r, pw, time.Now))
	}()
	err := jsonmessage.DisplayStream(pr, out)
	pr.Close() // so that the other ends after its next read, as the answer does
	if err == nil {
		<-done
	}
	return err
}

// rateWindow is how far back a rate looks.
const rateWindow = 2 * time.Second

// rate is how fast one layer comes.
type rate struct {
	status string
	points []ratePoint // of the last rateWindow, and one before
}

type ratePoint struct {
	at    time.Time
	bytes int64
}

// add tells the bytes a second, or 0 when that isn't known yet.
func (r *rate) add(now time.Time, status string, bytes int64) float64 {
	if n := len(r.points); status != r.status || n > 0 && bytes < r.points[n-1].bytes {
		r.status, r.points = status, nil
	}
	r.points = append(r.points, ratePoint{now, bytes})
	for len(r.points) > 2 && now.Sub(r.points[1].at) >= rateWindow {
		r.points = r.points[1:]
	}
	first := r.points[0]
	if d := now.Sub(first.at); d >= rateWindow/10 {
		return float64(bytes-first.bytes) / d.Seconds()
	}
	return 0
}

// addRates copies a stream of progress messages and adds to each that tells
// bytes how fast they come.
func addRates(r io.Reader, w io.Writer, now func() time.Time) error {
	rates := map[string]*rate{}
	dec, enc := json.NewDecoder(r), json.NewEncoder(w)
	for {
		var m map[string]json.RawMessage
		if err := dec.Decode(&m); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		var id, status string
		var detail struct{ Current, Total int64 }
		for key, to := range map[string]any{"id": &id, "status": &status, "progressDetail": &detail} {
			if raw, ok := m[key]; ok && json.Unmarshal(raw, to) != nil {
				return fmt.Errorf("progress message with the %s %s", key, raw)
			}
		}
		if id != "" && detail.Total > 0 {
			if rates[id] == nil {
				rates[id] = &rate{}
			}
			text := ""
			if n := rates[id].add(now(), status, detail.Current); n > 0 {
				text = units.HumanSizeWithPrecision(n, 3) + "/s"
			}
			m["status"], _ = json.Marshal(fmt.Sprintf("%s %9s", status, text)) // as wide as "1.23GB/s", so that the bar stays
		}
		if err := enc.Encode(m); err != nil {
			return err
		}
	}
}
