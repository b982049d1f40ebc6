package share

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"sampan/kernel"
	"sampan/vm"
	"sampan/vm/vhostuser"
)

func sha(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// sizes notes the largest answer of a server, and what it is asked, by ring.
type sizes struct {
	vm.FUSEServer
	mu    sync.Mutex
	max   int
	ops   map[uint32]int
	rings map[int]int
	// writes is how much each WRITE had.
	writes []int
}

// requestQueues is what the devices have: one for each of the guest's processors.
const requestQueues = 2

// byRing is a virtio-fs device that tells sizes from which ring a request comes.
type byRing struct {
	*vhostuser.FS
	server vm.FUSEServer
}

func (d byRing) Serve(q *vhostuser.Queue) error {
	if s, ok := d.server.(*sizes); ok {
		return vhostuser.NewFS(ring{s, q.Index()}, requestQueues).Serve(q)
	}
	return d.FS.Serve(q)
}

// ring is the server for one ring's requests.
type ring struct {
	*sizes
	index int
}

func (r ring) HandleRequest(in, out [][]byte) (int, fuse.Status) {
	r.mu.Lock()
	r.rings[r.index]++
	r.mu.Unlock()
	return r.sizes.HandleRequest(in, out)
}

func (s *sizes) HandleRequest(in, out [][]byte) (int, fuse.Status) {
	var head [8]byte
	gather(head[:], in, 0)
	size := total(in) - writeInSize
	n, code := s.FUSEServer.HandleRequest(in, out)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.max = max(s.max, n)
	op := binary.LittleEndian.Uint32(head[4:])
	s.ops[op]++
	if op == opWrite {
		s.writes = append(s.writes, size)
	}
	return n, code
}

// overlayInit writes an initramfs with another /init.
func overlayInit(from *kernel.Bundle, to, script string) error {
	b, err := from.ReadInitrd()
	if err != nil {
		return err
	}
	pad := func() {
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	add := func(name, content string, mode int) {
		pad()
		b = fmt.Appendf(b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			1, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0, name)
		pad()
		b = append(b, content...)
	}
	add("init", script, 0o100755)
	add("TRAILER!!!", "", 0)
	pad()
	return os.WriteFile(to, b, 0o600)
}

// bootShares runs a guest until it powers off, and returns its console.
func bootShares(t *testing.T, kernel, initrd string, shares map[string]vm.FUSEServer) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 110*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
		"-no-reboot", "-machine", "q35,memory-backend=ram", "-accel", "tcg,thread=multi", "-cpu", "max,cx16=off,erms=off,fsrm=off",
		"-smp", "2", "-m", "1024M", "-object", "memory-backend-memfd,id=ram,share=on,size=1024M",
		"-kernel", kernel, "-initrd", initrd, "-serial", "stdio",
		"-append", "console=ttyS0 quiet panic=-1 init_on_alloc=1 cryptomgr.notests maxcpus=1 no_ipi_broadcast=1")
	var backends sync.WaitGroup
	for tag, server := range shares {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		check(t, err)
		theirs := os.NewFile(uintptr(pair[0]), tag)
		ours := os.NewFile(uintptr(pair[1]), tag)
		conn, err := net.FileConn(ours)
		check(t, err)
		ours.Close()
		defer theirs.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, theirs)
		cmd.Args = append(cmd.Args,
			"-chardev", fmt.Sprintf("socket,id=%s,fd=%d", tag, 2+len(cmd.ExtraFiles)),
			"-device", fmt.Sprintf("vhost-user-fs-pci,chardev=%s,queue-size=1024,num-request-queues=%d,tag=%s", tag, requestQueues, tag))
		backends.Go(func() {
			log := slog.New(slog.NewTextHandler(t.Output(), nil))
			if err := vhostuser.Serve(conn.(*net.UnixConn), byRing{vhostuser.NewFS(server, requestQueues), server}, log); err != nil {
				t.Errorf("%s: %v", tag, err)
			}
		})
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Errorf("qemu: %v\n%s", err, out.String())
	}
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	backends.Wait()
	return out.String()
}
