package share

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protodelim"

	"sampan/proto"
)

// complaints fails a test for each error in the log: a panic is answered with
// EIO, which a test might take for one of the host's errors.
type complaints struct{ t testing.TB }

func (c complaints) Write(line []byte) (int, error) {
	c.t.Errorf("log: %s", line)
	return len(line), nil
}

// strict is a log that fails the test for what is an error in it.
func strict(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(complaints{t}, &slog.HandlerOptions{Level: slog.LevelError}))
}

// FuzzHandleRequest has a guest that obeys no rules make requests, as answers
// from a boot on have told it what there is. The input is {limit u8}, the number
// of descriptors, and then {opcode, node, cut, room, caller, size u8, body of
// size bytes} again and again. Where a request names a node or a handle it
// mostly gets one of those that the guest has: see fields.
//
// There is no panic; each answer fits; nothing but what is in the writable
// export changes; the guest's account of nodes and handles is ours, and when it
// has given all of them back nothing of them is left.
func FuzzHandleRequest(f *testing.F) { fuzzHostile(f, false, hostileScripts()) }

// FuzzReplays is FuzzHandleRequest with an agent that is told of what the host
// changes, which is as hostile: it answers when and what it likes, and requests
// may be the replaying thread's. What the guest knows depends on when the host's
// events arrive, so the accounts are compared at the end only.
func FuzzReplays(f *testing.F) { fuzzHostile(f, true, replayScripts()) }

func fuzzHostile(f *testing.F, replays bool, scripts [][]byte) {
	base := memoryDir(f)
	for _, dir := range []string{"ro", "outside"} {
		if err := fill(base + "/" + dir); err != nil {
			f.Fatal(err)
		}
	}
	before := snapshot(f, base, "ro", "outside")
	for _, script := range scripts {
		f.Add(script)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) == 0 {
			return
		}
		defer os.RemoveAll(base + "/rw")
		check(t, fill(base+"/rw"))
		open := descriptors(t)
		g := newHostile(t, base, 8+int(script[0])%32, replays)
		stuck := time.AfterFunc(30*time.Second, func() { panic(fmt.Sprintf("a request hangs: %q", script)) })
		defer stuck.Stop()
		for n, rest := 0, script[1:]; len(rest) >= 6 && n < 64; n++ {
			size := min(int(rest[5]), len(rest)-6)
			g.step(rest[:6], rest[6:6+size])
			rest = rest[6+size:]
		}
		g.end()
		// What earlier boots held is closed beside all else.
		now := descriptors(t)
		for end := time.Now().Add(10 * time.Second); now > open && !t.Failed() && time.Now().Before(end); now = descriptors(t) {
			time.Sleep(50 * time.Microsecond)
		}
		if now > open {
			t.Errorf("%d descriptors are open, %d were", now, open)
		}
		if after := snapshot(t, base, "ro", "outside"); after != before {
			t.Fatalf("outside of the writable export there was\n%s\nand is\n%s", before, after)
		}
	})
}

// An agent with more patience than FuzzReplays has is told of what its scripts
// begin with.
func TestReplaysArrive(t *testing.T) {
	for _, script := range replayScripts() {
		base := t.TempDir()
		check(t, fill(base+"/rw"))
		check(t, fill(base+"/ro"))
		g := newHostile(t, base, 8+int(script[0])%32, true)
		g.agent.patience = 10 * time.Second
		rest := script[1:]
		for len(g.agent.seqs) == 0 && len(rest) >= 6 {
			size := int(rest[5])
			g.step(rest[:6], rest[6:6+size])
			if rest[0] == hostWaits && len(g.agent.seqs) == 0 {
				t.Errorf("nothing is told of what %q begins with", script)
				break
			}
			rest = rest[6+size:]
		}
		g.end()
	}
}

// memoryDir is a new directory, in memory if it can be: fsync takes nothing there.
func memoryDir(f *testing.F) string {
	dir, err := os.MkdirTemp("/dev/shm", "sampan-fuzz-")
	if err != nil {
		return f.TempDir()
	}
	f.Cleanup(func() { os.RemoveAll(dir) })
	if unix.Setxattr(dir, "user.x", nil, 0) != nil { // before Linux 6.6
		return f.TempDir()
	}
	return dir
}

