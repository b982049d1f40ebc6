package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	apinet "github.com/moby/moby/api/types/network"
	"github.com/sirupsen/logrus"

	"sampan/host/api"
	"sampan/host/engine"
	"sampan/host/image"
	"sampan/host/machine"
	"sampan/host/network"
	"sampan/host/relay"
	"sampan/host/share"
	"sampan/proto"
	"sampan/vm"
)

// stopTimeout bounds an ordered end: containers, machine, connections.
const stopTimeout = 45 * time.Second

// serve is the daemon's life: it wires the parts together, serves the API until
// ctx ends, and takes everything down in order.
func serve(ctx context.Context, ready *ready, log *slog.Logger) (err error) {
	dir, err := homeDir()
	if err != nil {
		return err
	}
	h, err := openHome(dir)
	if err != nil {
		return err
	}
	defer h.close()
	quiet(log)
	parts, err := assemble(h, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, parts.close()) }()
	ln, err := h.listen()
	if err != nil {
		return fmt.Errorf("API socket: %w", err)
	}
	srv := api.NewServer(trimmed(api.New(api.Config{Engine: parts.engine, Images: parts.images, Build: build, Home: dir, Log: log}),
		trimAfter, debug.FreeOSMemory), api.Limits{Open: openLimit()}, log)
	if err := h.writePid(); err != nil {
		ln.Close()
		return err
	}
	ready.ok()
	log.Info("sampand serves", "socket", ln.Addr().String(), "build", build)

	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(ln) }()
	restarted := make(chan struct{})
	go func() { defer close(restarted); parts.engine.Restart(ctx) }()
	select {
	case err = <-ended:
	case <-ctx.Done():
		log.Info("sampand ends")
	}
	ln.Close()
	parts.stop()
	<-restarted // the machine is closed: nothing more starts
	srv.Close() // who still listens to a log has seen its end
	return err
}

// parts are the daemon's stores and services.
type parts struct {
	images  *image.Store
	engine  *engine.Engine
	machine *machine.Machine
	layers  io.Closer
	tree    *share.Tree
	log     *slog.Logger
}

func assemble(h *home, log *slog.Logger) (*parts, error) {
	cfg, err := readConfig(h.path("config.toml"))
	if err != nil {
		return nil, err
	}
	p := &parts{log: log}
	if p.images, err = image.Open(h.path("images"), log); err != nil {
		return nil, err
	}
	p.images.SetLimits(image.Limits{LayerSize: int64(cfg.Images.MaxLayer), LayerEntries: cfg.Images.MaxFiles})
	p.images.KeepCompressed(cfg.Images.KeepCompressed)
	p.images.SetRegistries(cfg.registries(h.dir))
	layers, closer, err := share.ReadOnlyDir(p.images.LayersDir())
	if err != nil {
		return nil, fmt.Errorf("share images: %w", err)
	}
	p.layers = closer
	tree := share.NewTree(share.Options{Forbidden: []string{h.dir}, Replays: p.replays, Log: log})
	p.tree = tree
	virtual, err := network.New(network.Config{Subnet: cfg.Network.Uplink, Log: log})
	if err != nil {
		return nil, err
	}
	sockets := relay.New(log)
	bundle := &guest{log: log}
	p.machine = machine.New(machine.Config{
		Driver: newDriver(cfg, log),
		Kernel: bundle.files,
		CPUs:   cfg.Machine.CPUs, Memory: int64(cfg.Machine.Memory),
		DataDisk: h.path("data.img"), DataDiskSize: int64(cfg.Machine.Disk),
		Shares: []vm.Share{
			{Tag: proto.ShareImages, ReadOnly: true, Dirs: map[string]string{"": p.images.LayersDir()}, Server: layers},
			{Tag: proto.ShareHost, Dirs: hostDirs(), Server: tree.Server()},
		},
		Network:    virtual,
		Relay:      sockets,
		ConsoleLog: h.path("console.log"),
		Idle:       time.Duration(cfg.Machine.Idle),
		Log:        log,
	})
	p.engine, err = engine.New(engine.Config{
		Home:        h.dir,
		Machine:     engine.OfMachine(p.machine),
		Image:       p.image,
		HoldLayers:  p.images.Hold,
		Export:      func(path string, ro bool) (engine.Export, error) { return exportOf(tree, path, ro) },
		Socket:      func(path string) (engine.Export, error) { return socketOf(sockets, path) },
		DNS:         []netip.Addr{virtual.Gateway()},
		HostGateway: virtual.HostLoopback(),
		Warnings:    virtual.Warnings,
		Events:      tree.Events,
		NoMirror:    !cfg.Network.Mirror,
		Uplink:      virtual.Subnet(),
		Pools:       cfg.Network.pools(),
		Routes:      virtual.HostRoutes,
		Arch:        runtime.GOARCH,
		CPUs:        cfg.Machine.CPUs,
		Log:         log,
	})
	if err != nil {
		return nil, err
	}
	// The engine holds what containers use: the rest of a crash may go.
	return p, p.images.Sweep()
}

