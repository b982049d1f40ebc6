// Package dns answers a container's questions about names.
//
//	container ──UDP, TCP──▶ Server ── Names ──▶ who is in the container's networks
//	                          └────── Dial ───▶ a name server, for all other names
//
// A name that somebody has is never asked for elsewhere: where it lacks what
// was asked for, an IPv6 address say, the answer is that there is none (NODATA).
// Other questions are passed on as they came, and so are their answers; the
// server knows of DNS no more than is needed for its own (RFC 1035, EDNS of
// RFC 6891).
//
// Hazard: the container writes what is read here. Messages, connections and
// questions under way are bounded, and nothing of a message is trusted.
package dns