// fill makes a directory with one of each.
func fill(dir string) error {
	if err := os.MkdirAll(dir+"/d", 0o755); err != nil {
		return err
	}
	for _, err := range []error{
		os.WriteFile(dir+"/f", bytes.Repeat([]byte("content "), 64), 0o644),
		os.WriteFile(dir+"/d/g", nil, 0o644),
		unix.Setxattr(dir+"/f", "user.x", []byte("value"), 0),
		os.Symlink("../outside", dir+"/up"),
		os.Symlink("f", dir+"/link"),
		unix.Mkfifo(dir+"/fifo", 0o644),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

// snapshot is all of some directories in base that a change would change, and
// what else is in base.
func snapshot(t testing.TB, base string, dirs ...string) string {
	var b strings.Builder
	entries, err := os.ReadDir(base)
	check(t, err)
	for _, e := range entries {
		if e.Name() != "rw" {
			fmt.Fprintln(&b, e.Name())
		}
	}
	for _, dir := range dirs {
		check(t, filepath.WalkDir(base+"/"+dir, func(path string, _ os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				return err
			}
			fmt.Fprintln(&b, path, st.Ino, st.Mode, st.Nlink, st.Uid, st.Gid, st.Size, st.Mtim, st.Ctim)
			if st.Mode&unix.S_IFMT == unix.S_IFREG {
				content, err := os.ReadFile(path)
				fmt.Fprintf(&b, "%q\n", content)
				return err
			}
			return nil
		}))
	}
	return b.String()
}

// descriptors is how many this process has open.
func descriptors(t testing.TB) int {
	t.Helper()
	dir, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	return len(dir)
}

// hostile is the guest of FuzzHandleRequest. It keeps account of what it was
// told.
type hostile struct {
	t       *testing.T
	base    string
	tree    *Tree
	rw, ro  *Export
	closed  bool // rw
	fs      *fileSystem
	past    []*fileSystem // of boots before
	nodes   map[uint64]uint64
	handles map[uint64]bool
	buf     []byte
	agent   *hostileAgent // nil: none is told
}

func newHostile(t *testing.T, base string, limit int, replays bool) *hostile {
	g := &hostile{t: t, base: base, buf: make([]byte, 1<<16)}
	opts := Options{MaxFiles: limit, Log: strict(t)}
	if replays {
		g.agent = &hostileAgent{patience: 5 * time.Millisecond, told: make(chan uint32, 1000)}
		opts.Replays = g.agent.dial
	}
	g.tree = NewTree(opts)
	var err error
	g.rw, err = g.tree.Export(base+"/rw", false)
	check(t, err)
	g.ro, err = g.tree.Export(base+"/ro", true)
	check(t, err)
	g.boot()
	g.call(request(opInit, 0, uint32(7), uint32(40), uint32(1<<17), ^uint32(0), ^uint32(0), string(make([]byte, 44))))
	g.look()
	if len(g.nodes) != 10 || len(g.handles) != 4 {
		t.Fatalf("a boot begins with %d nodes and %d handles", len(g.nodes), len(g.handles))
	}
	return g
}

// look has the guest look around, so that it knows something.
func (g *hostile) look() {
	for _, e := range []*Export{g.rw, g.ro} {
		known := len(g.nodes)
		g.call(request(1, 1, e.Name()+"\x00"))
		if len(g.nodes) == known { // withdrawn, or nothing works after such an INIT
			continue
		}
		root := g.ids()[len(g.nodes)]
		for _, name := range []string{"f", "d", "link", "fifo"} {
			g.call(request(1, root, name+"\x00"))
		}
		file := g.ids()[known+2]
		flags := os.O_RDWR
		if e == g.ro {
			flags = os.O_RDONLY
		}
		g.call(request(14, file, uint32(flags), uint32(0)))
		g.call(request(27, root, uint32(0), uint32(0)))
	}
}

// ids are the nodes that the guest knows, in the order of their appearance.
func (g *hostile) ids() []uint64 {
	return append([]uint64{fuse.FUSE_ROOT_ID}, slices.Sorted(maps.Keys(g.nodes))...)
}

// boot begins anew when the last request was a boot's first or last.
func (g *hostile) boot() bool {
	if g.fs == g.tree.server.fs() {
		return false
	}
	if g.fs != nil {
		g.past = append(g.past, g.fs)
	}
	g.fs, g.nodes, g.handles = g.tree.server.fs(), map[uint64]uint64{}, map[uint64]bool{}
	return true
}

// What the host does meanwhile is a step as well, by these opcodes.
const (
	hostSwaps    = 240 // a folder and a link that leads out
	hostRemoves  = 241
	hostWrites   = 242
	hostWithdraw = 243
	hostReplaces = 244
	hostMakes    = 245 // the name in the body; a folder with an odd node
	hostRenames  = 246 // f to the name in the body
	hostWaits    = 247 // until the agent is told of something
	agentAnswers = 248 // with the error in the body
)

// hostileAgent is what the host's changes are told to.
type hostileAgent struct {
	patience time.Duration
	told     chan uint32
	seqs     []uint32
	mu       sync.Mutex
	conn     net.Conn // of the last dial
}

const replayThread = 4711

func (a *hostileAgent) dial(context.Context) (io.ReadWriteCloser, error) {
	ours, theirs := net.Pipe()
	a.mu.Lock()
	a.conn = theirs
	a.mu.Unlock()
	go func() {
		if _, err := protodelim.MarshalTo(theirs, &proto.Replayed{Thread: replayThread}); err != nil {
			return
		}
		in := bufio.NewReader(theirs)
		for {
			var r proto.Replay
			if protodelim.UnmarshalFrom(in, &r) != nil {
				return
			}
			select {
			case a.told <- r.Seq:
			default: // so many are of no use
			}
		}
	}()
	return ours, nil
}

// wait waits a little for the agent to be told of something.
func (a *hostileAgent) wait() {
	select {
	case seq := <-a.told:
		a.seqs = append(a.seqs, seq)
	case <-time.After(a.patience):
	}
}

// answer answers the op that it was told of n ops ago, once more perhaps.
func (a *hostileAgent) answer(n int, errno uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.seqs) > 0 {
		// Fails when the stream has ended.
		_, _ = protodelim.MarshalTo(a.conn, &proto.Replayed{Seq: a.seqs[n%len(a.seqs)], Errno: errno})
	}
}

