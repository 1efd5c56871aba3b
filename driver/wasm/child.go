package wasm

import (
	"fmt"
	"strings"
	"time"
)

// childEnd is how a worker process ended.
type childEnd struct {
	status      string // "exited with status 1", "ended by SIGKILL"
	cpu         time.Duration
	cpuLimit    bool   // its CPU time limit ended it
	memoryLimit bool   // a memory limit ended it
	stderr      string // the last of what it said, bounded
}

// outOfMemory tells by its last words that a worker was refused memory: a Go
// program says the first, a Rust program the second.
func outOfMemory(stderr string) bool {
	return strings.Contains(stderr, "out of memory") || strings.Contains(stderr, "memory allocation of ")
}

func (e childEnd) String() string {
	if e.stderr == "" {
		return e.status
	}
	return fmt.Sprintf("%s: %s", e.status, e.stderr)
}
