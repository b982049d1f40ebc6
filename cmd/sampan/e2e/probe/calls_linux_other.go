//go:build linux && !amd64

package main

// Numbers of calls are those of amd64, as are the specs that Docker gave.
func tryCalls(string, int) {}

func (f facts) calls() {}
