package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"sampan/guest/archive"
	"sampan/guest/runtime"
	"sampan/proto"
)

// archiveExec stands for the exec in the keys of archives' streams; no exec has
// such a name.
const archiveExec = "/archive"

// transfers are the uses of containers' files by the host that are under way.
type transfers struct {
	mounting sync.Mutex // held while roots of stopped containers are (un)mounted
	stopped  map[string]*stoppedRoot

	mu  sync.Mutex
	all map[*transfer]struct{}
}

// transfer is one of them.
type transfer struct {
	id    string
	done  chan struct{}
	mu    sync.Mutex
	ended bool
	conn  net.Conn
}

func (ts *transfers) begin(id string) *transfer {
	t := &transfer{id: id, done: make(chan struct{})}
	ts.mu.Lock()
	ts.all[t] = struct{}{}
	ts.mu.Unlock()
	return t
}

func (ts *transfers) finish(t *transfer) {
	t.cut()
	ts.mu.Lock()
	delete(ts.all, t)
	ts.mu.Unlock()
	close(t.done)
}

// end cuts the transfers of a container short, or all of them for "", and waits
// until they hold nothing any more.
func (ts *transfers) end(ctx context.Context, id string) error {
	ts.mu.Lock()
	var list []*transfer
	for t := range ts.all {
		if id == "" || t.id == id {
			list = append(list, t)
		}
	}
	ts.mu.Unlock()
	for _, t := range list {
		t.cut()
		select {
		case <-t.done:
		case <-ctx.Done():
			return fmt.Errorf("end a copy of the files of %s: %w", t.id, ctx.Err())
		}
	}
	return nil
}

// use gives the transfer its stream.
func (t *transfer) use(conn net.Conn) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		conn.Close()
		return errors.New("the copy was cut short")
	}
	t.conn = conn
	return nil
}

func (t *transfer) cut() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	if t.conn != nil {
		t.conn.Close()
	}
}

// stream waits for the host's end of a transfer.
func (s *Service) stream(ctx context.Context, t *transfer, name string) (net.Conn, error) {
	conns, err := s.cfg.Streams.take(ctx, t.id, archiveExec, []string{name})
	if err != nil {
		return nil, err
	}
	if err := t.use(conns[name]); err != nil {
		return nil, err
	}
	return conns[name], nil
}

// Stat implements proto.AgentService.
func (s *Service) Stat(ctx context.Context, req *proto.StatRequest) (*proto.StatResponse, error) {
	var st archive.Stat
	err := s.withView(ctx, req.Files, true, func(_ *transfer, v *view) (err error) {
		st, err = v.root.Stat(req.Path)
		return err
	})
	if err != nil {
		return nil, fileError(err)
	}
	return &proto.StatResponse{
		Name: st.Name, Size: st.Size, Mode: uint32(st.Mode), ModTimeUnixNano: st.ModTime.UnixNano(), Target: st.Target,
	}, nil
}

// withView does something with a container's files.
func (s *Service) withView(ctx context.Context, files *proto.Files, mounts bool, do func(*transfer, *view) error) (err error) {
	if err := s.ready(); err != nil {
		return err
	}
	t := s.transfers.begin(files.GetId())
	defer s.transfers.finish(t)
	var v *view
	if files.GetVolume() {
		v, err = s.openVolume(files.Id)
	} else {
		v, err = s.openView(ctx, files, mounts)
	}
	if err != nil {
		return err
	}
	defer func() { s.logError(v.close()) }()
	return do(t, v)
}

// Pack implements proto.AgentService.
func (s *Service) Pack(ctx context.Context, req *proto.PackRequest) (*proto.Empty, error) {
	var err error
	switch req.What {
	case proto.PackRequest_PATH:
		err = s.withView(ctx, req.Files, true, func(t *transfer, v *view) error {
			return s.send(ctx, t, req.Transfer, func(w net.Conn) error { return v.root.Pack(w, req.Path) })
		})
	case proto.PackRequest_EXPORT:
		err = s.withView(ctx, req.Files, false, func(t *transfer, v *view) error {
			return s.send(ctx, t, req.Transfer, func(w net.Conn) error { return v.root.Export(w) })
		})
	case proto.PackRequest_LAYER:
		err = s.withLayer(req.Files, func(t *transfer, l *archive.Layer) error {
			return s.send(ctx, t, req.Transfer, func(w net.Conn) error { return l.Pack(w) })
		})
	default:
		err = errorf(codes.InvalidArgument, "pack %s", req.What)
	}
	if err != nil {
		s.cfg.Streams.forget(req.Files.GetId(), archiveExec)
		return nil, fileError(err)
	}
	return &proto.Empty{}, nil
}

