package stage2

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"sampan/guest/symlink"
)

// prepare sets up the streams and the working directory in this process, from
// which a fork inherits them.
func prepare(p *Process, t *terminal) (*program, error) {
	if t != nil {
		for fd := range 3 {
			if err := unix.Dup3(t.slave, fd, 0); err != nil {
				return nil, fmt.Errorf("set stream %d: %w", fd, err)
			}
		}
	} else if err := nullStreams(p.Null); err != nil {
		return nil, err
	}
	if err := chownStreams(p.UID); err != nil {
		return nil, err
	}
	if err := chdir(p.Cwd); err != nil {
		return nil, err
	}
	return &program{}, nil
}

// nullStreams opens the container's /dev/null for streams that are to be it.
func nullStreams(null [3]bool) error {
	if null == [3]bool{} {
		return nil
	}
	fd, err := openNull(unix.O_RDWR)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for i, wanted := range null {
		if !wanted {
			continue
		}
		if err := unix.Dup3(fd, i, 0); err != nil {
			return fmt.Errorf("set stream %d: %w", i, err)
		}
	}
	return nil
}

// chownStreams gives terminals and pipes to the process's user, so that
// /dev/stdout can be opened. The null device stays root's.
func chownStreams(uid uint32) error {
	for fd := range 3 {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return fmt.Errorf("look at stream %d: %w", fd, err)
		}
		if st.Uid == uid || st.Rdev == unix.Mkdev(1, 3) && st.Mode&unix.S_IFMT == unix.S_IFCHR {
			continue
		}
		err := unix.Fchown(fd, int(uid), int(st.Gid))
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EROFS) {
			return fmt.Errorf("give stream %d to user %d: %w", fd, uid, err)
		}
	}
	return nil
}

// makeCwd makes the working directory, as Docker's does for a new container.
func makeCwd(cwd string) error {
	name, err := symlink.Follow(cwd, os.Readlink)
	if err != nil {
		return err
	}
	return os.MkdirAll(name, 0o755)
}

// chdir enters the working directory. It can't be a magic link (a descriptor
// of the agent that leads out: CVE-2024-21626), and is checked to be inside.
func chdir(cwd string) error {
	err := func() error {
		how := unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		}
		root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(root)
		fd, err := unix.Openat2(root, cwd, &how)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Fchdir(fd); err != nil {
			return err
		}
		if _, err := unix.Getwd(); err != nil {
			return fmt.Errorf("the directory is outside of the container: %w", err)
		}
		return nil
	}()
	if err != nil {
		return &execError{class(err), fmt.Errorf("chdir to cwd (%q) set in config.json failed: %w", cwd, err)}
	}
	return nil
}

// lookUp finds the executable, with the process's user and groups.
func (pr *program) lookUp(p *Process) error {
	if len(p.Args) == 0 {
		return errors.New("no command")
	}
	var err error
	asUser(p, func() { pr.path, err = lookPath(p.Args[0], pathOf(p.Env)) })
	if err != nil {
		return &execError{class(err), fmt.Errorf("exec: %q: %w", p.Args[0], err)}
	}
	return nil
}

// errNotInPath and errDot have os/exec's wording, which is Docker's too.
var (
	errNotInPath = errors.New("executable file not found in $PATH")
	errDot       = errors.New("cannot run executable found relative to current directory")
)

// class tells what an error means for Docker's exit code.
func class(err error) string {
	switch {
	case errors.Is(err, errNotInPath), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return ClassNotFound
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.EISDIR),
		errors.Is(err, unix.ENOEXEC), errors.Is(err, errDot):
		return ClassNotExecutable
	}
	return ""
}

// pathOf is the last PATH of an environment.
func pathOf(env []string) string {
	for i := len(env) - 1; i >= 0; i-- {
		if value, ok := strings.CutPrefix(env[i], "PATH="); ok {
			return value
		}
	}
	return ""
}

// lookPath is os/exec.LookPath in the container's terms.
func lookPath(file, dirs string) (string, error) {
	if strings.Contains(file, "/") {
		return file, executable(file)
	}
	if dirs == "" {
		return "", errNotInPath
	}
	for dir := range strings.SplitSeq(dirs, ":") {
		name := path.Join(dir, file)
		if executable(name) != nil {
			continue
		}
		if !path.IsAbs(name) {
			return "", errDot
		}
		return name, nil
	}
	return "", errNotInPath
}

func executable(name string) error {
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return unix.EISDIR
	}
	return unix.Faccessat2(unix.AT_FDCWD, name, unix.X_OK, unix.AT_EACCESS)
}

// asUser calls f with the effective user and groups of p, in this thread only.
// That takes the effective capabilities away; they come back with user 0.
func asUser(p *Process, f func()) {
	if p.UID == 0 {
		f()
		return
	}
	const keep = ^uintptr(0)
	var groups *uint32
	if len(p.Groups) > 0 {
		groups = &p.Groups[0]
	}
	setgroups(len(p.Groups), groups)
	unix.RawSyscall(unix.SYS_SETRESGID, keep, uintptr(p.GID), keep)
	unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(p.UID), keep)
	f()
	unix.RawSyscall(unix.SYS_SETRESUID, keep, 0, keep)
	unix.RawSyscall(unix.SYS_SETRESGID, keep, 0, keep)
}