func (g *hostile) step(head, body []byte) {
	op, node, cut, room, caller := uint32(head[0]), head[1], head[2], head[3], head[4]
	// The guest may have brought about that any of these fails.
	rw := g.base + "/rw"
	switch op {
	case hostSwaps:
		_ = unix.Renameat2(unix.AT_FDCWD, rw+"/d", unix.AT_FDCWD, rw+"/up", unix.RENAME_EXCHANGE)
		return
	case hostRemoves:
		_ = unix.Unlink(rw + "/f")
		return
	case hostWrites:
		if fd, err := unix.Open(rw+"/f", unix.O_WRONLY|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o644); err == nil {
			_, _ = unix.Write(fd, body)
			unix.Close(fd)
		}
		return
	case hostReplaces:
		if unix.Mkfifo(rw+"/new", 0o600) == nil {
			_ = unix.Rename(rw+"/new", rw+"/f")
		}
		return
	case hostWithdraw:
		g.rw.Close()
		g.closed = true
		return
	}
	if g.agent != nil {
		name := rw + "/" + strings.NewReplacer("/", "", "\x00", "").Replace(string(body))
		switch op {
		case hostMakes:
			if node&1 != 0 {
				_ = unix.Mkdir(name, 0o755)
			} else if fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644); err == nil {
				unix.Close(fd)
			}
			return
		case hostRenames:
			_ = unix.Rename(rw+"/f", name)
			return
		case hostWaits:
			g.agent.wait()
			return
		case agentAnswers:
			errno := uint32(0)
			if len(body) > 0 {
				errno = uint32(body[0])
			}
			g.agent.answer(int(node), errno)
			return
		}
	}
	in := request(op, g.node(node), string(body))
	g.live(op, in[inHeaderSize:])
	if caller&0x80 != 0 {
		binary.LittleEndian.PutUint16(in[36:], uint16(caller&0x7f)) // length of extensions
	} else {
		binary.LittleEndian.PutUint32(in[24:], uint32(caller)*100) // uid
		binary.LittleEndian.PutUint32(in[28:], uint32(caller))     // gid
	}
	if g.agent != nil && caller&0xc0 == 0x40 {
		binary.LittleEndian.PutUint32(in[32:], replayThread) // pid
		if len(g.agent.seqs) > 0 {
			binary.LittleEndian.PutUint32(in[28:], g.agent.seqs[int(caller&0x3f)%len(g.agent.seqs)])
		}
	}
	if cut&0x80 != 0 { // less than it says that it is
		in = in[:min(len(in), int(cut&0x7f))]
	}
	g.send(in, int(cut), [...]int{1 << 15, 0, 16, 17, 24, 40, 100, 120, 144, 160, 400, 4096}[room%12])
	if g.boot() {
		g.look()
	}
}

