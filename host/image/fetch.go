package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// attempts at a request, or at going on with a blob, without any success
	// between them.
	attempts = 5
	// maxPause bounds how long a registry may ask us to wait.
	maxPause = 2 * time.Minute
	// defaultStall is how long a registry may send nothing of an answer.
	defaultStall = time.Minute
)

// retrying asks again when a registry is overloaded: after as long as it says,
// or else twice as long every time. Only requests without a body: the others
// are for who made the body.
type retrying struct {
	base http.RoundTripper
	log  *slog.Logger
}

func (r *retrying) RoundTrip(req *http.Request) (*http.Response, error) {
	for n := 1; ; n++ {
		resp, err := r.base.RoundTrip(req)
		if err != nil || !overloaded(resp.StatusCode) || n == attempts || req.Body != nil && req.Body != http.NoBody {
			return resp, err
		}
		wait := pause(n, resp.Header.Get("Retry-After"), time.Now())
		if wait > maxPause {
			return resp, nil
		}
		io.CopyN(io.Discard, resp.Body, 64<<10) // for the connection's sake
		resp.Body.Close()
		r.log.Info("registry asks to come back later", "host", req.URL.Host, "status", resp.StatusCode, "wait", wait)
		if err := sleep(req.Context(), wait); err != nil {
			return nil, err
		}
	}
}

func overloaded(code int) bool {
	switch code {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// pause is how long to wait after the nth failure. retryAfter is the header.
func pause(n int, retryAfter string, now time.Time) time.Duration {
	if sec, err := strconv.Atoi(retryAfter); err == nil && sec >= 0 {
		return time.Duration(min(sec, 1<<20)) * time.Second
	}
	if at, err := http.ParseTime(retryAfter); err == nil {
		return max(0, at.Sub(now))
	}
	d := 250 * time.Millisecond << (n - 1)
	return d + time.Duration(rand.Int64N(int64(d)/2))
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// timed is an answer's body that fails when nothing comes for too long.
type timed struct {
	io.ReadCloser
	stall time.Duration
}

func (t *timed) Read(p []byte) (int, error) {
	timer := time.AfterFunc(t.stall, func() { t.Close() })
	n, err := t.ReadCloser.Read(p)
	if !timer.Stop() && err != nil {
		err = fmt.Errorf("registry has sent nothing for %s", t.stall)
	}
	return n, err
}

// fetcher reads blobs of a repository.
type fetcher struct {
	client *http.Client
	base   string // "https://host/v2/repo/blobs/"
}

// blob opens a blob. It survives broken and stalled connections by going on
// where they broke; at its end it has the promised size and digest, or fails.
// retrying is told before every pause.
func (f *fetcher) blob(ctx context.Context, d ocispec.Descriptor, retrying func(time.Duration)) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	b := &blobReader{f: f, ctx: ctx, cancel: cancel, d: d, sum: sha256.New(), retrying: retrying}
	if err := b.open(); err != nil {
		if err = b.recover(err); err != nil {
			cancel()
			return nil, err
		}
	}
	return b, nil
}

// blobReader is a blob on its way.
type blobReader struct {
	f        *fetcher
	ctx      context.Context
	cancel   context.CancelFunc
	d        ocispec.Descriptor
	sum      hash.Hash
	retrying func(time.Duration)

	body   io.ReadCloser
	at     int64
	failed int // times, since the last byte
	err    error
}

// errRefused is a registry's answer that asking again doesn't change.
type errRefused struct{ error }

// open asks for the rest.
func (b *blobReader) open() error {
	req, err := http.NewRequestWithContext(b.ctx, http.MethodGet, b.f.base+b.d.Digest.String(), nil)
	if err != nil {
		return errRefused{err}
	}
	if b.at > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", b.at))
	}
	resp, err := b.f.client.Do(req)
	if err != nil {
		return err
	}
	switch {
	case resp.StatusCode == http.StatusOK:
		// The registry knows no ranges: what is there is read once more.
		if _, err := io.CopyN(io.Discard, resp.Body, b.at); err != nil {
			resp.Body.Close()
			return err
		}
	case resp.StatusCode == http.StatusPartialContent && b.at > 0 && strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", b.at)):
	default:
		defer resp.Body.Close()
		err := transport.CheckError(resp, http.StatusOK)
		if err == nil || resp.StatusCode == http.StatusPartialContent {
			err = fmt.Errorf("registry answers %s with the range %q to one from byte %d", resp.Status, resp.Header.Get("Content-Range"), b.at)
		}
		return errRefused{err}
	}
	b.body = resp.Body
	return nil
}

// recover opens the rest again after err, unless there is no sense in it.
func (b *blobReader) recover(err error) error {
	for {
		if b.body != nil {
			b.body.Close()
			b.body = nil
		}
		if ctxErr := b.ctx.Err(); ctxErr != nil {
			return ctxErr
		}
		var refused errRefused
		if b.failed++; errors.As(err, &refused) || errors.Is(err, errHere) || b.failed >= attempts {
			return err
		}
		wait := pause(b.failed, "", time.Time{})
		b.retrying(wait)
		if err := sleep(b.ctx, wait); err != nil {
			return err
		}
		if err = b.open(); err == nil {
			return nil
		}
	}
}

func (b *blobReader) Read(p []byte) (int, error) {
	for b.err == nil {
		n, err := b.body.Read(p)
		b.sum.Write(p[:n])
		if b.at += int64(n); n > 0 {
			b.failed = 0
		}
		switch {
		case b.at > b.d.Size:
			b.err = fmt.Errorf("blob %s has more than the %d bytes that the manifest tells", b.d.Digest, b.d.Size)
			return 0, b.err
		case b.at == b.d.Size && err == io.EOF:
			b.err = io.EOF
			if got := "sha256:" + hex.EncodeToString(b.sum.Sum(nil)); got != b.d.Digest.String() {
				b.err = fmt.Errorf("error verifying sha256 checksum: got %s, want %s", got, b.d.Digest)
			}
		case err == io.EOF:
			b.err = b.recover(fmt.Errorf("blob %s ends after %d of %d bytes: %w", b.d.Digest, b.at, b.d.Size, io.ErrUnexpectedEOF))
		case err != nil && b.at == b.d.Size:
			// All is there, and only the end of the connection was bad.
			b.body.Close()
			b.body = io.NopCloser(strings.NewReader(""))
		case err != nil:
			b.err = b.recover(err)
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, b.err
}

// Close ends a Read under way.
func (b *blobReader) Close() error {
	b.cancel()
	return nil
}
