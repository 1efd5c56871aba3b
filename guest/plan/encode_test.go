package plan

import (
	"reflect"
	"testing"
)

// fill sets every field to something, so that one without a form is found.
func fill(v reflect.Value, n *int64) {
	*n++
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(-*n << 20)
	case reflect.Uint8, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		v.SetUint(uint64(*n))
	case reflect.String:
		v.SetString("text\x00é" + string(rune('a'+*n%26)))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 3, 3))
		for i := range 3 {
			fill(v.Index(i), n)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	}
}

func TestMachineForm(t *testing.T) {
	var full, got Machine
	n := int64(0)
	fill(reflect.ValueOf(&full).Elem(), &n)
	if err := got.Parse(full.Append(nil)); err != nil || !reflect.DeepEqual(got, full) {
		t.Errorf("%v\n%+v\n%+v", err, got, full)
	}
}

func TestForm(t *testing.T) {
	var full Plan
	n := int64(0)
	fill(reflect.ValueOf(&full).Elem(), &n)
	for _, p := range []Plan{{}, full} {
		b := p.Append(nil)
		var got Plan
		if err := got.Parse(b); err != nil || !reflect.DeepEqual(got, p) {
			t.Errorf("%v\n%+v\n%+v", err, got, p)
		}
		for i := range b {
			if err := got.Parse(b[:i]); err == nil {
				t.Fatalf("no error from the first %d of %d bytes", i, len(b))
			}
		}
		if err := got.Parse(append(b, 0)); err == nil {
			t.Error("no error from a byte too many")
		}
	}
}
