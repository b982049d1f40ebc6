package stage2

import (
	"encoding/binary"
	"errors"
)

// A coder appends values to text, or takes them from it in the same order: each
// type lists its fields once, for both. Numbers are varints; texts, byte arrays
// and lists have their length before them. JSON would do, but in a fresh
// process under emulation it costs 10 ms.
type coder struct {
	text    []byte
	reading bool
	short   bool // there was less to read than the fields take
}

var errShort = errors.New("text is cut off or has something left over")

// Encode is the plan in the form that Decode reads.
func (p *Plan) Encode() []byte {
	var c coder
	p.code(&c)
	return c.text
}

// Decode sets the plan to what Encode made.
func (p *Plan) Decode(text []byte) error {
	c := coder{text: text, reading: true}
	p.code(&c)
	return c.end()
}

// Encode is the message in the form that Decode reads.
func (m *Message) Encode() []byte {
	var c coder
	m.code(&c)
	return c.text
}

// Decode sets the message to what Encode made.
func (m *Message) Decode(text []byte) error {
	c := coder{text: text, reading: true}
	m.code(&c)
	return c.end()
}

// end tells whether what was read is what there was.
func (c *coder) end() error {
	if c.short || len(c.text) > 0 {
		return errShort
	}
	return nil
}

func (c *coder) word(v *uint64) {
	if !c.reading {
		c.text = binary.AppendUvarint(c.text, *v)
		return
	}
	n := 0
	if *v, n = binary.Uvarint(c.text); n <= 0 {
		c.short, c.text, *v = true, nil, 0
		return
	}
	c.text = c.text[n:]
}

// number is any integer; a negative one takes ten bytes.
func number[T ~int | ~uint | ~uint16 | ~uint32 | ~uint64](c *coder, v *T) {
	word := uint64(*v)
	c.word(&word)
	*v = T(word)
}

func (c *coder) flag(v *bool) {
	word := uint64(0)
	if *v {
		word = 1
	}
	c.word(&word)
	*v = word != 0
}

// length codes n, and never reads more than there can be.
func (c *coder) length(n int) int {
	word := uint64(n)
	c.word(&word)
	if c.reading && word > uint64(len(c.text)) {
		c.short, c.text, word = true, nil, 0
	}
	return int(word)
}

func (c *coder) bytes(v *[]byte) {
	n := c.length(len(*v))
	if !c.reading {
		c.text = append(c.text, *v...)
		return
	}
	*v, c.text = c.text[:n:n], c.text[n:]
}

func (c *coder) string(v *string) {
	b := []byte(*v)
	c.bytes(&b)
	*v = string(b)
}

// list codes each of a list's items, which take at least a byte.
func list[T any](c *coder, v *[]T, item func(*T)) {
	n := c.length(len(*v))
	if c.reading {
		*v = make([]T, n)
	}
	for i := range *v {
		item(&(*v)[i])
	}
}

func (p *Plan) code(c *coder) {
	list(c, &p.Join, func(n *Namespace) { number(c, &n.FD); number(c, &n.Flags) })
	isCreate := p.Root != nil
	if c.flag(&isCreate); isCreate {
		if c.reading {
			p.Root = new(Root)
		}
		p.Root.code(c)
	}
	number(c, &p.PidFD)
	number(c, &p.CgroupFD)
	p.Process.code(c)
}

func (r *Root) code(c *coder) {
	number(c, &r.FD)
	number(c, &r.Propagation)
	c.flag(&r.ReadOnly)
	c.flag(&r.NewCgroupNS)
	c.flag(&r.NewNetNS)
	list(c, &r.Mounts, func(m *Mount) { m.code(c) })
	list(c, &r.Devices, func(d *Device) { d.code(c) })
	c.flag(&r.DevLinks)
	c.string(&r.Hostname)
	c.string(&r.Domain)
	list(c, &r.Sysctls, func(s *Sysctl) { c.string(&s.Path); c.string(&s.Value) })
	list(c, &r.Masked, c.string)
	list(c, &r.ReadPaths, c.string)
}

func (m *Mount) code(c *coder) {
	c.string(&m.Dest)
	c.string(&m.Type)
	c.string(&m.Source)
	number(c, &m.FD)
	list(c, &m.Options, c.string)
	number(c, &m.Set)
	number(c, &m.Clear)
	number(c, &m.RecSet)
	number(c, &m.RecClear)
	c.flag(&m.Recursive)
	number(c, &m.Propagation)
	c.flag(&m.PropRec)
}

func (d *Device) code(c *coder) {
	c.string(&d.Path)
	number(c, &d.Mode)
	number(c, &d.Major)
	number(c, &d.Minor)
	number(c, &d.UID)
	number(c, &d.GID)
}

func (p *Process) code(c *coder) {
	list(c, &p.Args, c.string)
	list(c, &p.Env, c.string)
	c.string(&p.Cwd)
	number(c, &p.InitFD)
	number(c, &p.UID)
	number(c, &p.GID)
	list(c, &p.Groups, func(g *uint32) { number(c, g) })
	number(c, &p.Umask)
	list(c, &p.Rlimits, func(l *Rlimit) { number(c, &l.Resource); number(c, &l.Soft); number(c, &l.Hard) })
	hasScore := p.OOMScoreAdj != nil
	if c.flag(&hasScore); hasScore {
		if c.reading {
			p.OOMScoreAdj = new(int)
		}
		number(c, p.OOMScoreAdj)
	}
	for _, set := range []*uint64{&p.Bounding, &p.Effective, &p.Permitted, &p.Inheritable, &p.Ambient} {
		number(c, set)
	}
	number(c, &p.LastCap)
	c.flag(&p.NoNewPrivs)
	c.bytes(&p.Seccomp)
	number(c, &p.SeccompFlags)
	c.flag(&p.Terminal)
	number(c, &p.Rows)
	number(c, &p.Columns)
	for i := range p.Null {
		c.flag(&p.Null[i])
	}
}

func (m *Message) code(c *coder) {
	c.string(&m.Kind)
	number(c, &m.Pid)
	number(c, &m.More)
	c.string(&m.Pids)
	c.string(&m.Err)
	c.string(&m.Class)
}
