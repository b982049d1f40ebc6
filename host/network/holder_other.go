//go:build !linux

package network

// holder is not found out on this system.
func holder(string, uint16) string { return "" }

// allowPrivileged has nothing to advise on this system.
func allowPrivileged(uint16) string { return "" }
