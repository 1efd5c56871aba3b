package microvm

import (
	"testing"
	"time"

	"github.com/axocoatl/isolation"
)

func TestReadLoad(t *testing.T) {
	u := isolation.Usage{Now: &isolation.Load{}}
	readMemory("MemTotal: 1000 kB\nMemFree:  400 kB\nActive(file): 100 kB\nInactive(file): 20 kB\nodd\nOther: x\n", &u)
	readCPU("cpu  1 2 3 400 5 6 7 8 9 10\ncpu0 1 2 3 4\ncpu1 1 2 3 4\nintr 5\n", &u)
	if want := (isolation.Load{CPUs: 2, Memory: 600 << 10, Cache: 120 << 10, MemoryTotal: 1000 << 10}); *u.Now != want || u.CPU != 190*time.Millisecond {
		t.Errorf("%+v %v", *u.Now, u.CPU)
	}
	// A guest may say what it likes.
	for _, text := range []string{"", "cpu", "cpu -1 -1 -1 -1 -1 -1 -1", "MemTotal:", "MemFree: 99999999999999999999 kB\nActive(file): -5 kB", "cpu 9223372036854775807 9223372036854775807 1 1 1 1 1"} {
		u := isolation.Usage{Now: &isolation.Load{}}
		readMemory(text, &u)
		readCPU(text, &u)
		if u.CPU < 0 || u.Now.Memory < 0 || u.Now.Cache < 0 || u.Now.MemoryTotal < 0 {
			t.Errorf("%q: %+v %v", text, *u.Now, u.CPU)
		}
	}
}
