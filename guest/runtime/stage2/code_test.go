package stage2

import (
	"reflect"
	"testing"
)

// fill sets everything in v to something other than zero.
func fill(v reflect.Value, next *int) {
	*next++
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), next)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), next)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(v.Index(i), next)
		}
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), next)
		}
	case reflect.String:
		v.SetString(string(rune('a' + *next%26)))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int:
		v.SetInt(int64(-*next))
	default:
		v.SetUint(uint64(*next) % 256)
	}
}

// TestCode: no field of a plan or a message is forgotten on the way.
func TestCode(t *testing.T) {
	var plan, got Plan
	fill(reflect.ValueOf(&plan).Elem(), new(int))
	if err := got.Decode(plan.Encode()); err != nil || !reflect.DeepEqual(plan, got) {
		t.Errorf("%v\n got %+v\nwant %+v", err, got, plan)
	}
	var m, back Message
	fill(reflect.ValueOf(&m).Elem(), new(int))
	if err := back.Decode(m.Encode()); err != nil || m != back {
		t.Errorf("%v, got %+v, want %+v", err, back, m)
	}
	// An exec's plan has no root.
	exec := Plan{PidFD: 1}
	if err := got.Decode(exec.Encode()); err != nil || got.PidFD != 1 {
		t.Errorf("exec: %v, %+v", err, got)
	}
	text := plan.Encode()
	for n := range text {
		if err := new(Plan).Decode(text[:n]); err == nil {
			t.Fatalf("%d of %d bytes are taken for a plan", n, len(text))
		}
	}
	if err := new(Plan).Decode(append(text, 0)); err == nil {
		t.Error("a byte too many is no error")
	}
}

// FuzzCode: whatever comes, decoding ends, and takes no more memory than the
// text can mean.
func FuzzCode(f *testing.F) {
	var plan Plan
	fill(reflect.ValueOf(&plan).Elem(), new(int))
	f.Add(plan.Encode())
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, text []byte) {
		var p Plan
		if p.Decode(text) == nil && new(Plan).Decode(p.Encode()) != nil {
			t.Error("can't be read a second time")
		}
	})
}
