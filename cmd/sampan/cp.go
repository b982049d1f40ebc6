package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/docker/go-units"
	archive "github.com/moby/go-archive"
	"github.com/moby/moby/client"
	"github.com/moby/term"
	"github.com/spf13/cobra"
)

// copying is one call of cp. The rules of what lands where are those of
// go-archive, which Docker's client uses as well.
type copying struct {
	container, src, dst   string
	archive, follow, told bool
}

func newCpCommand(a *app) *cobra.Command {
	var (
		c     copying
		quiet bool
	)
	cmd := &cobra.Command{
		Use:   "cp [OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n\tsampan cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH",
		Short: "Copy files/folders between a container and the local filesystem",
		Args:  argCount(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case args[0] == "":
				return errors.New("source can not be empty")
			case args[1] == "":
				return errors.New("destination can not be empty")
			}
			_, terminal := term.GetFdInfo(a.err)
			c.told = !quiet && (terminal || cmd.Flags().Changed("quiet"))
			from, src := containerPath(args[0])
			to, dst := containerPath(args[1])
			c.src, c.dst = src, dst
			switch {
			case from != "" && to != "":
				return errors.New("copying between containers is not supported")
			case from != "":
				c.container = from
				return a.copyFrom(cmd.Context(), c)
			case to != "":
				c.container = to
				return a.copyTo(cmd.Context(), c)
			}
			return errors.New("must specify at least one container source")
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&c.archive, "archive", "a", false, "Archive mode (copy all uid/gid information)")
	fs.BoolVarP(&c.follow, "follow-link", "L", false, "Always follow symbol link in SRC_PATH")
	fs.BoolVarP(&quiet, "quiet", "q", false, "Suppress progress output during copy. Progress output is automatically suppressed if no terminal is attached")
	return cmd
}

// containerPath splits CONTAINER:PATH. What is absolute, or begins with a dot,
// is a path of this machine, colons or not.
func containerPath(arg string) (container, path string) {
	if filepath.IsAbs(arg) {
		return "", arg
	}
	container, path, ok := strings.Cut(arg, ":")
	if !ok || strings.HasPrefix(container, ".") {
		return "", arg
	}
	return container, path
}

// localPath is absolute, with the slash or dot at its end that means something.
func localPath(p string) (string, error) {
	abs, err := filepath.Abs(p)
	if err != nil {
		return "", err
	}
	return archive.PreserveTrailingDotOrSeparator(abs, p), nil
}

// linkTarget is where a link in a container leads.
func linkTarget(link, target string) string {
	if filepath.IsAbs(target) {
		return target
	}
	dir, _ := archive.SplitPathDirEntry(link)
	return filepath.Join(dir, target)
}

func (a *app) copyFrom(ctx context.Context, c copying) error {
	dst := c.dst
	if dst != "-" {
		var err error
		if dst, err = localPath(dst); err != nil {
			return err
		}
		if err := checkOutput(dst); err != nil {
			return err
		}
	}
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	src, rebase := c.src, ""
	if c.follow {
		st, err := docker.ContainerStatPath(ctx, c.container, client.ContainerStatPathOptions{Path: src})
		if err == nil && st.Stat.Mode&fs.ModeSymlink != 0 {
			src, rebase = archive.GetRebaseName(src, linkTarget(src, st.Stat.LinkTarget))
		}
	}
	res, err := docker.CopyFromContainer(ctx, c.container, client.CopyFromContainerOptions{SourcePath: src})
	if err != nil {
		return err
	}
	defer res.Content.Close()
	if dst == "-" {
		_, err := io.Copy(a.out, res.Content)
		return err
	}
	counted := &countingReader{r: res.Content}
	var content io.Reader = counted
	if rebase != "" {
		_, base := archive.SplitPathDirEntry(src)
		content = archive.RebaseArchiveEntries(content, base, rebase)
	}
	info := archive.CopyInfo{Path: src, Exists: true, IsDir: res.Stat.Mode.IsDir(), RebaseName: rebase}
	if err := archive.CopyTo(content, info, dst); err != nil {
		return err
	}
	c.tell(a.err, counted.n, dst)
	return nil
}

func (a *app) copyTo(ctx context.Context, c copying) error {
	src := c.src
	if src != "-" {
		var err error
		if src, err = localPath(src); err != nil {
			return err
		}
	}
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	dst, err := destination(ctx, docker, c)
	if err != nil {
		return err
	}
	dir, content := dst.Path, io.NopCloser(a.in)
	if src == "-" {
		if !dst.IsDir {
			return fmt.Errorf("destination \"%s:%s\" must be a directory", c.container, c.dst)
		}
	} else {
		info, err := archive.CopyInfoSourcePath(src, c.follow)
		if err != nil {
			return err
		}
		tar, err := archive.TarResource(info)
		if err != nil {
			return err
		}
		defer tar.Close()
		if dir, content, err = archive.PrepareArchiveCopy(tar, info, dst); err != nil {
			return err
		}
		defer content.Close()
	}
	counted := &countingReader{r: content}
	_, err = docker.CopyToContainer(ctx, c.container, client.CopyToContainerOptions{
		DestinationPath: dir, Content: counted, CopyUIDGID: c.archive,
	})
	if err != nil {
		return err
	}
	c.tell(a.err, counted.n, c.container+":"+dst.Path)
	return nil
}

// destination looks at what there is in the container. What isn't there may
// come to be, if its directory is.
func destination(ctx context.Context, docker *client.Client, c copying) (archive.CopyInfo, error) {
	info := archive.CopyInfo{Path: c.dst}
	st, err := docker.ContainerStatPath(ctx, c.container, client.ContainerStatPathOptions{Path: c.dst})
	if err == nil && st.Stat.Mode&fs.ModeSymlink != 0 {
		info.Path = linkTarget(c.dst, st.Stat.LinkTarget)
		st, err = docker.ContainerStatPath(ctx, c.container, client.ContainerStatPathOptions{Path: info.Path})
	}
	if err != nil {
		return info, nil
	}
	if m := st.Stat.Mode; m&fs.ModeDevice != 0 {
		return info, fmt.Errorf("destination \"%s:%s\" must be a directory or a regular file: got a device", c.container, c.dst)
	} else if m&fs.ModeIrregular != 0 {
		return info, fmt.Errorf("destination \"%s:%s\" must be a directory or a regular file: got an irregular file", c.container, c.dst)
	}
	info.Exists, info.IsDir = true, st.Stat.Mode.IsDir()
	return info, nil
}

// checkOutput refuses a local path that nothing can be written to.
func checkOutput(p string) error {
	dir := filepath.Dir(filepath.Clean(p))
	if dir != "" && dir != "." {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("invalid output path: directory %q does not exist", dir)
		}
	}
	if fi, err := os.Stat(p); err == nil && !fi.IsDir() && !fi.Mode().IsRegular() {
		kind := "an irregular file"
		if fi.Mode()&fs.ModeDevice != 0 {
			kind = "a device"
		}
		return fmt.Errorf("invalid output path: %q must be a directory or a regular file: got %s", p, kind)
	}
	return nil
}

func (c copying) tell(w io.Writer, n int64, to string) {
	if c.told {
		fmt.Fprintln(w, "Successfully copied", units.HumanSizeWithPrecision(float64(n), 3), "to", to)
	}
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
