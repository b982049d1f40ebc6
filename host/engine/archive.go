package engine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sampan/proto"
)

// borrowed is a container whose files are being used.
type borrowed struct {
	ctx   context.Context // ends with the use, and when the container is removed
	rec   record
	guest Guest
	files *proto.Files
	end   func() // idempotent
}

// borrow makes a container's files available in the guest, booting the machine
// if need be. One that doesn't run can't be started meanwhile; removing it ends
// the use.
func (e *Engine) borrow(ctx context.Context, name string, mounts bool) (*borrowed, error) {
	c, err := e.find(name)
	if err != nil {
		return nil, err
	}
	ctx, release, err := c.use(ctx)
	if err != nil {
		return nil, err
	}
	hold := e.machine.Hold()
	var exports []Export
	unuse := func() {}
	if mounts {
		unuse = e.useVolumes(c.view().rec.Mounts)
	}
	b := &borrowed{ctx: ctx, end: sync.OnceFunc(func() {
		unuse()
		for _, x := range exports {
			if err := x.Close(); err != nil {
				e.log.Warn("end of a share", "name", x.Name(), "error", err)
			}
		}
		hold()
		release()
	})}
	if exports, err = e.lay(b, c, mounts); err != nil {
		b.end()
		return nil, err
	}
	return b, nil
}

// lay completes b.
func (e *Engine) lay(b *borrowed, c *ctr, mounts bool) (exports []Export, err error) {
	c.mu.Lock()
	if c.run != nil {
		b.guest = c.run.guest
	}
	b.rec = c.rec
	c.mu.Unlock()
	if b.guest == nil {
		if b.guest, err = e.session(b.ctx); err != nil {
			return nil, err
		}
		// From here on the guest may hold a writable layer.
		c.mu.Lock()
		if !c.rec.Started {
			c.rec.Started = true
			e.trySave(c)
		}
		c.mu.Unlock()
	}
	b.files = &proto.Files{Id: c.id, Layers: b.rec.Layers, Ephemeral: b.rec.HostConfig.AutoRemove}
	if !mounts {
		return nil, nil
	}
	list, exports, err := e.ociMounts(b.rec.Mounts)
	if err != nil {
		return exports, err
	}
	kept := list[:0]
	for _, m := range list {
		if m.Type != "tmpfs" && m.Type != "socket" { // the container's own
			kept = append(kept, m)
		}
	}
	if len(kept) > 0 {
		b.files.Mounts, err = json.Marshal(kept)
	}
	return exports, err
}

