// Package startup makes the start of this program cheap: most commands are over after
// some milliseconds, of which a good part were page faults and collections of garbage.
package startup

import (
	"os"
	"runtime/debug"
	"time"
)

// Garbage collection waits until the heap has some times the size that would have it
// begin by default (4 MiB), and after a moment, in which most commands are over,
// is as it is by default. One that somebody set (GOGC) stays.
const (
	percent = 400
	moment  = 2 * time.Second
)

// Collect puts off the first collection of garbage. main calls it, once.
func Collect() {
	if os.Getenv("GOGC") != "" {
		return
	}
	before := debug.SetGCPercent(percent)
	time.AfterFunc(moment, func() { debug.SetGCPercent(before) })
}
