package wire

import "fmt"

// maxList bounds repeated fields; MaxBody bounds their sum.
const maxList = 1 << 16

// HelloMessage opens a connection from the sandbox's side.
type HelloMessage struct {
	Version uint64
	Role    string   // "guest", "wasm-run", "wasm-compile"
	Engine  string   // "wazero 1.12.0"
	Execs   []string // ids of live processes of a worker
	Notes   []string // walls found missing, for Features
	// Of a guest:
	Processes []ProcessState // those that can be attached to
	Steps     []Step         // of the boot of a machine, in order
	NeedsSync bool           // nothing is started before SYNC
}

// Append appends the body.
func (m *HelloMessage) Append(b []byte) []byte {
	b = appendUint(b, 1, m.Version)
	b = appendText(b, 2, m.Role)
	b = appendText(b, 3, m.Engine)
	for _, v := range m.Execs {
		b = appendBytes(b, 4, v)
	}
	for _, v := range m.Notes {
		b = appendBytes(b, 5, v)
	}
	for i := range m.Processes {
		b = appendBytes(b, 6, m.Processes[i].append(nil))
	}
	for _, v := range m.Steps {
		b = appendBytes(b, 7, appendUint(appendText(nil, 1, v.Name), 2, v.Nanoseconds))
	}
	return appendUint(b, 8, bit(m.NeedsSync))
}

// Parse reads the body.
func (m *HelloMessage) Parse(body []byte) error {
	*m = HelloMessage{}
	return fields(body, func(tag byte, v value) error {
		switch tag {
		case 1:
			return v.uint(&m.Version)
		case 2:
			return v.text(&m.Role)
		case 3:
			return v.text(&m.Engine)
		case 4:
			return v.list(&m.Execs, maxList)
		case 5:
			return v.list(&m.Notes, maxList)
		case 6:
			var p ProcessState
			if len(m.Processes) >= maxProcesses {
				return fmt.Errorf("%w: more than %d processes", ErrProtocol, maxProcesses)
			}
			err := p.parse(v)
			m.Processes = append(m.Processes, p)
			return err
		case 7:
			var s Step
			if len(m.Steps) >= maxSteps {
				return fmt.Errorf("%w: more than %d steps", ErrProtocol, maxSteps)
			}
			err := s.parse(v)
			m.Steps = append(m.Steps, s)
			return err
		case 8:
			return v.flag(&m.NeedsSync)
		}
		return unknown("HELLO", tag)
	})
}

// ExecMessage starts a process on the frame's stream, whose number is new on this
// connection.
type ExecMessage struct {
	ID      string
	Args    []string
	Env     []string
	Cwd     string
	User    string
	Memory  uint64 // bytes; 0: as loaded
	Fuel    uint64 // units; 0: not limited
	Files   uint64 // open descriptors; 0: not limited
	Disk    uint64 // bytes that may be written to mounts; 0: not limited
	NoStdin bool   // stdin is empty: no STDIN_EOF follows
	Tty     bool
	Rows    uint64
	Cols    uint64
	// Linger is how long, in ns, the worker should look for its next message
	// before it sleeps: the host is quiet, and the wake of a sleeping core
	// costs more than a short run.
	Linger uint64
	// Of a guest:
	Rlimits []Rlimit
}

// Append appends the body.
func (m *ExecMessage) Append(b []byte) []byte {
	b = appendText(b, 1, m.ID)
	for _, v := range m.Args {
		b = appendBytes(b, 2, v)
	}
	for _, v := range m.Env {
		b = appendBytes(b, 3, v)
	}
	b = appendText(b, 4, m.Cwd)
	b = appendText(b, 5, m.User)
	b = appendUint(b, 6, m.Memory)
	b = appendUint(b, 7, m.Fuel)
	b = appendUint(b, 8, m.Files)
	b = appendUint(b, 9, m.Disk)
	b = appendUint(b, 10, bit(m.NoStdin))
	b = appendUint(b, 11, bit(m.Tty))
	b = appendUint(b, 12, m.Rows)
	b = appendUint(b, 13, m.Cols)
	b = appendUint(b, 14, m.Linger)
	for _, l := range m.Rlimits {
		b = appendBytes(b, 15, l.append(nil))
	}
	return b
}

