package oci

import (
	"os"
	"path/filepath"
	"testing"
)

func TestRanges(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("ranges are root's")
	}
	file := filepath.Join(t.TempDir(), "ids")
	a, b := ranges{fileName: file}, ranges{fileName: file} // as in two programs
	seen := map[int]*idMap{}
	for i := range 50 {
		r := &a
		if i%2 == 1 {
			r = &b
		}
		m, err := r.take()
		if err != nil {
			t.Fatal(err)
		}
		if seen[m.base] != nil {
			t.Fatalf("%d was taken twice", m.base)
		}
		seen[m.base] = m
		if m.base%rangeSize != 0 || m.base < rangeFirst*rangeSize || m.base > rangeLast*rangeSize {
			t.Fatalf("range at %d", m.base)
		}
	}
	// What is given back can be taken again, also by the other.
	for base, m := range seen {
		m.release()
		b.next = base/rangeSize - rangeFirst
		again, err := b.take()
		if err != nil || again.base != base {
			t.Fatalf("%v, %v: want %d", again, err, base)
		}
		again.release()
	}
	b.granted = [][2]uint64{{0, rangeLast * rangeSize}}
	if m, err := b.take(); err != nil || m.base != rangeLast*rangeSize {
		t.Errorf("%v, %v: want the last range, which is nobody's", m, err)
	}
	if list := subordinate(filepath.Join("testdata", "subuid")); len(list) != 1 || list[0] != [2]uint64{100000, 165536} {
		t.Errorf("%v", list)
	}
}
