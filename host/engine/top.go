package engine

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"sampan/proto"
)

// Top lists a container's processes as ps does with those arguments; the empty
// ones are Docker's, "-ef".
func (e *Engine) Top(ctx context.Context, name, psArgs string) (container.TopResponse, error) {
	none := container.TopResponse{}
	columns, err := psColumns(psArgs)
	if err != nil {
		return none, err
	}
	c, err := e.find(name)
	if err != nil {
		return none, err
	}
	r, err := c.running()
	if err != nil {
		return none, err
	}
	list, err := r.guest.Processes(ctx, &proto.ProcessRequest{Container: c.id})
	if err != nil {
		return none, fmt.Errorf("top of container %s: %s", name, message(err))
	}
	e.emitContainer(c, events.ActionTop, nil)
	return psTable(columns, list), nil
}

// psColumn is a column of ps.
type psColumn struct {
	title string
	cell  func(*proto.ProcessInfo, *proto.ProcessesResponse) string
}

// psFields are the columns of `ps -o`, by name.
var psFields = map[string]psColumn{
	"uid":   {"UID", func(p *proto.ProcessInfo, _ *proto.ProcessesResponse) string { return fmt.Sprint(p.Uid) }},
	"user":  {"USER", func(p *proto.ProcessInfo, _ *proto.ProcessesResponse) string { return psUser(p.Uid) }},
	"gid":   {"GID", func(p *proto.ProcessInfo, _ *proto.ProcessesResponse) string { return fmt.Sprint(p.Gid) }},
	"group": {"GROUP", func(p *proto.ProcessInfo, _ *proto.ProcessesResponse) string { return psUser(p.Gid) }},
	"pid":   {"PID", func(p *proto.ProcessInfo, _ *proto.ProcessesResponse) string { return fmt.Sprint(p.Pid) }},
	"ppid":  {"PPID", func(p *proto.ProcessInfo, _ *proto.ProcessesResponse) string { return fmt.Sprint(p.Parent) }},
	"pgid":  {"PGID", func(p *proto.ProcessInfo, _ *proto.ProcessesResponse) string { return fmt.Sprint(p.Group) }},
	"sid":   {"SID", func(p *proto.ProcessInfo, _ *proto.ProcessesResponse) string { return fmt.Sprint(p.Session) }},
	"c": {"C", func(p *proto.ProcessInfo, l *proto.ProcessesResponse) string {
		return fmt.Sprintf("%.0f", min(psCPU(p, l), 99))
	}},
	"%cpu":   {"%CPU", func(p *proto.ProcessInfo, l *proto.ProcessesResponse) string { return fmt.Sprintf("%.1f", psCPU(p, l)) }},
	"%mem":   {"%MEM", psMemory},
	"vsz":    {"VSZ", func(p *proto.ProcessInfo, _ *proto.ProcessesResponse) string { return fmt.Sprint(p.Virtual >> 10) }},
	"rss":    {"RSS", func(p *proto.ProcessInfo, _ *proto.ProcessesResponse) string { return fmt.Sprint(p.Resident >> 10) }},
	"tty":    {"TT", func(p *proto.ProcessInfo, _ *proto.ProcessesResponse) string { return psTTY(p.Tty) }},
	"stat":   {"STAT", func(p *proto.ProcessInfo, _ *proto.ProcessesResponse) string { return psState(p) }},
	"s":      {"S", func(p *proto.ProcessInfo, _ *proto.ProcessesResponse) string { return p.State }},
	"ni":     {"NI", func(p *proto.ProcessInfo, _ *proto.ProcessesResponse) string { return fmt.Sprint(p.Nice) }},
	"pri":    {"PRI", func(p *proto.ProcessInfo, _ *proto.ProcessesResponse) string { return fmt.Sprint(39 - p.Priority) }},
	"nlwp":   {"NLWP", func(p *proto.ProcessInfo, _ *proto.ProcessesResponse) string { return fmt.Sprint(p.Threads) }},
	"stime":  {"STIME", psStarted},
	"start":  {"START", psStarted},
	"lstart": {"STARTED", func(p *proto.ProcessInfo, l *proto.ProcessesResponse) string { return psStart(p, l).Format(time.ANSIC) }},
	"etime": {"ELAPSED", func(p *proto.ProcessInfo, l *proto.ProcessesResponse) string {
		return psElapsed(time.Duration(l.UptimeNano - p.StartNano))
	}},
	"etimes": {"ELAPSED", func(p *proto.ProcessInfo, l *proto.ProcessesResponse) string {
		return fmt.Sprint((l.UptimeNano - p.StartNano) / 1e9)
	}},
	"time": {"TIME", func(p *proto.ProcessInfo, _ *proto.ProcessesResponse) string { return psLong(time.Duration(p.CpuNano)) }},
	"bsdtime": {"TIME", func(p *proto.ProcessInfo, _ *proto.ProcessesResponse) string {
		return psShort(time.Duration(p.CpuNano))
	}},
	"comm": {"COMMAND", func(p *proto.ProcessInfo, _ *proto.ProcessesResponse) string { return p.Name }},
	"args": {"COMMAND", psCommand},
}

