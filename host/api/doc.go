// Package api serves the Docker Engine API over the engine and the image
// store: it decodes requests, calls, and encodes answers. Types and texts are
// Docker's (github.com/moby/moby/api); what is not supported answers 501 and
// names itself. A few endpoints of our own live under /sampan/.
//
// Attach and exec take the connection over (hijacking): after the answer's
// header it carries raw bytes in both directions. Output of a process without a
// terminal is framed, eight bytes before each piece: stream, three zeros, the
// size as a big-endian 32-bit number.
package api
