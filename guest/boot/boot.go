package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Paths that the rest of the guest builds on (docs/architecture.md).
const (
	RunDir    = "/run/sampan"
	ImagesDir = RunDir + "/images" // share of EROFS layers
	HostDir   = RunDir + "/host"   // share of host directories
	DataDir   = "/data"            // the data disk

	// ResolvConf is what the guest's own /etc/resolv.conf leads to.
	ResolvConf = RunDir + "/resolv.conf"
)

// Stage is a point of the boot.
type Stage struct {
	Name string
	// Uptime of the kernel (CLOCK_BOOTTIME) when it was reached.
	Uptime time.Duration
}

// An Error is a stage that failed.
type Error struct {
	Stage string
	Err   error
}

func (e *Error) Error() string { return e.Stage + ": " + e.Err.Error() }

func (e *Error) Unwrap() error { return e.Err }

// Guest is a booted guest.
type Guest struct {
	// DataDisk is what was done to the data disk: "formatted", "clean",
	// "repaired", or "none" when there is none and DataDir is in memory.
	DataDisk string
	Home     Home

	log    *slog.Logger
	later  chan struct{} // closed when the second group of modules is loaded
	lerr   error         // of loading them; valid after later
	mu     sync.Mutex
	stages []Stage
}

// Run boots the guest. It must be called once, by PID 1. The logger writes to
// the console once there is one; an error is an *Error.
func Run(log *slog.Logger) (*Guest, error) {
	g := &Guest{log: log, later: make(chan struct{})}
	g.Reached("init")
	for _, s := range []struct {
		name string
		run  func() error
	}{
		{"root", ownRoot},
		{"mounts", g.kernelInterfaces},
		{"modules", g.modules},
		{"disk", g.storage},
		{"seal", func() error { return errors.Join(shedRoot("/"), sealRoot()) }},
	} {
		if err := s.run(); err != nil {
			return g, &Error{s.name, err}
		}
		g.Reached(s.name)
	}
	return g, nil
}

// Reached records that a stage has been reached now.
func (g *Guest) Reached(name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stages = append(g.stages, Stage{name, Uptime()})
}

// Stages lists the stages reached so far, in order.
func (g *Guest) Stages() []Stage {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]Stage(nil), g.stages...)
}

// kernelInterfaces mounts what the kernel offers and adjusts its settings.
func (g *Guest) kernelInterfaces() error {
	if err := mountAll(kernelMounts); err != nil {
		return err
	}
	if err := openConsole(); err != nil {
		return err
	}
	if err := linkDev(); err != nil {
		return err
	}
	for _, dir := range []string{cgroupRoot, CgroupDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := enableControllers(dir); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(holdDir, 0o755); err != nil {
		return err
	}
	if err := setSysctls("/proc/sys", append(sysctls, memorySysctls...)); err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: maxFiles, Max: maxFiles}); err != nil {
		return fmt.Errorf("raise limit of open files: %w", err)
	}
	return loopbackUp()
}

// modules loads the drivers that the boot itself needs, and begins to load
// those that only containers need.
func (g *Guest) modules() error {
	list, err := os.ReadFile(moduleList)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel may have none
		return err
	}
	names, lateNames := parseModules(string(list))
	first, err := openModules(names)
	if err != nil {
		return err
	}
	later, err := openModules(lateNames) // before shedRoot deletes the files
	if err != nil {
		return err
	}
	// Two processors are what a machine has at least, most likely.
	if err := loadModules(first, 2); err != nil {
		return err
	}
	off, err := offlineCPUs(cpuRoot)
	if err != nil {
		return err
	}
	if len(off) > 0 {
		if err := g.Home.moveIn(); err != nil {
			return err
		}
	}
	go func() {
		defer close(g.later)
		if g.lerr = loadModules(later, 1); g.lerr == nil {
			g.lerr = setSysctls("/proc/sys", lateSysctls) // there only now
		}
		if err := processors(off); err != nil {
			g.log.Warn(err.Error())
		}
		g.Home.hurry(1 + len(off))
	}()
	return nil
}

// Later waits for the modules that only containers' networks need.
func (g *Guest) Later() error {
	<-g.later
	if g.lerr != nil {
		return &Error{"modules", g.lerr}
	}
	return nil
}

// storage mounts shares and data disk, side by side.
func (g *Guest) storage() error {
	var eg errgroup.Group
	eg.Go(func() error {
		if err := mountShares(g.log); err != nil {
			return err
		}
		g.Reached("shares")
		return nil
	})
	eg.Go(func() error {
		var err error
		g.DataDisk, err = mountData(g.log)
		return err
	})
	return eg.Wait()
}

// Uptime is how long the kernel has been running, sleep included.
func Uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // can't fail with a valid clock
	}
	return time.Duration(ts.Nano())
}
