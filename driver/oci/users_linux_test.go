package oci

import "testing"

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
