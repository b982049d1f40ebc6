package agent

import (
	"sync"

	"golang.org/x/sys/unix"

	"sampan/guest/boot"
)

// lowSpace is how little the data disk may have left for containers, in bytes,
// before a start gets some of the reserve: more than its mount points take.
const lowSpace = 1 << 20

// reserve is the data disk's reserved blocks, which starts on a full disk may
// use.
type reserve struct {
	mu    sync.Mutex
	users int
}

// borrow gives a start the reserve when the disk is full, until giveBack.
func (r *reserve) borrow() (giveBack func() error, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(boot.DataDir, &st); err != nil {
		return nil, err
	}
	if st.Bavail*uint64(st.Bsize) >= lowSpace || st.Type != unix.EXT4_SUPER_MAGIC {
		return func() error { return nil }, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.users == 0 {
		if err := boot.LendReserve(true); err != nil {
			return nil, err
		}
	}
	r.users++
	return func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.users--; r.users > 0 {
			return nil
		}
		return boot.LendReserve(false)
	}, nil
}
