package main

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

func TestTrimmed(t *testing.T) {
	served, trims := make(chan bool, 1), make(chan bool, 10)
	h := trimmed(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served <- true }), time.Millisecond, func() { trims <- true })
	for range 3 { // the start, and each request after which it is quiet
		select {
		case <-trims:
		case <-time.After(30 * time.Second):
			t.Fatal("nothing is given back")
		}
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
		<-served
	}
}
