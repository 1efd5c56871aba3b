package microvm

import (
	"reflect"
	"testing"
)

// TestKey: a template whose key differs in any part is not used, and it is told in
// which.
func TestKey(t *testing.T) {
	k := Key{
		Layout: 1, Binary: identity{1, 2, 3, 4}, CPU: "a", Kernel: "k", Guest: "g", Source: "s", MemoryMiB: 640, CPUs: 1, Session: true,
	}
	if why := k.differs(k); why != "" {
		t.Errorf("the same: %s", why)
	}
	v := reflect.ValueOf(k)
	told := map[string]bool{}
	for i := range v.NumField() {
		other := k
		f := reflect.ValueOf(&other).Elem().Field(i)
		if f.IsZero() {
			t.Errorf("%s is not tested", v.Type().Field(i).Name)
		}
		f.SetZero()
		why := k.differs(other)
		if why == "" || told[why] || other.differs(k) != why {
			t.Errorf("%s: %q", v.Type().Field(i).Name, why)
		}
		told[why] = true
	}
}
