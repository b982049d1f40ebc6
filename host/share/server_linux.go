package share

import (
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// server guards go-fuse's protocol server against a hostile guest, and does
// what is not in it: reads and writes straight to and from the guest's memory,
// and SYNCFS.
//
// It copies what is parsed (all but the data of a write) out of the guest's
// memory first, so that nothing is checked there and used later.
type server struct {
	fresh func() *fileSystem // one of which the guest knows nothing yet
	log   *slog.Logger

	mu      sync.Mutex // for changes of current
	current atomic.Pointer[session]
}

// session is what one boot of the guest works with. The next gets its own, so
// that what hangs in a host's file system can't keep it waiting.
type session struct {
	fs    *fileSystem
	proto *fuse.ProtocolServer
}

const (
	// maxData is the most that one read or write carries.
	maxData = 1 << 20
	// maxRequest is the most that any other request has: a name and a value
	// of 64 KiB.
	maxRequest    = 80 << 10
	outHeaderSize = int(unsafe.Sizeof(fuse.OutHeader{}))
	inHeaderSize  = int(unsafe.Sizeof(fuse.InHeader{}))
	readInSize    = int(unsafe.Sizeof(fuse.ReadIn{}))
	writeInSize   = int(unsafe.Sizeof(fuse.WriteIn{}))
)

func newServer(fresh func() *fileSystem, log *slog.Logger) *server {
	s := &server{fresh: fresh, log: log}
	s.restart()
	return s
}

// restart makes void all that the guest holds. Requests that are under way
// finish, with what they began with.
func (s *server) restart() {
	s.mu.Lock()
	defer s.mu.Unlock()
	fs := s.fresh()
	old := s.current.Swap(&session{fs: fs, proto: protocol(fs, s.log)})
	if old != nil {
		go old.fs.retire() // closing a file can hang as well
	}
}

// fs is the file system that the guest works with now.
func (s *server) fs() *fileSystem { return s.current.Load().fs }

// protocol is go-fuse's side of a file system.
func protocol(fs *fileSystem, log *slog.Logger) *fuse.ProtocolServer {
	opts := &fuse.MountOptions{
		MaxWrite:      maxData,
		MaxBackground: 64,
		Logger:        slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		PanicHandler: func(p any) fuse.Status {
			log.Error("panic in a file request", "panic", p, "stack", string(debug.Stack()))
			return fuse.EIO
		},
		// No SETATTR before an open that truncates; and without KILLPRIV_V2
		// each write asks for security.capability first. READDIRPLUS always:
		// with the kernel's own choice (AUTO) only the first page of a folder
		// comes with attributes, since programs list all before they stat.
		ExtraCapabilities: fuse.CAP_ASYNC_DIO | fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_HANDLE_KILLPRIV_V2,
		// Each file is opened here: read-only is checked then, and open files
		// outlive their names.
		DisabledCapabilities: fuse.CAP_NO_OPEN_SUPPORT | fuse.CAP_PASSTHROUGH,
	}
	if fs.exports == nil {
		opts.EnableSymlinkCaching = true
		opts.ExplicitDataCacheControl = true
	}
	return fuse.NewProtocolServer(replays{fs}, opts)
}

// Requests that need care; the numbers are FUSE's.
const (
	opForget      = 2
	opRead        = 15
	opWrite       = 16
	opInit        = 26
	opGetXAttr    = 22
	opListXAttr   = 23
	opReadDir     = 28
	opInterrupt   = 36
	opDestroy     = 38
	opBatchForget = 42
	opReadDirPlus = 44
	opSyncFS      = 50
)

// requestSize is the least size of each request that is served, with its
// header. What is not here is ENOSYS, which tells the guest's kernel not to ask
// again: locks and access are checked in the guest; FLUSH has nothing to do,
// since data is written at once.
func requestSize(op uint32) int {
	sizes := [...]uint8{
		1: 40, 2: 48, 3: 56, 4: 128, 5: 40, 6: 40, 8: 56, 9: 48, 10: 40, 11: 40, 12: 48, 13: 48, 14: 48,
		15: 80, 16: 80, 17: 40, 18: 64, 20: 56, 21: 48, 22: 48, 23: 48, 24: 40, 26: 56, 27: 48, 28: 80,
		29: 64, 30: 56, 35: 56, 36: 48, 38: 40, 42: 48, 43: 72, 44: 80, 45: 56, 46: 64, 47: 96, 50: 48, 51: 56,
	}
	if int(op) >= len(sizes) {
		return 0
	}
	return int(sizes[op])
}

// HandleRequest answers one FUSE request of the guest: in and out are the
// guest's memory, and the result is how many bytes of out are filled.
func (s *server) HandleRequest(in, out [][]byte) (written int, code fuse.Status) {
	var head [writeInSize]byte
	got := gather(head[:], in, 0)
	if got < inHeaderSize {
		return 0, fuse.EIO
	}
	h := (*fuse.InHeader)(unsafe.Pointer(&head[0]))
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("panic in a FUSE request", "opcode", h.Opcode, "panic", p, "stack", string(debug.Stack()))
			written, code = fail(out, h, fuse.EIO)
		}
	}()
	least := requestSize(h.Opcode)
	switch {
	case h.Opcode == opForget, h.Opcode == opBatchForget, h.Opcode == opInterrupt:
		out = nil // no answer
	case total(out) < outHeaderSize:
		return 0, fuse.EIO
	}
	switch {
	case h.Opcode == opInterrupt:
		return 0, fuse.OK // requests are not interrupted, they end
	case least == 0:
		return fail(out, h, fuse.ENOSYS)
	case total(in) < least, h.TotalExtlen != 0:
		return fail(out, h, fuse.EIO)
	case h.NodeId == ^uint64(0): // means something to go-fuse
		return fail(out, h, fuse.ENOENT)
	}
	if h.Opcode == opInit || h.Opcode == opDestroy {
		s.restart()
	}
	return s.current.Load().serve(&head, in, out)
}

