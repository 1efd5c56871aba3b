package bench

import (
	"slices"
	"testing"
	"time"
)

// contender is one way to do a thing. setUp is not timed, and hands on what the
// timed part needs; nil: nothing is needed.
type contender struct {
	name  string
	setUp func(b *testing.B) (run, tearDown func())
}

// plain is a contender that needs no set-up.
func plain(name string, run func()) contender {
	return contender{name, func(*testing.B) (func(), func()) { return run, func() {} }}
}

// compare runs the contenders in turn, so that all see the same noise, and
// reports the median of each and its ratio to the first, the floor. With idle
// each run begins on a machine that did nothing for that long, as most runs of
// most users do; without, back to back.
func compare(b *testing.B, idle time.Duration, all ...contender) {
	b.Helper()
	took := make([][]time.Duration, len(all))
	for b.Loop() {
		for i, c := range all {
			run, tearDown := c.setUp(b)
			time.Sleep(idle)
			began := time.Now()
			run()
			took[i] = append(took[i], time.Since(began))
			tearDown()
		}
	}
	b.ReportMetric(0, "ns/op") // of a whole round: it says nothing
	var floor float64
	for i, c := range all {
		slices.Sort(took[i])
		us := float64(took[i][len(took[i])/2].Microseconds())
		// What it would take on a machine with nothing else to do, about.
		b.ReportMetric(float64(took[i][len(took[i])/10].Microseconds()), c.name+"-p10-us")
		if i == 0 {
			floor = us
		}
		b.ReportMetric(us, c.name+"-us")
		if i > 0 {
			b.ReportMetric(us/floor, c.name+"-x")
		}
	}
}

// both runs compare back to back and after 40 ms of idleness.
func both(b *testing.B, all ...contender) {
	b.Run("back-to-back", func(b *testing.B) { compare(b, 0, all...) })
	b.Run("idle", func(b *testing.B) { compare(b, 40*time.Millisecond, all...) })
}
