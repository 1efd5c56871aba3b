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
	if list := subordinate(filepath.Join("testdata", "subuid"), "nobody-there"); len(list) != 0 {
		t.Errorf("another's: %v", list)
	}
	if list := subordinate(filepath.Join("testdata", "subuid")); len(list) != 1 || list[0] != [2]uint64{100000, 165536} {
		t.Errorf("%v", list)
	}
}

// TestAround: the caller is one of the sandbox's ids, and every other is of the
// range, once.
func TestAround(t *testing.T) {
	for _, id := range []int{0, 1, 1000, rangeSize - 1, rangeSize, 1 << 20} {
		maps := around(id, 4321, 100000)
		seen := map[uint32]bool{}
		total := uint32(0)
		for _, m := range maps {
			total += m.Size
			for i := range m.Size {
				if seen[m.HostID+i] {
					t.Fatalf("%d: %d twice in %v", id, m.HostID+i, maps)
				}
				seen[m.HostID+i] = true
			}
		}
		if want := uint32(rangeSize); id < rangeSize && total != want || id >= rangeSize && total != want+1 {
			t.Errorf("%d: %d ids in %v", id, total, maps)
		}
		if host(maps, uint32(id)) != 4321 {
			t.Errorf("%d is %d outside: %v", id, host(maps, uint32(id)), maps)
		}
		for h := range seen {
			if h != 4321 && (h < 100000 || h >= 100000+rangeSize) {
				t.Errorf("%d: %d is not granted: %v", id, h, maps)
			}
		}
	}
}
