package agent

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protodelim"

	"sampan/proto"
)

// Replay makes once more, on the mount of the share at dir, what the host has
// done there, until the stream ends. The share's server changes nothing by it,
// but the kernel tells who watches.
//
// The server knows these requests by the thread that makes them. So the thread
// does nothing else as long as the host may think so: until the host has closed
// the stream, which it does last.
func Replay(stream io.ReadWriteCloser, dir string) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := replayAll(stream, dir)
		closed := over(err)
		if closed {
			err = nil
		} else {
			closed = awaitClose(stream)
		}
		stream.Close()
		if closed {
			if groupErr := setGroup(0); groupErr != nil {
				closed, err = false, errors.Join(err, groupErr)
			}
		}
		if closed {
			runtime.UnlockOSThread()
		}
		done <- err
		if !closed {
			select {} // the host may still take this thread for the one that replays
		}
	}()
	return <-done
}

// awaitClose waits until the host has closed the stream, which it does when no
// more answers can come. False means that this can't be known.
func awaitClose(stream io.ReadWriteCloser) bool {
	w, ok := stream.(closeWriter)
	if !ok || w.CloseWrite() != nil {
		return false
	}
	_, err := io.Copy(io.Discard, stream)
	return err == nil || over(err)
}

// over tells whether an error of the stream means that the host has closed it,
// perhaps in the middle of a message. Another end of the host's is not known here:
// the machine goes with it.
func over(err error) bool {
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, unix.ECONNRESET, unix.EPIPE, unix.ENOTCONN} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}

// replayAll always returns an error: why it has ended.
func replayAll(stream io.ReadWriter, dir string) error {
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(root)
	in, out := bufio.NewReaderSize(stream, 64<<10), bufio.NewWriter(stream)
	limited := protodelim.UnmarshalOptions{MaxSize: proto.MaxReplay}
	if _, err := protodelim.MarshalTo(out, &proto.Replayed{Thread: uint32(unix.Gettid())}); err != nil {
		return err
	}
	for {
		if in.Buffered() == 0 {
			if err := out.Flush(); err != nil {
				return err
			}
		}
		var r proto.Replay
		if err := limited.UnmarshalFrom(in, &r); err != nil {
			return fmt.Errorf("read replay: %w", err)
		}
		var errno unix.Errno
		if err := replayOne(root, &r); err != nil && !errors.As(err, &errno) {
			errno = unix.EIO
		}
		if _, err := protodelim.MarshalTo(out, &proto.Replayed{Seq: r.Seq, Errno: uint32(errno)}); err != nil {
			return err
		}
	}
}

// setGroup sets the group that this thread has for files; its capabilities
// don't depend on it.
func setGroup(gid int) error {
	if _, err := unix.SetfsgidRetGid(gid); err != nil {
		return fmt.Errorf("set group of the thread: %w", err)
	}
	return nil
}

func replayOne(root int, r *proto.Replay) error {
	if err := setGroup(int(r.Seq)); err != nil {
		return err
	}
	dir, err := openNode(root, r.Dir, string(r.Path))
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	name := string(r.Name)
	switch r.Kind {
	case proto.Replay_CREATE:
		return makeEntry(dir, name, r.Mode&unix.S_IFMT)
	case proto.Replay_DELETE:
		flags := 0
		if r.Mode&unix.S_IFMT == unix.S_IFDIR {
			flags = unix.AT_REMOVEDIR
		}
		return unix.Unlinkat(dir, name, flags)
	case proto.Replay_RENAME:
		to, err := openNode(root, r.ToDir, string(r.ToPath))
		if err != nil {
			return err
		}
		defer unix.Close(to)
		return unix.Renameat2(dir, name, to, string(r.ToName), 0)
	case proto.Replay_MODIFY:
		return touch(dir, name, unix.UTIME_OMIT)
	case proto.Replay_ATTRIB:
		return touch(dir, name, 0)
	case proto.Replay_WRITTEN:
		const flags = unix.O_WRONLY | unix.O_NONBLOCK | unix.O_CLOEXEC
		var fd int
		if name == "" { // dir is a file that is shared by itself
			fd, err = unix.Open("/proc/self/fd/"+strconv.Itoa(dir), flags, 0)
		} else {
			fd, err = unix.Openat(dir, name, flags|unix.O_NOFOLLOW, 0)
		}
		if err != nil {
			return err
		}
		return unix.Close(fd)
	}
	return unix.ENOTSUP
}

// openNode opens what the kernel knows by a number of the share's server: by its
// handle, in which FUSE has just that, or else by its path.
func openNode(root int, node uint64, path string) (int, error) {
	const (
		rootNode           = 1    // FUSE_ROOT_ID
		inodeAndGeneration = 0x81 // FILEID_INO64_GEN
	)
	if node == rootNode {
		return unix.FcntlInt(uintptr(root), unix.F_DUPFD_CLOEXEC, 0)
	}
	var b [12]byte
	binary.NativeEndian.PutUint32(b[0:], uint32(node>>32))
	binary.NativeEndian.PutUint32(b[4:], uint32(node))
	binary.NativeEndian.PutUint32(b[8:], 1) // the generation of all of them
	fd, err := unix.OpenByHandleAt(root, unix.NewFileHandle(inodeAndGeneration, b[:]), unix.O_PATH|unix.O_CLOEXEC)
	if !errors.Is(err, unix.ESTALE) || path == "" {
		return fd, err
	}
	return unix.Openat2(root, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
}

func makeEntry(dir int, name string, kind uint32) error {
	switch kind {
	case unix.S_IFDIR:
		return unix.Mkdirat(dir, name, 0o755)
	case unix.S_IFLNK:
		return unix.Symlinkat("replayed", dir, name)
	case unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK:
		return unix.Mknodat(dir, name, kind|0o644, 0)
	}
	return unix.ENOTSUP
}

// touch sets the time of change, and the time of access to now or, with
// UTIME_OMIT, not at all: the kernel takes the former alone for a change of
// the content, and both for one of the attributes.
func touch(dir int, name string, access int64) error {
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags = unix.AT_EMPTY_PATH
	}
	if access != unix.UTIME_OMIT {
		access = unix.UTIME_NOW
	}
	times := []unix.Timespec{{Nsec: access}, {Nsec: unix.UTIME_NOW}}
	return unix.UtimesNanoAt(dir, name, times, flags)
}