// node is one of those that the guest knows, or one that is not.
func (g *hostile) node(choice byte) uint64 {
	switch choice {
	case 255:
		return ^uint64(0)
	case 254:
		return 1 << 60
	case 253:
		return 0
	}
	ids := g.ids()
	return ids[int(choice)%len(ids)]
}

// field is where the body of a request has a number that must mean something
// for the request to come far.
type field struct {
	at   int
	kind fieldKind
}

type fieldKind int

const (
	aNode fieldKind = iota
	aHandle
	// aSize is less than 1 MiB, or more than any file can have: files stay small.
	aSize
)

var fields = map[uint32][]field{
	3: {{8, aHandle}}, 4: {{8, aHandle}, {16, aSize}}, 12: {{0, aNode}}, 13: {{0, aNode}},
	opRead: {{0, aHandle}}, opWrite: {{0, aHandle}, {8, aSize}}, 18: {{0, aHandle}}, 20: {{0, aHandle}}, 25: {{0, aHandle}},
	opReadDir: {{0, aHandle}}, 29: {{0, aHandle}}, 30: {{0, aHandle}}, opBatchForget: {{8, aNode}, {24, aNode}, {40, aNode}},
	43: {{0, aHandle}, {8, aSize}, {16, aSize}}, opReadDirPlus: {{0, aHandle}}, 45: {{0, aNode}}, 46: {{0, aHandle}, {8, aSize}},
	47: {{0, aHandle}, {8, aSize}, {16, aNode}, {24, aHandle}, {32, aSize}, {40, aSize}},
}

// live makes the fields of a body mean something, if their first byte doesn't
// say that they shall stay.
func (g *hostile) live(op uint32, body []byte) {
	for _, f := range fields[op] {
		if len(body) < f.at+8 {
			return
		}
		b := body[f.at:]
		handles := slices.Sorted(maps.Keys(g.handles))
		switch v := binary.LittleEndian.Uint64(b); {
		case f.kind == aSize:
			binary.LittleEndian.PutUint64(b, v&(1<<63|1<<20-1))
		case f.kind == aNode:
			binary.LittleEndian.PutUint64(b, g.node(b[0]))
		case b[0] < 250 && len(handles) > 0:
			binary.LittleEndian.PutUint64(b, handles[int(b[0])%len(handles)])
		}
	}
}

// call makes a request that has as much room as it may want.
func (g *hostile) call(in []byte) {
	g.send(in, inHeaderSize, len(g.buf)-guard)
	g.boot()
}

const guard = 64 // bytes behind the room for an answer

