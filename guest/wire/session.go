package wire

import "fmt"

// What one HELLO may tell.
const (
	maxProcesses = 1 << 10
	maxSteps     = 64
)

// ProcessState is a process that can be attached to. Offsets are bytes from the
// start of its input or output.
type ProcessState struct {
	ID     string
	Ended  bool
	Stdin  uint64 // came by now
	Stdout uint64 // written by now
	Stderr uint64
	// What is held of the output begins here.
	StdoutHeld, StderrHeld uint64
}

func (p *ProcessState) numbers() [7]*uint64 {
	return [7]*uint64{2: &p.Stdin, 3: &p.Stdout, 4: &p.Stderr, 5: &p.StdoutHeld, 6: &p.StderrHeld}
}

func (p *ProcessState) append(b []byte) []byte {
	b = appendText(b, 1, p.ID)
	for tag, n := range p.numbers() {
		if n != nil {
			b = appendUint(b, byte(tag), *n)
		}
	}
	return appendUint(b, 7, bit(p.Ended))
}

func (p *ProcessState) parse(body []byte) error {
	numbers := p.numbers()
	return fields(body, func(tag byte, v value) error {
		switch {
		case tag == 1:
			return v.text(&p.ID)
		case tag == 7:
			return v.flag(&p.Ended)
		case int(tag) < len(numbers) && numbers[tag] != nil:
			return v.uint(numbers[tag])
		}
		return unknown("process of HELLO", tag)
	})
}

// Step is a part of a boot, and how long it took.
type Step struct {
	Name        string
	Nanoseconds uint64
}

func (s *Step) parse(body []byte) error {
	return fields(body, func(tag byte, v value) error {
		switch tag {
		case 1:
			return v.text(&s.Name)
		case 2:
			return v.uint(&s.Nanoseconds)
		}
		return unknown("step of HELLO", tag)
	})
}

// AttachMessage asks, on a new stream, for a process that an earlier connection
// started: its output from these offsets on, which acknowledges what was before
// them, and its end.
type AttachMessage struct {
	ID             string
	Stdout, Stderr uint64
	// Held: from where output is held, instead. SPAWNED tells where that is.
	Held bool
}

// Append appends the body.
func (m *AttachMessage) Append(b []byte) []byte {
	return appendUint(appendUint(appendUint(appendText(b, 1, m.ID), 2, m.Stdout), 3, m.Stderr), 4, bit(m.Held))
}

// Parse reads the body.
func (m *AttachMessage) Parse(body []byte) error {
	*m = AttachMessage{}
	return fields(body, func(tag byte, v value) error {
		switch tag {
		case 1:
			return v.text(&m.ID)
		case 2:
			return v.uint(&m.Stdout)
		case 3:
			return v.uint(&m.Stderr)
		case 4:
			return v.flag(&m.Held)
		}
		return unknown("ATTACH", tag)
	})
}

// KillMessage signals a stream's process. On the stream of a file operation,
// where the signal does not matter, it ends that.
type KillMessage struct {
	Signal uint64
	Group  bool // and all that it started, as far as the guest can tell
}

// Append appends the body.
func (m *KillMessage) Append(b []byte) []byte {
	return appendUint(appendUint(b, 1, m.Signal), 2, bit(m.Group))
}

// Parse reads the body.
func (m *KillMessage) Parse(body []byte) error {
	*m = KillMessage{}
	err := fields(body, func(tag byte, v value) error {
		switch tag {
		case 1:
			return v.uint(&m.Signal)
		case 2:
			return v.flag(&m.Group)
		}
		return unknown("KILL", tag)
	})
	if err == nil && (m.Signal < 1 || m.Signal > 64) {
		err = fmt.Errorf("%w: KILL with signal %d", ErrProtocol, m.Signal)
	}
	return err
}

// UsageMessage is what a process, and what it started, has used by now; on
// stream 0 all processes of the sandbox together. The host asks with an empty
// one.
type UsageMessage struct {
	CPU        uint64 // ns
	PeakMemory uint64 // bytes; 0: not known
	Memory     uint64 // bytes now; 0: not known
	Processes  uint64 // 0: not known
}

func (m *UsageMessage) numbers() [5]*uint64 {
	return [5]*uint64{1: &m.CPU, 2: &m.PeakMemory, 3: &m.Memory, 4: &m.Processes}
}

// Append appends the body.
func (m *UsageMessage) Append(b []byte) []byte {
	for tag, n := range m.numbers() {
		if n != nil {
			b = appendUint(b, byte(tag), *n)
		}
	}
	return b
}

// Parse reads the body.
func (m *UsageMessage) Parse(body []byte) error {
	*m = UsageMessage{}
	numbers := m.numbers()
	return fields(body, func(tag byte, v value) error {
		if int(tag) < len(numbers) && numbers[tag] != nil {
			return v.uint(numbers[tag])
		}
		return unknown("USAGE", tag)
	})
}