// serve answers a request that is long enough for its opcode.
func (s *session) serve(head *[writeInSize]byte, in, out [][]byte) (int, fuse.Status) {
	h := (*fuse.InHeader)(unsafe.Pointer(head))
	if s.fs.events.replaying(h.Caller) && !replayMay(h.Opcode) {
		return fail(out, h, fuse.EPERM)
	}
	switch h.Opcode {
	case opRead:
		return s.read((*fuse.ReadIn)(unsafe.Pointer(head)), out)
	case opWrite:
		return s.write((*fuse.WriteIn)(unsafe.Pointer(head)), in, out)
	case opSyncFS:
		return fail(out, h, s.fs.syncAll())
	case opDestroy:
		return fail(out, h, fuse.OK)
	case opReadDir, opReadDirPlus:
		if (*fuse.ReadIn)(unsafe.Pointer(head)).Size > maxData {
			return fail(out, h, fuse.EINVAL)
		}
	case opGetXAttr, opListXAttr:
		if (*fuse.GetXAttrIn)(unsafe.Pointer(head)).Size > maxAttrList {
			return fail(out, h, fuse.EINVAL)
		}
	}
	size := total(in)
	if size > maxRequest {
		return fail(out, h, fuse.EINVAL)
	}
	// A name that go-fuse takes for its own sign needs the root's id.
	request := make([]byte, size)
	copy(request, head[:])
	if size > len(head) {
		gather(request[len(head):], in, len(head))
	}
	if h.NodeId == fuse.FUSE_ROOT_ID && containsPollName(request[inHeaderSize:]) {
		return fail(out, h, fuse.ENOENT)
	}
	n, code := s.proto.HandleRequest([][]byte{request}, out)
	if n == 0 && !code.Ok() {
		return fail(out, h, code)
	}
	// A link's target is the one answer whose size nothing in the request tells.
	var length [4]byte
	if gather(length[:], out, 0); n > 0 && int(nativeUint32(length[:])) != n {
		return fail(out, h, fuse.EIO)
	}
	return n, code
}

// read fills out behind its header.
func (s *session) read(in *fuse.ReadIn, out [][]byte) (int, fuse.Status) {
	if in.Size > maxData {
		return fail(out, &in.InHeader, fuse.EINVAL)
	}
	n, code := s.fs.readv(in.Fh, in.Offset, cut(out, outHeaderSize, int(in.Size)))
	if !code.Ok() {
		return fail(out, &in.InHeader, code)
	}
	return answer(out, &in.InHeader, fuse.OK, n, nil)
}

func (s *session) write(in *fuse.WriteIn, request, out [][]byte) (int, fuse.Status) {
	data := cut(request, writeInSize, maxData+1)
	if n := total(data); n != int(in.Size) || n > maxData {
		return fail(out, &in.InHeader, fuse.EINVAL)
	}
	n, code := s.fs.writev(in, data)
	if !code.Ok() {
		return fail(out, &in.InHeader, code)
	}
	reply := fuse.WriteOut{Size: uint32(n)}
	return answer(out, &in.InHeader, fuse.OK, 0, (*[unsafe.Sizeof(reply)]byte)(unsafe.Pointer(&reply))[:])
}

// fail answers without a body; with OK where there is none.
func fail(out [][]byte, h *fuse.InHeader, code fuse.Status) (int, fuse.Status) {
	return answer(out, h, code, 0, nil)
}

// answer writes a header and a body; filled bytes behind the header are there
// already.
func answer(out [][]byte, h *fuse.InHeader, code fuse.Status, filled int, body []byte) (int, fuse.Status) {
	size := outHeaderSize + filled + len(body)
	if total(out) < size {
		return 0, fuse.EIO
	}
	header := fuse.OutHeader{Length: uint32(size), Status: -int32(code), Unique: h.Unique}
	scatter(out, (*[outHeaderSize]byte)(unsafe.Pointer(&header))[:], 0)
	scatter(out, body, outHeaderSize)
	return size, fuse.OK
}

func containsPollName(b []byte) bool {
	const name = ".go-fuse-epoll-hack"
	for i := 0; i+len(name) <= len(b); i++ {
		if string(b[i:i+len(name)]) == name {
			return true
		}
	}
	return false
}
