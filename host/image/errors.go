package image

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// Classes of errors. The text of such an error is Docker's.
var (
	ErrNotFound = errdefs.ErrNotFound
	ErrConflict = errdefs.ErrConflict
	ErrInvalid  = errdefs.ErrInvalidArgument
	ErrDenied   = errdefs.ErrPermissionDenied
)

// classed is an error with a text for people, which belongs to a class.
type classed struct {
	text  string
	class error
	cause error // optional
}

func (e *classed) Error() string { return e.text }

func (e *classed) Unwrap() []error {
	if e.cause == nil {
		return []error{e.class}
	}
	return []error{e.class, e.cause}
}

func errorOf(class error, format string, args ...any) error {
	return &classed{text: fmt.Sprintf(format, args...), class: class}
}
