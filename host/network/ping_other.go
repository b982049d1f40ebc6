//go:build !linux

package network

// pingAdvice is what helps when the system refuses ping sockets.
const pingAdvice = "the host refuses ping sockets"
