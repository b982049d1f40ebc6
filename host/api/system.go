package api

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"

	"sampan/host/engine"
)

func (s *server) ping(w http.ResponseWriter, r *http.Request) error {
	h := w.Header()
	h.Set("Sampan-Build", s.Build)
	h.Set("Builder-Version", "1") // no BuildKit
	h.Set("Swarm", "inactive")
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Content-Length", "2")
	if r.Method == http.MethodHead {
		w.WriteHeader(http.StatusOK)
		return nil
	}
	_, err := io.WriteString(w, "OK")
	return err
}

func (s *server) version(w http.ResponseWriter, r *http.Request) error {
	status := s.Engine.MachineStatus(r.Context())
	details := map[string]string{"ApiVersion": MaxVersion, "MinAPIVersion": MinVersion, "GoVersion": goVersion(), "Os": "linux", "Arch": runtime.GOARCH, "KernelVersion": status.Kernel}
	return answer(w, http.StatusOK, system.VersionResponse{
		Platform: system.PlatformInfo{Name: "Sampan"},
		Version:  s.Build, APIVersion: MaxVersion, MinAPIVersion: MinVersion,
		Os: "linux", Arch: runtime.GOARCH, GoVersion: goVersion(), KernelVersion: status.Kernel,
		Components: []system.ComponentVersion{{Name: "Engine", Version: s.Build, Details: details}},
	})
}

func (s *server) info(w http.ResponseWriter, r *http.Request) error {
	status := s.Engine.MachineStatus(r.Context())
	list, err := s.Engine.List(r.Context(), engine.ListOptions{All: true})
	if err != nil {
		return err
	}
	images, err := s.Images.List()
	if err != nil {
		return err
	}
	proxies := s.Images.Proxies()
	info := system.Info{
		HTTPProxy: proxies.HTTPProxy, HTTPSProxy: proxies.HTTPSProxy, NoProxy: proxies.NoProxy,
		ID: "sampan", Name: hostname(), ServerVersion: s.Build,
		Images: len(images), Containers: len(list),
		Driver: "overlay2", DriverStatus: [][2]string{{"Backing Filesystem", "extfs"}, {"Layers", "erofs"}},
		Plugins:     system.PluginsInfo{Volume: []string{"local"}, Network: []string{"bridge", "host", "null"}, Log: []string{"json-file", "none"}},
		MemoryLimit: true, CPUCfsPeriod: true, CPUCfsQuota: true, CPUShares: true, CPUSet: true, PidsLimit: true, SwapLimit: true,
		IPv4Forwarding: true, SystemTime: time.Now().Format(time.RFC3339Nano), LoggingDriver: "json-file",
		CgroupDriver: "cgroupfs", CgroupVersion: "2", KernelVersion: status.Kernel,
		OperatingSystem: "Sampan", OSType: "linux", Architecture: machineArch(), NCPU: status.CPUs, MemTotal: status.Memory,
		NGoroutines: runtime.NumGoroutine(), NFd: descriptors(), DockerRootDir: s.Home,
		IndexServerAddress: "https://index.docker.io/v1/",
		Runtimes:           map[string]system.RuntimeWithStatus{"sampan": {}}, DefaultRuntime: "sampan",
		Swarm:           swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive},
		SecurityOptions: []string{"name=seccomp,profile=builtin", "name=cgroupns"},
		Warnings:        []string{},
	}
	for _, c := range list {
		switch c.State {
		case container.StateRunning:
			info.ContainersRunning++
		case container.StatePaused:
			info.ContainersPaused++
		default:
			info.ContainersStopped++
		}
	}
	return answer(w, http.StatusOK, info)
}

// descriptors is how many files the daemon has open, or -1 if it can't tell.
func descriptors() int {
	entries, err := os.ReadDir("/dev/fd") // Linux and macOS
	if err != nil {
		return -1
	}
	return len(entries) - 1 // but for that of the reading itself
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "localhost"
	}
	return name
}

// machineArch is the guest's architecture as uname tells it.
func machineArch() string {
	switch runtime.GOARCH {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	}
	return runtime.GOARCH
}

func (s *server) events(w http.ResponseWriter, r *http.Request) error {
	f, err := filters(r)
	if err != nil {
		return err
	}
	now := time.Now()
	since, err := eventTime(r.FormValue("since"), now)
	if err != nil {
		return err
	}
	until, err := eventTime(r.FormValue("until"), now)
	if err != nil {
		return err
	}
	out := newStream(w)
	return s.Engine.Events(r.Context(), since, until, f,
		func() { out.begin() }, // a client that is gone shows with the first event
		func(m events.Message) error { return out.send(earlierEvent(r, m)) })
}

// eventTime is zero for no time; 0 is one, that of the epoch.
func eventTime(v string, now time.Time) (time.Time, error) {
	if v == "" {
		return time.Time{}, nil
	}
	return engine.ParseTime(v, now)
}

// optionalTime is zero for no time, which for logs 0 means as well.
func optionalTime(v string, now time.Time) (time.Time, error) {
	if v == "" || v == "0" {
		return time.Time{}, nil
	}
	return engine.ParseTime(v, now)
}

func (s *server) machineStatus(w http.ResponseWriter, r *http.Request) error {
	return answer(w, http.StatusOK, s.Engine.MachineStatus(r.Context()))
}

func (s *server) machineUsage(w http.ResponseWriter, _ *http.Request) error {
	return answer(w, http.StatusOK, s.Engine.MachineUsage())
}

func (s *server) machineStart(w http.ResponseWriter, r *http.Request) error {
	if err := s.Engine.StartMachine(r.Context()); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) machineStop(w http.ResponseWriter, r *http.Request) error {
	// Half a power-off is no use: it goes on when the client leaves.
	if err := s.Engine.StopMachine(context.WithoutCancel(r.Context())); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// machineDisk makes the data disk larger: {"size": BYTES}.
func (s *server) machineDisk(w http.ResponseWriter, r *http.Request) error {
	var asked struct{ Size int64 }
	if err := decode(w, r, &asked); err != nil {
		return err
	}
	if err := s.Engine.GrowDisk(asked.Size); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// machineLogs sends the guest's console; with follow it goes on until the
// client leaves.
func (s *server) machineLogs(w http.ResponseWriter, r *http.Request) error {
	f, err := os.Open(s.Engine.ConsoleLog())
	if errors.Is(err, os.ErrNotExist) {
		w.WriteHeader(http.StatusOK) // it has never run
		return nil
	} else if err != nil {
		return err
	}
	defer f.Close()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(w)
	in := bufio.NewReader(f)
	for {
		if _, err := io.Copy(w, in); err != nil {
			return err
		}
		if err := rc.Flush(); err != nil || !boolean(r, "follow") {
			return err
		}
		select {
		case <-r.Context().Done():
			return nil
		case <-time.After(100 * time.Millisecond): // a file tells nobody that it grew
		}
		if f, in, err = reopened(f, in); err != nil {
			return err
		}
	}
}

// reopened goes on with the file that has taken f's name, once there is one.
func reopened(f *os.File, in *bufio.Reader) (*os.File, *bufio.Reader, error) {
	old, err := f.Stat()
	if err != nil {
		return f, in, err
	}
	now, err := os.Stat(filepath.Clean(f.Name()))
	if err != nil || os.SameFile(old, now) {
		return f, in, nil
	}
	next, err := os.Open(f.Name())
	if err != nil {
		return f, in, nil
	}
	f.Close()
	return next, bufio.NewReader(next), nil
}
