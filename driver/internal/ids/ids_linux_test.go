package ids

import (
	"path/filepath"
	"testing"

	"github.com/axocoatl/isolation/internal/testprog"
)

func TestRanges(t *testing.T) {
	testprog.Root(t, "ranges are root's")
	file := filepath.Join(t.TempDir(), "ids")
	a, b := Ranges{fileName: file}, Ranges{fileName: file} // as in two programs
	seen := map[int]*Range{}
	for i := range 50 {
		r := &a
		if i%2 == 1 {
			r = &b
		}
		m, err := r.Take()
		if err != nil {
			t.Fatal(err)
		}
		if seen[m.Base] != nil {
			t.Fatalf("%d was taken twice", m.Base)
		}
		seen[m.Base] = m
		if m.Base%Size != 0 || m.Base < rangeFirst*Size || m.Base > rangeLast*Size {
			t.Fatalf("range at %d", m.Base)
		}
	}
	// What is given back can be taken again, also by the other.
	for base, m := range seen {
		m.File.Close()
		b.next = base/Size - rangeFirst
		again, err := b.Take()
		if err != nil || again.Base != base {
			t.Fatalf("%v, %v: want %d", again, err, base)
		}
		again.File.Close()
	}
	b.granted = [][2]uint64{{0, rangeLast * Size}}
	if m, err := b.Take(); err != nil || m.Base != rangeLast*Size {
		t.Errorf("%v, %v: want the last range, which is nobody's", m, err)
	}
	if list := Subordinate(filepath.Join("testdata", "subuid"), "nobody-there"); len(list) != 0 {
		t.Errorf("another's: %v", list)
	}
	if list := Subordinate(filepath.Join("testdata", "subuid")); len(list) != 1 || list[0] != [2]uint64{100000, 165536} {
		t.Errorf("%v", list)
	}
}
