package wasm

import (
	"fmt"
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

func (e childEnd) String() string {
	if e.stderr == "" {
		return e.status
	}
	return fmt.Sprintf("%s: %s", e.status, e.stderr)
}
