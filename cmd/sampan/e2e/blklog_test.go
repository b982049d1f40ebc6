package e2e_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// A writeLog is what QEMU's blklogwrites driver has written: all that a guest
// did to a disk, in order. It is the format of Linux's dm-log-writes
// (Documentation/admin-guide/device-mapper/log-writes.rst), little-endian:
//
//	sector 0    magic 8, version 8, number of entries 8, sector size 4
//	then each   sector 8, number of sectors 8, flags 8, length of data 8,
//	entry       padded to a sector; and the data, but for discards
type writeLog struct {
	f       *os.File
	entries []logEntry
}

type logEntry struct {
	offset, length int64 // on the disk, bytes
	flags          uint64
	data           int64 // where the data is in the log
	end            int64 // where the entry ends in the log
}

const (
	logMagic   = 0x6a736677736872
	logSector  = 512 // blklogwrites' default
	logFlush   = 1
	logDiscard = 4
)

// openWriteLog reads the list of entries.
func openWriteLog(path string) (*writeLog, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	head := make([]byte, logSector)
	if _, err := io.ReadFull(f, head); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	le := binary.LittleEndian
	if le.Uint64(head) != logMagic || le.Uint64(head[8:]) != 1 || le.Uint32(head[24:]) != logSector {
		return nil, errors.Join(fmt.Errorf("%s: no log of version 1 with sectors of %d bytes", path, logSector), f.Close())
	}
	l := &writeLog{f: f}
	at := int64(logSector)
	for n := le.Uint64(head[16:]); n > 0; n-- {
		if _, err := f.ReadAt(head[:32], at); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %d entries are missing: %w", path, n, err), f.Close())
		}
		e := logEntry{
			offset: int64(le.Uint64(head)) * logSector, length: int64(le.Uint64(head[8:])) * logSector,
			flags: le.Uint64(head[16:]), data: at + logSector,
		}
		e.end = e.data
		if e.flags&logDiscard == 0 {
			e.end += e.length
		}
		at = e.end
		l.entries = append(l.entries, e)
	}
	return l, nil
}

// flushes lists the entries that are flushes, of those that end after from in
// the log.
func (l *writeLog) flushes(from int64) []int {
	var out []int
	for i, e := range l.entries {
		if e.flags&logFlush != 0 && e.end > from {
			out = append(out, i)
		}
	}
	return out
}

// apply does to a disk what an entry says.
func (l *writeLog) apply(disk *os.File, i int) error {
	e := l.entries[i]
	if e.length == 0 {
		return nil
	}
	data := make([]byte, e.length) // a discard may leave anything; QEMU's raw files give zeros
	if e.flags&logDiscard == 0 {
		if _, err := l.f.ReadAt(data, e.data); err != nil {
			return fmt.Errorf("entry %d of the log: %w", i, err)
		}
	}
	// Zeros stay holes where they can.
	for off := int64(0); off < e.length; off += 4096 {
		chunk := data[off:min(off+4096, e.length)]
		if allZero(chunk) {
			if hole, err := zeroAlready(disk, e.offset+off, len(chunk)); err != nil || hole {
				if err != nil {
					return err
				}
				continue
			}
		}
		if _, err := disk.WriteAt(chunk, e.offset+off); err != nil {
			return err
		}
	}
	return nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

func zeroAlready(disk *os.File, at int64, n int) (bool, error) {
	b := make([]byte, n)
	if _, err := disk.ReadAt(b, at); err != nil && err != io.EOF {
		return false, err
	}
	return allZero(b), nil
}