// use registers a use of a container's files. The first of one that doesn't run
// takes op, and the last gives it back: between them it is not started.
func (c *ctr) use(ctx context.Context) (_ context.Context, release func(), err error) {
	for {
		c.mu.Lock()
		taking := c.lending
		switch {
		case c.removing:
			err = conflict("container is marked for removal")
		case c.run != nil:
			ctx, release = c.enlist(ctx, false)
		case c.lent > 0:
			ctx, release = c.enlist(ctx, true)
		case taking == nil:
			c.lending = make(chan struct{})
		}
		c.mu.Unlock()
		switch {
		case err != nil || release != nil:
			return ctx, release, err
		case taking == nil:
			if release, err = c.lend(ctx); err != nil {
				return nil, nil, err
			}
			defer release() // the next round finds it lent, unless it runs now
			continue
		}
		select {
		case <-taking:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// lend takes op for the users of c's files, who are told.
func (c *ctr) lend(ctx context.Context) (release func(), err error) {
	select {
	case c.op <- struct{}{}:
	case <-ctx.Done():
		err = ctx.Err()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.lending)
	c.lending = nil
	if err == nil {
		c.lent++
	}
	return c.giveBack, err
}

func (c *ctr) giveBack() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lent--; c.lent == 0 {
		<-c.op
	}
}

// enlist makes a use that a removal ends; the caller holds mu.
func (c *ctr) enlist(ctx context.Context, lent bool) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	id := c.nextUse
	c.nextUse++
	c.users[id] = cancel
	if lent {
		c.lent++
	}
	return ctx, func() {
		cancel()
		c.mu.Lock()
		delete(c.users, id)
		c.mu.Unlock()
		if lent {
			c.giveBack()
		}
	}
}

// StatPath describes a path in a container.
func (e *Engine) StatPath(ctx context.Context, name, p string) (container.PathStat, error) {
	b, err := e.borrow(ctx, name, true)
	if err != nil {
		return container.PathStat{}, err
	}
	defer b.end()
	return b.stat(name, p)
}

func (b *borrowed) stat(name, p string) (container.PathStat, error) {
	st, err := b.guest.Stat(b.ctx, &proto.StatRequest{Files: b.files, Path: p})
	if err != nil {
		return container.PathStat{}, fileError(err, name, p)
	}
	return container.PathStat{
		Name: st.Name, Size: st.Size, Mode: fs.FileMode(st.Mode),
		Mtime: time.Unix(0, st.ModTimeUnixNano), LinkTarget: st.Target,
	}, nil
}

// CopyFrom returns a tar of a path in a container. The caller closes it.
func (e *Engine) CopyFrom(ctx context.Context, name, p string) (io.ReadCloser, container.PathStat, error) {
	b, err := e.borrow(ctx, name, true)
	if err != nil {
		return nil, container.PathStat{}, err
	}
	stat, err := b.stat(name, p)
	if err != nil {
		b.end()
		return nil, stat, err
	}
	rc, err := b.pack(&proto.PackRequest{What: proto.PackRequest_PATH, Path: p}, func(err error) error { return fileError(err, name, p) })
	if err == nil {
		e.emitByID(b.rec.ID, events.ActionArchivePath)
	}
	return rc, stat, err
}

// Export returns a tar of a container's root. The caller closes it.
func (e *Engine) Export(ctx context.Context, name string) (io.ReadCloser, error) {
	b, err := e.borrow(ctx, name, false)
	if err != nil {
		return nil, err
	}
	rc, err := b.pack(&proto.PackRequest{What: proto.PackRequest_EXPORT}, func(err error) error { return fileError(err, name, "/") })
	if err == nil {
		e.emitByID(b.rec.ID, events.ActionExport)
	}
	return rc, err
}

// Changes lists what a container has changed of its image.
func (e *Engine) Changes(ctx context.Context, name string) ([]container.FilesystemChange, error) {
	b, err := e.borrow(ctx, name, false)
	if err != nil {
		return nil, err
	}
	defer b.end()
	res, err := b.guest.Changes(b.ctx, &proto.ChangesRequest{Files: b.files})
	if err != nil {
		return nil, fileError(err, name, "/")
	}
	list := []container.FilesystemChange{}
	for _, c := range res.Changes {
		list = append(list, container.FilesystemChange{Path: c.Path, Kind: container.ChangeType(c.Kind)})
	}
	return list, nil
}

func (e *Engine) emitByID(id string, a events.Action) {
	if c, err := e.find(id); err == nil {
		e.emitContainer(c, a, nil)
	}
}

// pack has the guest write a tar. Reading to its end gives the guest's error, if
// there is one, as judge has it; b ends with the reader, or the error here.
func (b *borrowed) pack(req *proto.PackRequest, judge func(error) error) (io.ReadCloser, error) {
	req.Files, req.Transfer = b.files, newID()
	conn, err := b.guest.Archive(b.ctx, b.files.Id, req.Transfer)
	if err != nil {
		b.end()
		return nil, err
	}
	t := &packed{b: b, conn: conn, done: make(chan struct{}), judge: judge}
	t.r = bufio.NewReaderSize(conn, 64<<10)
	t.stop = context.AfterFunc(b.ctx, func() { conn.Close() })
	go func() {
		defer close(t.done)
		if _, t.err = b.guest.Pack(context.WithoutCancel(b.ctx), req); t.err != nil {
			conn.Close() // nothing more will come
		}
	}()
	go b.endWith(t.done)
	// What fails at once is told before anything is sent to the client.
	if _, err := t.r.Peek(1); err != nil {
		return nil, errors.Join(t.result(err), t.Close())
	}
	return t, nil
}

// endWith gives back what was borrowed when its use was ended and is over in
// the guest: a client that stands still must not hold up the removal.
func (b *borrowed) endWith(done <-chan struct{}) {
	<-b.ctx.Done() // with b.end as well
	<-done
	b.end()
}

// packed is a tar that the guest sends.
type packed struct {
	b     *borrowed
	conn  net.Conn
	r     *bufio.Reader
	stop  func() bool
	done  chan struct{}
	err   error // the guest's, once done is closed
	judge func(error) error
}

func (t *packed) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if err != nil {
		err = t.result(err)
	}
	return n, err
}