// send makes a request, in pieces, and looks at the answer.
func (g *hostile) send(in []byte, cut, room int) {
	g.t.Helper()
	sent := bytes.Clone(in)
	cut = min(cut, len(in))
	all := g.buf[:room+guard]
	for i := range all[room:] {
		all[room+i] = 0xa5
	}
	half := min(outHeaderSize+cut, room)
	n, code := g.tree.server.HandleRequest([][]byte{in[:cut], in[cut:]}, [][]byte{all[:half], all[half:room]})
	if !bytes.Equal(in, sent) {
		g.t.Errorf("request %x has become %x", sent, in)
	}
	for _, b := range all[room:] {
		if b != 0xa5 {
			g.t.Fatalf("request %x: an answer beyond the %d bytes of its room", in, room)
		}
	}
	silent := len(in) < inHeaderSize || slices.Contains([]uint32{opForget, opInterrupt, opBatchForget}, nativeUint32(in[4:]))
	switch {
	case n > room, n > 0 && n < outHeaderSize, n > 0 && silent, n > 0 && !code.Ok():
		g.t.Fatalf("request %x: %d bytes in %d, %v", in, n, room, code)
	case n == 0 && !silent && code.Ok():
		g.t.Fatalf("request %x: no answer", in)
	case len(in) >= inHeaderSize && silent:
		g.forget(in)
	case n > 0:
		if got := int(nativeUint32(all)); got != n {
			g.t.Fatalf("request %x: length %d, used %d", in, got, n)
		}
		if unique := binary.LittleEndian.Uint64(all[8:]); unique != 77 {
			g.t.Fatalf("request %x: answer to %d", in, unique)
		}
		errno := -int32(nativeUint32(all[4:]))
		if errno < 0 || errno > 4095 || errno != 0 && n != outHeaderSize {
			g.t.Fatalf("request %x: error %d in %d bytes", in, errno, n)
		}
		if errno == 0 {
			g.learn(in, all[outHeaderSize:n])
		}
	}
}

// learn keeps account of what a request was granted.
func (g *hostile) learn(in, body []byte) {
	const entrySize = 128
	at := func(i int) uint64 {
		if len(body) < i+8 {
			g.t.Fatalf("request %x: an answer of %d bytes", in, len(body))
		}
		return binary.LittleEndian.Uint64(body[i:])
	}
	handle := func(fh uint64) {
		if g.handles[fh] {
			g.t.Fatalf("request %x: handle %d is given out twice", in, fh)
		}
		if g.handles[fh] = true; fh == 0 { // the directory of exports has none
			delete(g.handles, fh)
		}
	}
	switch nativeUint32(in[4:]) {
	case 1, 6, 8, 9, 13:
		g.nodes[at(0)]++
	case 35, 51:
		g.nodes[at(0)]++
		handle(at(entrySize))
	case 14, 27:
		handle(at(0))
	case 18, 29:
		delete(g.handles, binary.LittleEndian.Uint64(in[inHeaderSize:]))
	case opReadDirPlus:
		for len(body) > 0 {
			if id := at(0); id != 0 {
				g.nodes[id]++
			}
			at(entrySize + 16)
			size := entrySize + 24 + int(nativeUint32(body[entrySize+16:]))
			body = body[min((size+7)&^7, len(body)):]
		}
	}
}

// forget keeps account of what the guest gives back.
func (g *hostile) forget(in []byte) {
	op, body := nativeUint32(in[4:]), in[inHeaderSize:]
	node := binary.LittleEndian.Uint64(in[16:])
	if len(in) < requestSize(op) || in[36] != 0 || in[37] != 0 || node == ^uint64(0) {
		return // refused
	}
	if node == fuse.FUSE_ROOT_ID && containsPollName(body) {
		return
	}
	one := func(id, count uint64) {
		if g.nodes[id] -= min(count, g.nodes[id]); g.nodes[id] == 0 {
			delete(g.nodes, id)
		}
	}
	switch op {
	case opForget:
		one(node, binary.LittleEndian.Uint64(body))
	case opBatchForget:
		for b := body[8:]; len(b) >= 16; b = b[16:] {
			one(binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]))
		}
	}
}

// end compares the accounts, has the guest give everything back, and closes all.
func (g *hostile) end() {
	if g.agent == nil {
		g.compare()
	}
	for fh := range g.handles {
		g.call(request(18, 1, fh, uint64(0), uint64(0)))
	}
	for id, count := range g.nodes {
		g.call(request(opForget, id, count))
	}
	if g.agent == nil {
		g.empty(g.fs)
	}
	g.rw.Close()
	g.ro.Close()
	check(g.t, g.tree.Close())
	for _, f := range append(g.past, g.fs) {
		for end := time.Now().Add(10 * time.Second); f.held() != 0 && !g.t.Failed() && time.Now().Before(end); {
			time.Sleep(50 * time.Microsecond)
		}
		g.empty(f)
	}
}

