package runtime

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"sampan/guest/runtime/stage2"
)

// userFiles are a container's user databases; nil for one that doesn't exist.
type userFiles struct{ passwd, group []byte }

// maxUserFile bounds what is read of a file that a container may have written.
const maxUserFile = 4 << 20

// readUserFiles reads them from a root that may be hostile: links stay in the
// root, and what isn't a file (a FIFO would block) is refused.
func readUserFiles(rootfs string) (userFiles, error) {
	root, err := unix.Open(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return userFiles{}, fmt.Errorf("open root %s: %w", rootfs, err)
	}
	defer unix.Close(root)
	var files userFiles
	if files.passwd, err = readInRoot(root, "/etc/passwd"); err != nil {
		return files, err
	}
	files.group, err = readInRoot(root, "/etc/group")
	return files, err
}

func readInRoot(root int, name string) ([]byte, error) {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := unix.Openat2(root, name, &how)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the container's %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxUserFile {
		return nil, fmt.Errorf("the container's %s is not a file of at most %d bytes", name, maxUserFile)
	}
	return io.ReadAll(io.LimitReader(f, maxUserFile))
}

func (f userFiles) readers() (passwd, group io.Reader) {
	if f.passwd != nil {
		passwd = bytes.NewReader(f.passwd)
	}
	if f.group != nil {
		group = bytes.NewReader(f.group)
	}
	return passwd, group
}

// planUser looks the user and the groups up, and sets HOME when it's missing,
// as Docker does. No user at all is the image's root, with root's groups. After
// the user, names of more groups may follow, each on its own line.
func planUser(plan *stage2.Process, u specs.User, files userFiles) error {
	name, more, _ := strings.Cut(u.Username, "\n")
	if name == "" && (u.UID != 0 || u.GID != 0) {
		name = fmt.Sprintf("%d:%d", u.UID, u.GID)
	}
	passwd, group := files.readers()
	// A name that is a number needs no entry; the defaults are for an empty part.
	found, err := user.GetExecUser(name, &user.ExecUser{Home: "/"}, passwd, group)
	if err != nil {
		return err
	}
	plan.UID, plan.GID = uint32(found.Uid), uint32(found.Gid)
	seen := map[uint32]bool{}
	add := func(gid uint32) {
		if !seen[gid] {
			seen[gid] = true
			plan.Groups = append(plan.Groups, gid)
		}
	}
	add(plan.GID) // Docker's engine lists the primary group among them
	for _, gid := range found.Sgids {
		add(uint32(gid))
	}
	for _, gid := range u.AdditionalGids {
		add(gid)
	}
	if more != "" {
		_, group = files.readers()
		named, err := user.GetAdditionalGroups(strings.Split(more, "\n"), group)
		if err != nil {
			return err
		}
		for _, gid := range named {
			add(uint32(gid))
		}
	}
	plan.Env = withHome(plan.Env, found.Home)
	return nil
}

// LookupUser looks "user[:group]" up in the user databases of a root.
func LookupUser(rootfs, name string) (uid, gid int, err error) {
	files, err := readUserFiles(rootfs)
	if err != nil {
		return 0, 0, err
	}
	passwd, group := files.readers()
	found, err := user.GetExecUser(name, new(user.ExecUser), passwd, group)
	if err != nil {
		return 0, 0, err
	}
	return found.Uid, found.Gid, nil
}

// withHome adds HOME unless env has it.
func withHome(env []string, home string) []string {
	for _, e := range env {
		if value, ok := strings.CutPrefix(e, "HOME="); ok && value != "" {
			return env
		}
	}
	if home == "" {
		home = "/"
	}
	return append(env[:len(env):len(env)], "HOME="+home)
}

// readLastCap is the highest capability that the kernel knows.
func readLastCap() (int, error) {
	text, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}