// Parse reads the body.
func (m *ExecMessage) Parse(body []byte) error {
	*m = ExecMessage{}
	return fields(body, func(tag byte, v value) error {
		switch tag {
		case 1:
			return v.text(&m.ID)
		case 2:
			return v.list(&m.Args, maxList)
		case 3:
			return v.list(&m.Env, maxList)
		case 4:
			return v.text(&m.Cwd)
		case 5:
			return v.text(&m.User)
		case 6:
			return v.uint(&m.Memory)
		case 7:
			return v.uint(&m.Fuel)
		case 8:
			return v.uint(&m.Files)
		case 9:
			return v.uint(&m.Disk)
		case 10:
			return v.flag(&m.NoStdin)
		case 11:
			return v.flag(&m.Tty)
		case 12:
			return v.uint(&m.Rows)
		case 13:
			return v.uint(&m.Cols)
		case 14:
			return v.uint(&m.Linger)
		case 15:
			return v.rlimit(&m.Rlimits)
		}
		return unknown("EXEC", tag)
	})
}

// Cause is how a process ended, as the sandbox's side saw it.
type Cause uint64

// The causes.
const (
	CauseExited   Cause = 1 // Code
	CauseSignaled Cause = 2 // Signal
	CauseTrap     Cause = 3 // Detail
	CauseFuel     Cause = 4
	CauseFailed   Cause = 5 // the worker could not run it: Detail
)

// ExitMessage tells the end of a process. Counters are of the whole process.
type ExitMessage struct {
	Cause      Cause
	Code       uint64 // exit status, as 32 bits
	Signal     uint64
	Detail     string
	CPU        uint64 // ns
	PeakMemory uint64 // bytes
	Fuel       uint64 // units used
	Stdout     uint64 // bytes written
	Stderr     uint64
	// How often each was refused.
	MemoryHits, DiskHits, FileHits, TableHits, StackHits uint64
	ReadBytes, WrittenBytes                              uint64 // of files
	// Of a guest that counts for itself:
	OOMKills  uint64 // processes of it that the kernel killed for want of memory
	PidsHits  uint64 // forks that were refused
	Survivors uint64 // processes of it that are left
	Wall      uint64 // ns from its start to its end
}

// numbers lists the integer fields by tag, so that Append and Parse agree. Tag
// 4 is Detail.
func (m *ExitMessage) numbers() [21]*uint64 {
	return [21]*uint64{
		1: (*uint64)(&m.Cause), 2: &m.Code, 3: &m.Signal, 5: &m.CPU, 6: &m.PeakMemory, 7: &m.Fuel, 8: &m.Stdout,
		9: &m.Stderr, 10: &m.MemoryHits, 11: &m.DiskHits, 12: &m.FileHits, 13: &m.TableHits, 14: &m.ReadBytes,
		15: &m.WrittenBytes, 16: &m.StackHits, 17: &m.OOMKills, 18: &m.PidsHits, 19: &m.Survivors, 20: &m.Wall,
	}
}

// Append appends the body.
func (m *ExitMessage) Append(b []byte) []byte {
	for tag, p := range m.numbers() {
		if p != nil {
			b = appendUint(b, byte(tag), *p)
		}
	}
	return appendText(b, 4, m.Detail)
}

// Parse reads the body.
func (m *ExitMessage) Parse(body []byte) error {
	*m = ExitMessage{}
	numbers := m.numbers()
	err := fields(body, func(tag byte, v value) error {
		switch {
		case tag == 4:
			return v.text(&m.Detail)
		case int(tag) >= len(numbers) || numbers[tag] == nil:
			return unknown("EXIT", tag)
		}
		return v.uint(numbers[tag])
	})
	if err == nil && (m.Cause < CauseExited || m.Cause > CauseFailed) {
		err = fmt.Errorf("%w: EXIT cause %d", ErrProtocol, m.Cause)
	}
	return err
}

func bit(v bool) uint64 {
	if v {
		return 1
	}
	return 0
}

func (v value) flag(dst *bool) error {
	var n uint64
	if err := v.uint(&n); err != nil {
		return err
	}
	if n > 1 {
		return fmt.Errorf("%w: flag of value %d", ErrProtocol, n)
	}
	*dst = n == 1
	return nil
}
