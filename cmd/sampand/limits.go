package main

import "golang.org/x/sys/unix"

// openLimit is how many connections of clients there may be: half of the
// descriptors. The rest is the machine's, its shares' and the streams'. (Go has
// raised the soft limit to the hard one.)
func openLimit() int {
	const least, most = 64, 8192
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return least
	}
	return int(max(least, min(most, l.Cur/2)))
}