// psNames are other names of fields.
var psNames = map[string]string{
	"euid": "uid", "euser": "user", "uname": "user", "egid": "gid", "egroup": "group", "pgrp": "pgid", "sess": "sid", "session": "sid",
	"pcpu": "%cpu", "pmem": "%mem", "vsize": "vsz", "rssize": "rss", "rsz": "rss", "tname": "tty", "tt": "tty", "state": "s",
	"nice": "ni", "thcount": "nlwp", "start_time": "stime", "bsdstart": "start", "cputime": "time", "ucmd": "comm", "ucomm": "comm",
	"cmd": "args", "command": "args",
}

// psFull and psBSD are the columns of `ps -ef` and `ps aux`.
var (
	psFull = []string{"user=UID", "pid", "ppid", "c", "stime", "tty=TTY", "time", "args=CMD"}
	psBSD  = []string{"user", "pid", "%cpu", "%mem", "vsz", "rss", "tty=TTY", "stat", "start", "bsdtime", "args"}
)

// psColumns reads arguments of ps. Which processes they select doesn't matter:
// the container's are shown, all of them.
func psColumns(args string) ([]psColumn, error) {
	var fields []string
	layout := []string(nil)
	words := strings.Fields(args)
	for i := 0; i < len(words); i++ {
		w := words[i]
		flags := strings.TrimPrefix(w, "-")
		before, list, custom := strings.Cut(flags, "o")
		if strings.Trim(before, "eAaxdw") != "" && custom {
			return nil, unsupported("ps %s", w)
		}
		switch {
		case custom && list == "":
			if i++; i == len(words) {
				return nil, invalid("ps: format specification must follow -o")
			}
			list = words[i]
			fallthrough
		case custom:
			fields = append(fields, strings.Split(list, ",")...)
		case strings.HasPrefix(w, "-") && strings.Contains(flags, "f") && strings.Trim(flags, "eAfw") == "":
			layout = psFull
		case strings.Contains(flags, "u") && strings.Trim(flags, "auxw") == "":
			layout = psBSD
		case strings.Trim(flags, "eAaxw") == "":
		default:
			return nil, unsupported("ps %s", w)
		}
	}
	if fields == nil {
		if fields = layout; fields == nil {
			if len(words) > 0 {
				fields = []string{"pid", "tty=TTY", "time", "comm=CMD"}
			} else {
				fields = psFull
			}
		}
	}
	var columns []psColumn
	hasPID := false
	for _, f := range fields {
		name, title, titled := strings.Cut(f, "=")
		if other, ok := psNames[name]; ok {
			name = other
		}
		c, ok := psFields[name]
		if !ok {
			return nil, unsupported("the column %q of ps", name)
		}
		if titled {
			c.title = title
		}
		hasPID = hasPID || c.title == "PID"
		columns = append(columns, c)
	}
	if !hasPID {
		return nil, invalid("Couldn't find PID field in ps output")
	}
	return columns, nil
}

