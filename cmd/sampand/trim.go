package main

import (
	"net/http"
	"time"
)

// trimAfter is how long after the last request its memory goes back.
const trimAfter = 2 * time.Second

// trimmed calls trim when the last request has ended for a while: the daemon
// runs for days, and is asked for seconds of these. A trim may meet a request
// that has just come.
func trimmed(h http.Handler, after time.Duration, trim func()) http.Handler {
	timer := time.AfterFunc(after, trim)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer timer.Reset(after) // also where a handler panics
		h.ServeHTTP(w, r)
	})
}