// result is what the end of the stream means.
func (t *packed) result(err error) error {
	<-t.done
	switch {
	case t.b.ctx.Err() != nil:
		return context.Cause(t.b.ctx)
	case t.err != nil:
		return t.judge(t.err)
	}
	return err
}

func (t *packed) Close() error {
	t.stop()
	t.conn.Close()
	<-t.done // the guest notices
	t.b.end()
	return nil
}

// CopyOptions of CopyTo.
type CopyOptions struct {
	// KeepKind refuses to replace a directory by a file and the other way round.
	KeepKind bool
	// ToUser gives what is copied to the container's user.
	ToUser bool
}

// CopyTo unpacks a tar in a directory of a container.
func (e *Engine) CopyTo(ctx context.Context, name, p string, tar io.Reader, o CopyOptions) error {
	b, err := e.borrow(ctx, name, true)
	if err != nil {
		return err
	}
	defer b.end()
	if err := writable(&b.rec, p); err != nil {
		return err
	}
	req := &proto.UnpackRequest{Path: p, KeepKind: o.KeepKind}
	if o.ToUser {
		req.Owner = b.rec.Config.User
	}
	err = b.unpack(req, tar, func(err error) error { return fileError(err, name, p) })
	if err == nil {
		e.emitByID(b.rec.ID, events.ActionExtractToDir)
	}
	return err
}

// unpack has the guest read a tar; its error is as judge has it. The caller ends
// b.
func (b *borrowed) unpack(req *proto.UnpackRequest, tar io.Reader, judge func(error) error) error {
	req.Files, req.Transfer = b.files, newID()
	conn, err := b.guest.Archive(b.ctx, b.files.Id, req.Transfer)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(b.ctx, func() { conn.Close() })()
	var reason error // the guest's, once done is closed
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, reason = b.guest.Unpack(context.WithoutCancel(b.ctx), req); reason != nil {
			conn.Close()
		}
	}()
	go b.endWith(done)
	_, err = io.Copy(conn, tar)
	if err == nil {
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			err = half.CloseWrite()
		}
	} else {
		conn.Close()
	}
	if <-done; reason != nil && b.ctx.Err() == nil {
		return judge(reason)
	}
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	return err
}

// writable says whether something may be put at a path, by its words alone, as
// Docker does. What links lead to is the guest's to see.
func writable(rec *record, p string) error {
	abs := path.Clean("/" + p)
	in := ""
	ro := rec.HostConfig.ReadonlyRootfs
	for _, m := range rec.Mounts {
		if d := m.Destination; len(d) > len(in) && (abs == d || strings.HasPrefix(abs, d+"/")) {
			in, ro = d, !m.RW
		}
	}
	switch {
	case ro && in != "":
		return errdefs.ErrPermissionDenied.WithMessage("mounted volume is marked read-only")
	case ro:
		return errdefs.ErrPermissionDenied.WithMessage("container rootfs is marked read-only")
	}
	return nil
}

// fileError is the guest's error about a container's files in Docker's words.
func fileError(err error, name, p string) error {
	switch status.Code(err) {
	case codes.NotFound:
		return notFound("Could not find the file %s in container %s", p, name)
	case codes.InvalidArgument:
		return invalid("%s", message(err))
	case codes.PermissionDenied:
		return errdefs.ErrPermissionDenied.WithMessage(message(err))
	case codes.FailedPrecondition:
		return errors.New(message(err))
	}
	return err
}
