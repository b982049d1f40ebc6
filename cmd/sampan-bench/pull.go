package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"sampan/host/imagetest"
)

const (
	pullSize   = 300 << 20 // bytes of the large image, uncompressed
	pullLayers = 4
	pullMany   = 20
)

// pulls is a registry on loopback with images of this machine's own programs,
// and their compressed layers as files.
type pulls struct {
	b      *bench
	dir    string
	server *httptest.Server
	host   string
	layers []string // of the large image
	own    string   // of the second image, which has the large one's as well
	many   []string
}

// newPulls makes the images. The caller closes the server.
func newPulls(b *bench) (*pulls, error) {
	p := &pulls{b: b, dir: filepath.Join(b.dir, "pulls")}
	if err := os.Mkdir(p.dir, 0o755); err != nil {
		return nil, err
	}
	p.server = httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	p.host = strings.TrimPrefix(p.server.URL, "http://")
	tar, err := exec.Command("sh", "-c", fmt.Sprintf("tar -C / -cf - usr/lib usr/bin 2>/dev/null | head -c %d", pullSize+(32<<20))).Output()
	if err != nil {
		return nil, err
	}
	next := func(name string, size int) (v1.Layer, error) {
		part := tar[:min(size, len(tar))]
		tar = tar[len(part):]
		return p.layer(name, part)
	}
	var layers []v1.Layer
	for i := range pullLayers {
		l, err := next(fmt.Sprint("large", i), pullSize/pullLayers)
		if err != nil {
			return nil, err
		}
		layers, p.layers = append(layers, l), append(p.layers, filepath.Join(p.dir, fmt.Sprint("large", i)))
	}
	own, err := next("own", 16<<20)
	if err != nil {
		return nil, err
	}
	p.own = filepath.Join(p.dir, "own")
	if err := errors.Join(p.push("large", layers...), p.push("second", append(layers, own)...)); err != nil {
		return nil, err
	}
	// Both with the programs of busybox, the one below 300 MiB, as images have it.
	box, err := imagetest.Busybox()
	if err != nil {
		return nil, err
	}
	programs, err := box.Layers()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(p.push("program", programs...), p.push("programs", append(programs, layers...)...)); err != nil {
		return nil, err
	}
	for i := range pullMany {
		name := fmt.Sprint("many", i)
		l, err := next(name, 16<<20/pullMany)
		if err != nil {
			return nil, err
		}
		p.many = append(p.many, filepath.Join(p.dir, name))
		if err := p.push(name, l); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// layer has the bytes in small files, and is kept as a file as well.
func (p *pulls) layer(name string, b []byte) (v1.Layer, error) {
	l, err := imagetest.Layer(filesOf(name, b)...)
	if err != nil {
		return nil, err
	}
	r, err := l.Compressed()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	f, err := os.Create(filepath.Join(p.dir, name))
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(f, r)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	return tarball.LayerFromFile(f.Name())
}

// filesOf cuts bytes into files of 24 KiB, the middle of what images have.
func filesOf(name string, b []byte) []imagetest.File {
	var files []imagetest.File
	for i := 0; len(b) > 0; i++ {
		n := min(24<<10, len(b))
		files = append(files, imagetest.File{Name: fmt.Sprintf("%s/%d/%d", name, i/100, i), Data: bytes.Clone(b[:n])})
		b = b[n:]
	}
	return files
}

func (p *pulls) push(name string, layers ...v1.Layer) error {
	img, err := imagetest.Image(v1.Config{}, layers...)
	if err != nil {
		return err
	}
	return imagetest.Push(p.host+"/"+name, img)
}

// pull times the pull of images, all at once, and removes them.
func (p *pulls) pull(ctx context.Context, names ...string) (float64, error) {
	took, err := millis(func() error {
		var wg sync.WaitGroup
		errs := make([]error, len(names))
		for i, name := range names {
			wg.Go(func() { errs[i] = p.b.do(ctx, "pull", "-q", p.host+"/"+name) })
		}
		wg.Wait()
		return errors.Join(errs...)
	})
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		if err := p.b.do(ctx, "rmi", p.host+"/"+name); err != nil {
			return 0, err
		}
	}
	return took, nil
}

// hash times what nobody gets around: hashing and decompressing, all at once.
func hash(ctx context.Context, files ...string) (float64, error) {
	return millis(func() error {
		cmd := exec.CommandContext(ctx, "xargs", "-0", "-P", "4", "-n", "1", "sh", "-c", `sha256sum "$0" && gunzip -c <"$0"`)
		cmd.Stdin = strings.NewReader(strings.Join(files, "\x00"))
		return cmd.Run()
	})
}

// second times the pull of an image whose large layers are there.
func (p *pulls) second(ctx context.Context) (float64, error) {
	if err := p.b.do(ctx, "pull", "-q", p.host+"/large"); err != nil {
		return 0, err
	}
	took, err := p.pull(ctx, "second")
	return took, errors.Join(err, p.b.do(ctx, "rmi", p.host+"/large"))
}

// first pulls an image and measures its first run: how long that takes, or how
// many KiB the daemon reads meanwhile, for the guest above all.
func (p *pulls) first(ctx context.Context, name string, bytes bool) (v float64, err error) {
	if err := p.b.do(ctx, "pull", "-q", p.host+"/"+name); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.b.do(ctx, "rmi", p.host+"/"+name)) }()
	before, err := p.readSoFar()
	if err != nil {
		return 0, err
	}
	took, err := millis(func() error { return p.b.do(ctx, "run", "--rm", p.host+"/"+name, "true") })
	if err != nil || !bytes {
		return took, err
	}
	after, err := p.readSoFar()
	return (after - before) / 1024, err
}

