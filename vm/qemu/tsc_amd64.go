package qemu

import "time"

// readTSC reads the processor's time stamp counter (Intel's manual, RDTSC).
func readTSC() uint64

// tsc is the time stamp counter at a time. QEMU's translator gives the guest the
// host's own (cpu_get_host_ticks).
type tsc struct {
	count uint64
	at    time.Time
}

// tscInterval is what a frequency is measured over: some microseconds more or less
// between the two clocks are half a percent of it.
const tscInterval = time.Millisecond

func readClocks() tsc {
	var best tsc
	shortest := ^uint64(0)
	for range 4 { // one of them was not interrupted, most likely
		before := readTSC()
		at := time.Now()
		if took := readTSC() - before; took < shortest {
			best, shortest = tsc{before + took/2, at}, took
		}
	}
	return best
}

// hertz is the counter's frequency, measured since t was read; 0 if that failed.
func (t tsc) hertz() float64 {
	time.Sleep(tscInterval - time.Since(t.at)) // most often it has passed
	now := readClocks()
	f := float64(now.count-t.count) / now.at.Sub(t.at).Seconds()
	if f < 1e8 || f > 1e11 { // no processor's: the counter has jumped
		return 0
	}
	return f
}