// held is how many descriptors t has.
func (t *table) held() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.files
}

func (g *hostile) empty(f *fileSystem) {
	g.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.files != 0 || len(f.nodes) != 0 || len(f.handles) != 0 || len(f.byKey) != 0 || len(f.byName) != 0 || f.idle.n != 0 {
		g.t.Errorf("left: %d descriptors, %d nodes (%d by inode, %d by name, %d idle), %d handles",
			f.files, len(f.nodes), len(f.byKey), len(f.byName), f.idle.n, len(f.handles))
	}
}

// compare compares the guest's account with that of the table, while no request
// is under way.
func (g *hostile) compare() {
	t := g.fs.table
	t.mu.Lock()
	defer t.mu.Unlock()
	files, refs, kids := len(t.handles), map[*node]int{}, map[*node]int{}
	for id, h := range t.handles {
		if !g.handles[id] || h.refs != 1 {
			g.t.Errorf("handle %d: known to the guest %v, %d references", id, g.handles[id], h.refs)
		}
		refs[h.node]++
	}
	for _, n := range t.nodes {
		if kids[n.parent]++; n.fd >= 0 {
			files++
		}
	}
	for id, n := range t.nodes {
		if n.gone || n.nlookup != g.nodes[id] || n.refs != refs[n] || n.kids != kids[n] || n.nlookup == 0 && n.refs == 0 && n.kids == 0 {
			g.t.Errorf("node %d (%q): %d lookups, the guest counts %d; %d references of %d; %d below it of %d; gone %v",
				id, n.name, n.nlookup, g.nodes[id], n.refs, refs[n], n.kids, kids[n], n.gone)
		}
	}
	for id := range g.nodes {
		if t.nodes[id] == nil && !g.closed {
			g.t.Errorf("node %d is lost", id)
		}
	}
	for id := range g.handles {
		if t.handles[id] == nil && !g.closed {
			g.t.Errorf("handle %d is lost", id)
		}
	}
	if t.files != files || files > t.max {
		g.t.Errorf("%d descriptors in the account, %d in the table, of %d", t.files, files, t.max)
	}
}

// replayScripts have the host change something, and the agent replay it.
func replayScripts() [][]byte {
	step := func(op, node, caller byte, body string) []byte {
		return append([]byte{op, node, byte(inHeaderSize), 0, caller, byte(len(body))}, body...)
	}
	const thread = 0x40
	wait, answer := step(hostWaits, 0, 0, ""), step(agentAnswers, 0, 0, "\x00")
	look := step(1, 1, thread, "new\x00")
	make1 := step(8, 1, thread, "\x00\x80\x00\x00"+string(make([]byte, 12))+"new\x00")
	folder := step(9, 1, thread, string(make([]byte, 8))+"new\x00")
	return [][]byte{
		slices.Concat([]byte{31}, step(hostMakes, 0, 0, "new"), wait, look, make1, answer),
		slices.Concat([]byte{31}, step(hostMakes, 1, 0, "new"), wait, look, folder, answer),
		slices.Concat([]byte{31}, step(hostMakes, 0, 0, "new"), wait, look, make1, step(agentAnswers, 0, 0, "\x05"), answer),
		slices.Concat([]byte{31}, step(hostRemoves, 0, 0, ""), wait, step(1, 1, thread, "f\x00"), step(10, 1, thread, "f\x00"), answer),
		slices.Concat([]byte{31}, step(hostRemoves, 0, 0, ""), wait, step(1, 1, thread, "f\x00"), step(hostWithdraw, 0, 0, ""), step(10, 1, thread, "f\x00"), answer),
		slices.Concat([]byte{31}, step(hostRemoves, 0, 0, ""), wait, step(1, 1, thread, "f\x00"), step(38, 0, 0, string(make([]byte, 8))), answer),
		slices.Concat([]byte{31}, step(hostRenames, 0, 0, "new"), wait, step(1, 1, thread, "f\x00"), look, step(45, 1, thread, "\x01\x00\x00\x00\x00\x00\x00\x00"+string(make([]byte, 8))+"f\x00new\x00"), answer),
		slices.Concat([]byte{31}, step(hostRenames, 0, 0, "new"), wait, look, step(agentAnswers, 0, 0, "\x02"), wait, wait, step(1, 1, thread|1, "f\x00"), step(10, 1, thread|1, "f\x00")),
		slices.Concat([]byte{31}, step(hostWrites, 0, 0, "text"), wait, step(4, 2, thread, string(make([]byte, 88))), answer, wait, step(14, 2, thread|1, string(make([]byte, 8))), step(agentAnswers, 1, 0, "")),
		slices.Concat([]byte{31}, step(hostRenames, 0, 0, "link"), wait, step(1, 1, thread, "f\x00"), step(1, 1, thread, "link\x00"),
			step(45, 1, thread, "\x01\x00\x00\x00\x00\x00\x00\x00"+string(make([]byte, 8))+"f\x00link\x00"), answer),
		// What is told is no longer so.
		slices.Concat([]byte{31}, step(hostRemoves, 0, 0, ""), wait, step(hostMakes, 0, 0, "f"), step(1, 1, thread, "f\x00"), step(10, 1, thread, "f\x00"), answer, wait, answer),
		slices.Concat([]byte{31}, step(hostRemoves, 0, 0, ""), wait, step(hostMakes, 0, 0, "f"), wait, step(hostRemoves, 0, 0, ""),
			step(8, 1, thread|1, "\x00\x80\x00\x00"+string(make([]byte, 12))+"f\x00"), answer),
		slices.Concat([]byte{0}, step(hostSwaps, 0, 0, ""), wait, step(1, 1, thread, "d\x00"), step(1, 1, thread, "up\x00"), step(hostReplaces, 0, 0, ""), wait, look, make1, step(16, 1, thread, string(make([]byte, 40)))),
	}
}