// stop ends the containers and the machine.
func (p *parts) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if err := errors.Join(p.engine.StopMachine(ctx), p.machine.Close(ctx)); err != nil {
		p.log.Error("stop machine", "error", err)
	}
}

func (p *parts) close() error {
	p.engine.Close()
	return errors.Join(p.tree.Close(), p.layers.Close())
}

// image finds an image for the engine.
func (p *parts) image(ref string) (engine.Image, error) {
	img, err := p.images.Get(ref)
	if err != nil {
		return engine.Image{}, err
	}
	var doc dockerspec.DockerOCIImage
	if err := json.Unmarshal(img.RawConfig, &doc); err != nil {
		return engine.Image{}, fmt.Errorf("image %s: configuration: %w", ref, err)
	}
	c := doc.Config
	cfg := &container.Config{
		User: c.User, Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd, Volumes: c.Volumes,
		WorkingDir: c.WorkingDir, Labels: c.Labels, StopSignal: c.StopSignal, Shell: c.Shell, Healthcheck: c.Healthcheck,
	}
	for port := range c.ExposedPorts {
		number, err := apinet.ParsePort(port)
		if err != nil {
			return engine.Image{}, fmt.Errorf("image %s: exposed port %q: %w", ref, port, err)
		}
		if cfg.ExposedPorts == nil {
			cfg.ExposedPorts = apinet.PortSet{}
		}
		cfg.ExposedPorts[number] = struct{}{}
	}
	return engine.Image{ID: img.ID, Layers: img.Layers, Arch: doc.Architecture, Config: cfg, Size: img.Size}, nil
}

// replays opens the stream for changes in shared folders.
func (p *parts) replays(ctx context.Context) (io.ReadWriteCloser, error) {
	g := p.machine.Running()
	if g == nil {
		return nil, errors.New("the machine does not run")
	}
	return g.Replays(ctx)
}

// exportOf keeps a nil *share.Export from becoming an interface that is not.
func exportOf(tree *share.Tree, path string, ro bool) (engine.Export, error) {
	x, err := tree.Export(path, ro)
	if err != nil {
		return nil, err
	}
	return x, nil
}

// socketOf is exportOf for sockets.
func socketOf(sockets *relay.Relay, path string) (engine.Export, error) {
	s, err := sockets.Add(path)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// quiet takes the virtual network's own log: it reports as errors what is no
// more than the end of a machine.
func quiet(log *slog.Logger) {
	logrus.SetOutput(logWriter{log})
	logrus.SetLevel(logrus.WarnLevel)
}

type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(p []byte) (int, error) {
	w.log.Debug("virtual network", "text", strings.TrimSpace(string(p)))
	return len(p), nil
}
