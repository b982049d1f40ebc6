// Package machine keeps the virtual machine: it boots it on the first call that
// needs it, holds the session with the guest's agent, and stops it when idle.
//
//	stopped ──Guest──► starting ──agent ready──► running ──Stop, idle, death──► stopped
//	                      └──── failure: the error of every waiting Guest ────────┘
//
// A Guest is one session: it ends with its machine and is never revived; the
// next call to Machine.Guest boots another.
package machine