// hostileScripts are one for each opcode, in which it succeeds where it can, and
// some longer ones. Known from the start are the nodes 1 to 10: a writable
// folder, the file, folder, link and FIFO in it, and the same of a read-only one;
// and the handles 0 to 3: the file and the folder of each.
func hostileScripts() [][]byte {
	step := func(op, node byte, body ...any) []byte {
		b := request(0, 0, body...)[inHeaderSize:]
		return append([]byte{op, node, byte(inHeaderSize), 0, 5, byte(len(b))}, b...)
	}
	zero := func(n int) string { return string(make([]byte, n)) }
	u32 := func(n int) uint32 { return uint32(n) }
	steps := map[string][]byte{
		"lookup": step(1, 1, "d\x00"), "up": step(1, 2, "..\x00"), "forget": step(2, 2, uint64(1)), "getattr": step(3, 2, zero(16)),
		"setattr":  step(4, 2, u32(0x1ff), u32(0), uint64(0), uint64(100), zero(44), u32(0o4755), u32(0), u32(5), u32(6), u32(0)),
		"readlink": step(5, 4), "symlink": step(6, 1, "l\x00../outside/f\x00"), "mknod": step(8, 1, u32(0o10644), zero(12), "p\x00"),
		"mkdir": step(9, 1, u32(0o2755), u32(0), "e\x00"), "unlink": step(10, 1, "f\x00"), "rmdir": step(11, 3, "g\x00"), "rmdir of it": step(11, 1, "e\x00"),
		"rename": step(12, 1, uint64(3), "f\x00g\x00"), "link": step(13, 3, uint64(2), "h\x00"), "link across": step(13, 1, uint64(7), "h\x00"),
		"open": step(14, 2, u32(os.O_RDWR|os.O_TRUNC), u32(1)), "open fifo": step(14, 5, u32(0), u32(0)),
		"read":  step(15, 2, uint64(0), uint64(3), u32(100), u32(0), uint64(0), uint64(0)),
		"write": step(16, 2, uint64(0), uint64(3), u32(4), u32(4), uint64(0), uint64(0), "data"), "statfs": step(17, 2),
		"release": step(18, 2, uint64(0), uint64(0), uint64(0)), "fsync": step(20, 2, uint64(0), uint64(1)),
		"setxattr": step(21, 2, u32(5), u32(0), "user.y\x00value"), "setxattr of ours": step(21, 2, u32(5), u32(0), recordAttr+"\x00value"),
		"getxattr": step(22, 2, u32(50), u32(0), "user.x\x00"), "listxattr": step(23, 2, u32(50), u32(0)), "removexattr": step(24, 2, "user.x\x00"),
		"flush": step(25, 2, zero(24)), "init": step(26, 0, u32(7), u32(40), u32(1<<17), ^uint32(0), ^uint32(0), zero(44)),
		"opendir": step(27, 3, u32(0), u32(0)), "readdir": step(28, 1, uint64(1), uint64(0), u32(1000), u32(0), uint64(0), uint64(0)),
		"readdir of exports": step(28, 0, uint64(1), uint64(0), u32(1000), u32(0), uint64(0), uint64(0)), "releasedir": step(29, 1, uint64(1), uint64(0), uint64(0)),
		"fsyncdir": step(30, 1, uint64(1), uint64(0)), "getlk": step(31, 2, zero(48)), "setlk": step(32, 2, zero(48)), "access": step(34, 2, uint64(4)),
		"create":      step(35, 1, u32(os.O_RDWR|os.O_EXCL), u32(0o100755), u32(0), u32(0), "new\x00"),
		"create over": step(35, 1, u32(os.O_RDWR|os.O_TRUNC), u32(0o100644), u32(0), u32(0), "f\x00"),
		"interrupt":   step(36, 0, uint64(77)), "bmap": step(37, 2, zero(16)), "destroy": step(38, 0), "ioctl": step(39, 2, zero(32)), "poll": step(40, 2, zero(24)),
		"notify": step(41, 2, zero(40)), "batch forget": step(42, 0, u32(2), u32(0), uint64(2), uint64(1), uint64(3), uint64(9)),
		"fallocate":   step(43, 2, uint64(0), uint64(0), uint64(9000), u32(1), u32(0)),
		"readdirplus": step(44, 1, uint64(1), uint64(0), u32(4000), u32(0), uint64(0), uint64(0)),
		"rename2":     step(45, 1, uint64(1), u32(unix.RENAME_EXCHANGE), u32(0), "d\x00up\x00"), "rename2 over": step(45, 1, uint64(3), uint64(0), "f\x00g\x00"),
		"rename2 into itself": step(45, 1, uint64(3), uint64(0), "d\x00e\x00"), "lseek": step(46, 2, uint64(0), uint64(0), u32(4), u32(0)),
		"copy": step(47, 2, uint64(2), uint64(0), uint64(2), uint64(0), uint64(10), uint64(50), uint64(0)), "syncfs": step(50, 1, uint64(0)),
		"tmpfile": step(51, 1, u32(os.O_RDWR), u32(0o100644), u32(0), u32(0), "/\x00"), "statx": step(52, 2, zero(24)), "none": step(200, 2, zero(24)),
		"poll name": step(1, 0, ".go-fuse-epoll-hack\x00"),
	}
	var scripts [][]byte
	add := func(limit byte, names ...string) {
		script := []byte{limit}
		for _, name := range names {
			script = append(script, steps[name]...)
		}
		scripts = append(scripts, script)
	}
	for _, name := range slices.Sorted(maps.Keys(steps)) {
		add(31, name)
		add(31, name, name, "readdirplus", name)
		// The same of the read-only export, without room for an answer, and in
		// the middle of a host's changes.
		ro := slices.Clone(steps[name])
		if ro[1] > 0 {
			ro[1] += 5
		}
		scripts = append(scripts, slices.Concat([]byte{31}, ro))
		full := slices.Clone(steps[name])
		full[3] = 2
		scripts = append(scripts, slices.Concat([]byte{31}, full))
		scripts = append(scripts, slices.Concat([]byte{0}, step(hostSwaps, 0), steps[name], step(hostReplaces, 0), steps[name], step(hostWithdraw, 0), steps[name]))
	}
	add(31, "mkdir", "rmdir of it")
	add(0, "readdirplus", "create", "mkdir", "opendir", "open", "tmpfile", "lookup", "rename2", "link", "write", "batch forget")
	add(31, "create", "link", "unlink", "rename2", "setattr", "write", "copy", "release", "forget", "rename2 over", "readdirplus", "init", "readdirplus")
	return scripts
}