// readSoFar is how many bytes the daemon has read from files and sockets.
func (p *pulls) readSoFar() (float64, error) {
	proc, err := p.proc()
	if err != nil {
		return 0, err
	}
	return number(filepath.Join(proc, "io"), "rchar:")
}

// proc is the daemon's folder below /proc.
func (p *pulls) proc() (string, error) {
	pid, err := os.ReadFile(filepath.Join(p.b.home, "sampand.pid"))
	return filepath.Join("/proc", strings.TrimSpace(string(pid))), err
}

// number reads what follows a word in a file.
func number(path, word string) (v float64, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), word)
	_, err = fmt.Sscan(rest, &v)
	return v, err
}

// memory is the daemon's largest resident set while it pulls, in MiB.
func (p *pulls) memory(ctx context.Context) (float64, error) {
	proc, err := p.proc()
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(filepath.Join(proc, "clear_refs"), []byte("5"), 0); err != nil { // forget the largest so far
		return 0, err
	}
	if _, err := p.pull(ctx, append(p.manyNames(), "large")...); err != nil {
		return 0, err
	}
	kib, err := number(filepath.Join(proc, "status"), "VmHWM:")
	return kib / 1024, err
}

func (p *pulls) manyNames() []string {
	var names []string
	for i := range pullMany {
		names = append(names, fmt.Sprint("many", i))
	}
	return names
}

// pullRows are about images. Their registry is made by the first that runs.
func (b *bench) pullRows() []row {
	get := sync.OnceValues(func() (*pulls, error) { return newPulls(b) }) // ends with the process
	with := func(f func(context.Context, *pulls) (float64, error)) func(context.Context) (float64, error) {
		return func(ctx context.Context) (float64, error) {
			p, err := get()
			if err != nil {
				return 0, err
			}
			return f(ctx, p)
		}
	}
	return []row{
		{"pull: 300 MiB in 4 layers from loopback, to runnable", "`sha256sum` and `gunzip` of the same layers, 4 at once", "gzip, two hashes, and writing 300 MiB to disk durably", "ms",
			with(func(ctx context.Context, p *pulls) (float64, error) { return p.pull(ctx, "large") }),
			with(func(ctx context.Context, p *pulls) (float64, error) { return hash(ctx, p.layers...) })},
		{"pull: an image of 316 MiB of which 300 are there", "the same of the new layer", "the new layer, and the documents", "ms",
			with(func(ctx context.Context, p *pulls) (float64, error) { return p.second(ctx) }),
			with(func(ctx context.Context, p *pulls) (float64, error) { return hash(ctx, p.own) })},
		{"pull: 20 small images at once", "the same of their layers", "20 starts of the client, and syncing each image", "ms",
			with(func(ctx context.Context, p *pulls) (float64, error) { return p.pull(ctx, p.manyNames()...) }),
			with(func(ctx context.Context, p *pulls) (float64, error) { return hash(ctx, p.many...) })},
		{"pull: the daemon's memory while it pulls all of these", "what we allow it", "4 layers' decoders and buffers", "MiB",
			with(func(ctx context.Context, p *pulls) (float64, error) { return p.memory(ctx) }),
			func(context.Context) (float64, error) { return 150, nil }},
		{"first `run` of an image with 300 MiB more, just pulled", "the same without them", "four mounts", "ms",
			with(func(ctx context.Context, p *pulls) (float64, error) { return p.first(ctx, "programs", false) }),
			with(func(ctx context.Context, p *pulls) (float64, error) { return p.first(ctx, "program", false) })},
		{"first `run`: what is read for that image", "the same without them", "superblocks and folders of four layers", "KiB",
			with(func(ctx context.Context, p *pulls) (float64, error) { return p.first(ctx, "programs", true) }),
			with(func(ctx context.Context, p *pulls) (float64, error) { return p.first(ctx, "program", true) })},
	}
}
