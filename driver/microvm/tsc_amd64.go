package microvm

import "time"

// rdtsc reads the time stamp counter.
func rdtsc() uint64

// tscKHz measures the rate of the time stamp counter, which an emulated machine
// has from its host. A guest that measures it itself may never come to an end on
// a busy host. The shortest of some measurements counts: what makes one wrong
// makes it longer.
func tscKHz() int {
	best, rate := time.Duration(1<<62), 0.0
	for range 5 {
		begin, from := time.Now(), rdtsc()
		time.Sleep(10 * time.Millisecond)
		took, n := time.Since(begin), rdtsc()-from
		if took < best {
			best, rate = took, float64(n)/took.Seconds()
		}
	}
	return int(rate / 1000)
}
