package agent

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sampan/guest/runtime"
)

// errorf makes an error with a ttrpc status.
func errorf(code codes.Code, format string, args ...any) error {
	return status.Error(code, fmt.Sprintf(format, args...))
}

// failed gives err a ttrpc status: the one that it has, or else that of its
// class.
func failed(what string, err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	code := codes.FailedPrecondition
	switch {
	case errors.Is(err, runtime.ErrNotFound):
		code = codes.NotFound
	case errors.Is(err, runtime.ErrNotExecutable):
		code = codes.PermissionDenied
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		code = codes.Aborted
	}
	if what == "" {
		return status.Error(code, err.Error())
	}
	return status.Error(code, what+": "+err.Error())
}

// checkName says whether s may name a container, volume, exec or layer: one
// component of a path, and never a hidden one. (Not a regular expression: this
// binary is stage 2 of each process as well, and compiling one is most of its
// start-up.)
func checkName(what, s string) error {
	ok := len(s) > 0 && len(s) <= 255
	for i := 0; i < len(s) && ok; i++ {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_':
		case c == '.', c == ':', c == '+', c == '-':
			ok = i > 0
		default:
			ok = false
		}
	}
	if !ok {
		return errorf(codes.InvalidArgument, "%s %q: not a valid name", what, s)
	}
	return nil
}
