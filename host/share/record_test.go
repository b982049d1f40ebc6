package share

import "testing"

func TestRecordText(t *testing.T) {
	for _, c := range []struct {
		r    record
		want string
	}{
		{record{0, 0, 0o644, 0o644}, "1:0:0:0644:0644"},
		{record{1000, 100, 0o4755, 0o755}, "1:1000:100:04755:0755"},
		{record{unset, unset, 0o444, 0o644}, "1:-:-:0444:0644"},
		{record{unset - 1, unset - 1, 0, 0o7777}, "1:4294967294:4294967294:00:07777"},
	} {
		got := string(c.r.append(nil))
		if got != c.want || len(got) > maxRecord {
			t.Errorf("%+v: %q, want %q", c.r, got, c.want)
		}
		if back, err := parseRecord([]byte(got)); err != nil || back != c.r {
			t.Errorf("parse %q: %+v, %v", got, back, err)
		}
	}
}

func TestRecordVisible(t *testing.T) {
	for _, c := range []struct {
		name string
		r    record
		host uint32
		want uint32
	}{
		{"host's file", noRecord(), 0o644, 0o644},
		{"host's setuid file", noRecord(), 0o6755, 0o755},
		{"recorded", record{0, 0, 0o4711, 0o711}, 0o711, 0o4711},
		{"host changed it", record{0, 0, 0o444, 0o644}, 0o755, 0o755},
		{"mode only", record{unset, unset, 0o444, 0o644}, 0o644, 0o444},
		{"setuid of nobody", record{unset, unset, 0o4755, 0o755}, 0o755, 0o755},
	} {
		if got := c.r.visible(c.host); got != c.want {
			t.Errorf("%s: %o, want %o", c.name, got, c.want)
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	for _, s := range []string{"1:0:0:0644:0644", "1:-:-:0:0", "", "2:0:0:0:0", "1:4294967295:0:0:0", "1:0:0:17777:0"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(b)
		if err != nil {
			return
		}
		if back, err := parseRecord(r.append(nil)); err != nil || back != r {
			t.Fatalf("%q: %+v becomes %+v, %v", b, r, back, err)
		}
		if r.mode > 0o7777 || r.hostMode > 0o7777 {
			t.Fatalf("%q: %+v", b, r)
		}
	})
}
