package share

import (
	"context"
	"errors"
	"io"
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
	// Replays opens the stream to the guest's agent by which it is told what
	// the host changes (proto.StreamReplays). Optional: without, it isn't told.
	Replays func(context.Context) (io.ReadWriteCloser, error)
	// Log is for what people may want to know. Optional.
	Log *slog.Logger
}

func (o Options) log() *slog.Logger {
	if o.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Log
}

// Events tells what became of the host's changes in directories that the guest
// knows.
type Events struct {
	Watched   int64 `json:"watched"`   // directories, now
	Unwatched int64 `json:"unwatched"` // the guest knows these, but the host refuses to watch them
	Replayed  int64 `json:"replayed"`  // changes of which the guest's watchers were told
	Merged    int64 `json:"merged"`    // with an equal one that was still to be told
	Void      int64 `json:"void"`      // undone, or forgotten by the guest, before it could be told
	Degraded  int64 `json:"degraded"`  // told as another kind of change
	Lost      int64 `json:"lost"`      // not told
	Overflows int64 `json:"overflows"` // how often the host's kernel had no room for more
}