// send writes to a transfer's stream, and ends it.
func (s *Service) send(ctx context.Context, t *transfer, name string, write func(net.Conn) error) error {
	conn, err := s.stream(ctx, t, name)
	if err != nil {
		return err
	}
	return write(conn) // finish closes it
}

// Unpack implements proto.AgentService.
func (s *Service) Unpack(ctx context.Context, req *proto.UnpackRequest) (*proto.Empty, error) {
	err := s.withView(ctx, req.Files, true, func(t *transfer, v *view) error {
		o := archive.Options{KeepKind: req.KeepKind, Own: req.Files.GetVolume()}
		if req.Owner != "" {
			uid, gid, err := runtime.LookupUser(v.dir, req.Owner)
			if err != nil {
				return err
			}
			o.Owner = &archive.Owner{UID: uid, GID: gid}
		}
		conn, err := s.stream(ctx, t, req.Transfer)
		if err != nil {
			return err
		}
		return v.root.Unpack(conn, req.Path, o)
	})
	if err != nil {
		s.cfg.Streams.forget(req.Files.GetId(), archiveExec)
		return nil, fileError(err)
	}
	return &proto.Empty{}, nil
}

// Changes implements proto.AgentService.
func (s *Service) Changes(ctx context.Context, req *proto.ChangesRequest) (*proto.ChangesResponse, error) {
	res := new(proto.ChangesResponse)
	err := s.withLayer(req.Files, func(_ *transfer, l *archive.Layer) (err error) {
		if req.SizeOnly {
			res.Size, err = l.Size()
			return err
		}
		list, err := l.Changes()
		for _, c := range list {
			res.Changes = append(res.Changes, &proto.Change{Path: c.Path, Kind: uint32(c.Kind)})
		}
		return err
	})
	if err != nil {
		return nil, fileError(err)
	}
	return res, nil
}

// withLayer does something with a container's writable layer, and with what it
// lies over: the image, mounted as one tree for the purpose.
func (s *Service) withLayer(files *proto.Files, do func(*transfer, *archive.Layer) error) (err error) {
	if err := s.ready(); err != nil {
		return err
	}
	if err := checkName("container", files.GetId()); err != nil {
		return err
	}
	for _, l := range files.Layers {
		if err := checkName("layer", l); err != nil {
			return err
		}
	}
	t := s.transfers.begin(files.Id)
	defer s.transfers.finish(t)
	if err := s.layers.init(); err != nil {
		return err
	}
	init, err := archive.Open(initLayer)
	if err != nil {
		return err
	}
	defer init.Close()
	upper, err := archive.Open(filepath.Join(containersData, files.Id, "upper"))
	if errors.Is(err, fs.ErrNotExist) { // never started
		if err := os.MkdirAll(emptyLayer, 0o755); err != nil {
			return err
		}
		upper, err = archive.Open(emptyLayer)
	}
	if err != nil {
		return err
	}
	defer upper.Close()
	lower, dir, err := s.mountLower(files.Layers)
	if err != nil {
		return err
	}
	defer func() {
		s.logError(errors.Join(lower.Close(), unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW), os.Remove(dir)))
		s.layers.release(files.Layers)
	}()
	return do(t, &archive.Layer{Upper: upper, Lower: lower, Init: init})
}

func (s *Service) mountLower(names []string) (_ *archive.Root, dir string, err error) {
	const second = emptyLayer + "2"
	for _, d := range []string{viewsRun, emptyLayer, second} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, "", err
		}
	}
	if dir, err = os.MkdirTemp(viewsRun, ""); err != nil {
		return nil, "", err
	}
	paths, err := s.layers.acquire(names)
	if err != nil {
		return nil, "", errors.Join(err, os.Remove(dir))
	}
	// Two of them, or the kernel wants a writable one.
	for _, d := range []string{emptyLayer, second} {
		if len(paths) < 2 {
			paths = append(paths, d)
		}
	}
	if err := mountOverlay(dir, paths, "", "", false); err != nil {
		s.layers.release(names)
		return nil, "", errors.Join(err, os.Remove(dir))
	}
	root, err := archive.Open(dir)
	if err != nil {
		s.layers.release(names)
		return nil, "", errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH), os.Remove(dir))
	}
	return root, dir, nil
}

// fileError gives an error about a container's files its class.
func fileError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errorf(codes.NotFound, "%v", err)
	case errors.Is(err, archive.ErrNotDirectory), errors.Is(err, archive.ErrKind), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return errorf(codes.InvalidArgument, "%v", err)
	case errors.Is(err, unix.EROFS):
		return errorf(codes.PermissionDenied, "%v", err)
	}
	return failed("", err)
}
