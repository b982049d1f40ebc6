package share

import (
	"errors"
	"log/slog"
)

// ErrForbidden is wrapped by the error about a path that is never exported.
var ErrForbidden = errors.New("path is never shared")

// Options of a Tree.
type Options struct {
	// Forbidden are host paths that can't be exported, nor anything inside
	// them, and that are not reachable through an export that contains them.
	// Each has to exist when the Tree is made. Optional.
	Forbidden []string
	// MaxFiles bounds the descriptors that a Tree holds for the guest, which
	// may remember any number of inodes more. Optional: the default is half of
	// the process's limit.
	MaxFiles int
	// Log is for what people may want to know. Optional.
	Log *slog.Logger
}

func (o Options) log() *slog.Logger {
	if o.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Log
}
