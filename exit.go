package isolation

import (
	"encoding/json"
	"fmt"
	"time"
)

// Exit is the result of a program. It is a fact, not an error: a program that
// failed, trapped or ran out of time has an Exit.
type Exit struct {
	// Code is the program's own exit status, and -1 unless Reason is exited
	// or it had ended by itself before the limit counted.
	Code int `json:"code"`
	// Signal ended the process; 0 when none did.
	Signal Signal `json:"signal"`
	// Reason says what ended the process.
	Reason Reason `json:"reason"`
	// Detail is one line for a person: the trap, the limit, what was lost.
	Detail string `json:"detail,omitempty"`
	// LimitsHit is what the process ran into, also when it then exited 0, and
	// the limit that ended it, if one did.
	LimitsHit []LimitHit `json:"limits_hit"`
	Usage     Usage      `json:"usage"`
	Stdout    Output     `json:"stdout"`
	Stderr    Output     `json:"stderr"`
	// Survivors is how many background processes were left when this one
	// ended. They live until the sandbox is deleted.
	Survivors int `json:"survivors,omitempty"`
}

// Success reports whether the program exited by itself with status 0.
func (e Exit) Success() bool { return e.Reason == ReasonExited && e.Code == 0 }

// String is one line for a person.
func (e Exit) String() string {
	s := string(e.Reason)
	switch e.Reason {
	case ReasonExited:
		s = fmt.Sprintf("exited with status %d", e.Code)
	case ReasonSignaled:
		s = "ended by " + e.Signal.String()
	}
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	return s
}

// Reason says what ended a process.
type Reason string

// The reasons.
const (
	ReasonExited        Reason = "exited"         // by itself; see Code
	ReasonSignaled      Reason = "signaled"       // by a signal: its own, another's, or Kill's
	ReasonTimeoutWall   Reason = "timeout_wall"   // Limits.Wall
	ReasonTimeoutCPU    Reason = "timeout_cpu"    // Limits.CPU
	ReasonOOM           Reason = "oom"            // the kernel killed it, or memory was refused and it then failed
	ReasonOutputLimit   Reason = "output_limit"   // Limits.OutputBytes
	ReasonFuelExhausted Reason = "fuel_exhausted" // Limits.Fuel
	ReasonTrap          Reason = "trap"           // WASM: see Detail
	ReasonPolicyDenied  Reason = "policy_denied"  // it did what it may not, and that ends it
	ReasonCanceled      Reason = "canceled"       // the caller deleted the sandbox or gave up
	ReasonSandboxLost   Reason = "sandbox_lost"   // what carried it died: see Detail
)

// Reasons returns all reasons.
func Reasons() []Reason {
	return []Reason{
		ReasonExited, ReasonSignaled, ReasonTimeoutWall, ReasonTimeoutCPU, ReasonOOM, ReasonOutputLimit,
		ReasonFuelExhausted, ReasonTrap, ReasonPolicyDenied, ReasonCanceled, ReasonSandboxLost,
	}
}

// Limit names something that can be limited.
type Limit string

// The limits.
const (
	LimitWall    Limit = "wall"
	LimitCPUTime Limit = "cpu_time"
	LimitFuel    Limit = "fuel"
	LimitOutput  Limit = "output"
	LimitFiles   Limit = "open_files"
	LimitMemory  Limit = "memory"
	LimitCPUs    Limit = "cpus"
	LimitPids    Limit = "pids"
	LimitDisk    Limit = "disk"
	LimitIO      Limit = "io"
	LimitStack   Limit = "stack"
	LimitTable   Limit = "table"
)

// LimitHit is a limit that a process ran into.
type LimitHit struct {
	Limit Limit `json:"limit"`
	Count int64 `json:"count"`           // how often it was refused; at least 1
	Value int64 `json:"value,omitempty"` // the limit: bytes, tasks, files, ns, units
}

// Output accounts for one stream.
type Output struct {
	Bytes   int64 `json:"bytes"`             // all that the program wrote
	Dropped int64 `json:"dropped,omitempty"` // of these, what did not reach the caller
	// Cut: the sandbox went, or said nothing more, before the output's end came.
	// The program may have written more than Bytes.
	Cut bool `json:"cut,omitempty"`
}

// Usage is what a run used. Zero times and sizes were not measured or are
// below the resolution; PeakMemoryBytes is -1 where the tier cannot tell.
type Usage struct {
	Wall            time.Duration // start of the process to its end
	CPU             time.Duration // user and system
	PeakMemoryBytes int64         // of the program: WASM linear memory, cgroup or RSS peak
	ReadBytes       int64         // from files
	WrittenBytes    int64         // to files
	Fuel            uint64        // units used, where fuel was limited
	// Now is what a sandbox takes at the moment; only its Stats tell it.
	Now    *Load
	Phases Phases
}

// Load is what a sandbox takes at a moment, and what there is for it, in bytes. Its CPUs
// is how many processors its programs see.
type Load struct {
	CPUs        int   `json:"cpus"`
	Memory      int64 `json:"memory_bytes"`       // with Cache
	Cache       int64 `json:"cache_bytes"`        // of files, which the kernel can take back
	MemoryTotal int64 `json:"memory_total_bytes"` // its limit, or all that the host or the machine has
	Disk        int64 `json:"disk_bytes"`
	DiskTotal   int64 `json:"disk_total_bytes"` // of what it can write to
}

// Phases is where the time of a run went.
type Phases struct {
	Select   time.Duration // choosing the tier, waiting for admission
	Create   time.Duration // making the sandbox, compiling included
	Start    time.Duration // until the first instruction of the program
	Run      time.Duration
	Teardown time.Duration
}

type phasesJSON struct {
	Select   float64 `json:"select_ms"`
	Create   float64 `json:"create_ms"`
	Start    float64 `json:"start_ms"`
	Run      float64 `json:"run_ms"`
	Teardown float64 `json:"teardown_ms"`
}

type usageJSON struct {
	WallMS     float64    `json:"wall_ms"`
	CPUMS      float64    `json:"cpu_ms"`
	PeakMemory int64      `json:"peak_memory_bytes"`
	Read       int64      `json:"read_bytes,omitempty"`
	Written    int64      `json:"written_bytes,omitempty"`
	Fuel       uint64     `json:"fuel,omitempty"`
	Now        *Load      `json:"now,omitempty"`
	Phases     phasesJSON `json:"phases"`
}

// MarshalJSON writes times in milliseconds.
func (u Usage) MarshalJSON() ([]byte, error) {
	p := u.Phases
	return json.Marshal(usageJSON{
		millis(u.Wall), millis(u.CPU), u.PeakMemoryBytes, u.ReadBytes, u.WrittenBytes, u.Fuel, u.Now,
		phasesJSON{millis(p.Select), millis(p.Create), millis(p.Start), millis(p.Run), millis(p.Teardown)},
	})
}

// UnmarshalJSON reads times in milliseconds.
func (u *Usage) UnmarshalJSON(b []byte) error {
	var j usageJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	p := j.Phases
	*u = Usage{
		fromMillis(j.WallMS), fromMillis(j.CPUMS), j.PeakMemory, j.Read, j.Written, j.Fuel, j.Now,
		Phases{fromMillis(p.Select), fromMillis(p.Create), fromMillis(p.Start), fromMillis(p.Run), fromMillis(p.Teardown)},
	}
	return nil
}