func psTable(columns []psColumn, list *proto.ProcessesResponse) container.TopResponse {
	t := container.TopResponse{Processes: [][]string{}}
	for _, c := range columns {
		t.Titles = append(t.Titles, c.title)
	}
	slices.SortFunc(list.Processes, func(a, b *proto.ProcessInfo) int { return int(a.Pid) - int(b.Pid) })
	for _, p := range list.Processes {
		var row []string
		for _, c := range columns {
			row = append(row, c.cell(p, list))
		}
		t.Processes = append(t.Processes, row)
	}
	return t
}

// psUser names who owns a process, by the guest's book: it knows root alone.
func psUser(id uint32) string {
	if id == 0 {
		return "root"
	}
	return strconv.FormatUint(uint64(id), 10)
}

// psCPU is the share of a processor since the process began, in percent.
func psCPU(p *proto.ProcessInfo, l *proto.ProcessesResponse) float64 {
	if age := l.UptimeNano - p.StartNano; age > 0 {
		return 100 * float64(p.CpuNano) / float64(age)
	}
	return 0
}

func psMemory(p *proto.ProcessInfo, l *proto.ProcessesResponse) string {
	if l.MemoryTotal == 0 {
		return "0.0"
	}
	return fmt.Sprintf("%.1f", 100*float64(p.Resident)/float64(l.MemoryTotal))
}

func psStart(p *proto.ProcessInfo, l *proto.ProcessesResponse) time.Time {
	return time.Unix(0, l.TimeUnixNano-(l.UptimeNano-p.StartNano))
}

// psStarted is the time of day, and the day when that is another.
func psStarted(p *proto.ProcessInfo, l *proto.ProcessesResponse) string {
	at, now := psStart(p, l), time.Unix(0, l.TimeUnixNano)
	switch {
	case at.Year() != now.Year():
		return at.Format("2006")
	case at.YearDay() != now.YearDay():
		return at.Format("Jan02")
	}
	return at.Format("15:04")
}

// psTTY names a terminal by the kernel's number for it.
func psTTY(n uint32) string {
	major, minor := n>>8&0xfff, n&0xff|n>>12&0xfff00
	switch {
	case n == 0:
		return "?"
	case major >= 136 && major <= 143:
		return fmt.Sprintf("pts/%d", minor+(major-136)<<8)
	case major == 4 && minor < 64:
		return fmt.Sprintf("tty%d", minor)
	case major == 4:
		return fmt.Sprintf("ttyS%d", minor-64)
	case major == 5 && minor == 1:
		return "console"
	}
	return "?"
}

func psState(p *proto.ProcessInfo) string {
	s := p.State
	for _, f := range []struct {
		on   bool
		mark string
	}{
		{p.Nice < 0, "<"}, {p.Nice > 0, "N"}, {p.Locked > 0, "L"}, {p.Session == p.Pid, "s"},
		{p.Threads > 1, "l"}, {p.Foreground > 0 && p.Foreground == p.Group, "+"},
	} {
		if f.on {
			s += f.mark
		}
	}
	return s
}

func psCommand(p *proto.ProcessInfo, _ *proto.ProcessesResponse) string {
	switch {
	case len(p.Args) > 0:
		return strings.Join(p.Args, " ")
	case p.State == "Z":
		return "[" + p.Name + "] <defunct>"
	}
	return "[" + p.Name + "]"
}

// psLong is [DAYS-]HH:MM:SS.
func psLong(d time.Duration) string {
	s := int(d / time.Second)
	text := fmt.Sprintf("%02d:%02d:%02d", s/3600%24, s/60%60, s%60)
	if days := s / 86400; days > 0 {
		return fmt.Sprintf("%d-%s", days, text)
	}
	return text
}

// psShort is M:SS.
func psShort(d time.Duration) string {
	s := int(d / time.Second)
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}

// psElapsed is [[DAYS-]HH:]MM:SS.
func psElapsed(d time.Duration) string {
	if d < time.Hour {
		s := int(d / time.Second)
		return fmt.Sprintf("%02d:%02d", s/60, s%60)
	}
	return psLong(d)
}
