package engine

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// The API tells errors apart by the classes of containerd/errdefs; the text is
// Docker's wherever Docker has one.

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

func notFound(format string, args ...any) error {
	return errdefs.ErrNotFound.WithMessage(fmt.Sprintf(format, args...))
}

func conflict(format string, args ...any) error {
	return errdefs.ErrConflict.WithMessage(fmt.Sprintf(format, args...))
}

func errForbidden(format string, args ...any) error {
	return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf(format, args...))
}

func notModified(format string, args ...any) error {
	return errdefs.ErrNotModified.WithMessage(fmt.Sprintf(format, args...))
}

// unsupported names what is refused.
func unsupported(format string, args ...any) error {
	return errdefs.ErrNotImplemented.WithMessage("sampan: " + fmt.Sprintf(format, args...) + " is not supported")
}
