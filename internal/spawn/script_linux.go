package spawn

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Script is a list of system calls for a process that can do nothing else: it
// shares its memory with a program whose locks it must not touch. It is written
// before that process is there, step by step, each with a name for its error.
type Script struct {
	steps []step
	names []string
	keep  []any // what arguments point to
	regs  int
	notes int
}

// step is one system call. Nothing in it is a pointer for the collector.
type step struct {
	nr    uintptr
	args  [6]uintptr
	from  [6]uint8 // the register that an argument is from; 0: it is in args
	to    uint8    // the register that takes the result; 0: none does
	note  uint8    // counts from 1: an error is noted, and ends the part that is optional
	allow [2]syscall.Errno
	want  uintptr // the result, if not 0
	// Where to go on, as distances: after success, after an allowed error, and
	// after an error that is noted.
	onOK, onErr, onNote int
}

// Reg is a result of a step, to be used by later ones.
type Reg uint8

const (
	maxRegs  = 128 // and register 0, which is none
	maxNotes = 8
)

// Note is an error of an optional part: what the host does not allow.
type Note struct {
	Name string
	Err  syscall.Errno
}

// Do adds a step. An argument is an integer, a [Reg], a string, a []byte or an
// unsafe.Pointer to what nobody changes any more.
func (s *Script) Do(name string, nr uintptr, args ...any) *Step {
	st := step{nr: nr, onOK: 1, onErr: 1}
	for i, a := range args {
		switch v := a.(type) {
		case Reg:
			st.from[i] = uint8(v)
		case string:
			b := append([]byte(v), 0)
			s.keep = append(s.keep, b)
			st.args[i] = uintptr(unsafe.Pointer(&b[0]))
		case []byte:
			s.keep = append(s.keep, v)
			st.args[i] = uintptr(unsafe.Pointer(unsafe.SliceData(v)))
		case unsafe.Pointer:
			s.keep = append(s.keep, v)
			st.args[i] = uintptr(v)
		case int:
			st.args[i] = uintptr(v)
		case uint32:
			st.args[i] = uintptr(v)
		case uint64:
			st.args[i] = uintptr(v)
		case uintptr:
			st.args[i] = v
		case nil:
		default:
			panic(fmt.Sprintf("spawn: argument %d of %s is a %T", i, name, a))
		}
	}
	s.steps = append(s.steps, st)
	s.names = append(s.names, name)
	return &Step{s, len(s.steps) - 1}
}

// Register returns a new register. Most scripts need a handful; too many are an
// error when the script is started.
func (s *Script) Register() Reg {
	s.regs++
	return Reg(min(s.regs, maxRegs))
}

// Step is one that was just added.
type Step struct {
	s *Script
	i int
}

// Into puts the result into a register.
func (t *Step) Into(r Reg) *Step {
	t.s.steps[t.i].to = uint8(r)
	return t
}

// Allow names an error that is none.
func (t *Step) Allow(e syscall.Errno) *Step {
	a := &t.s.steps[t.i].allow
	if a[0] != 0 {
		a[1] = e
	} else {
		a[0] = e
	}
	return t
}

// Want makes any other result an error: EIO.
func (t *Step) Want(n int) *Step {
	t.s.steps[t.i].want = uintptr(n)
	return t
}

// Else adds steps that are made only after an allowed error of this one, which
// must be the last.
func (t *Step) Else(add func()) {
	add()
	t.s.steps[t.i].onOK = len(t.s.steps) - t.i
}

// Then adds steps that are made only after success of this one, which must be
// the last.
func (t *Step) Then(add func()) {
	add()
	t.s.steps[t.i].onErr = len(t.s.steps) - t.i
}

// Optional adds steps of which the first that fails is noted, and the rest left
// out. It does not nest.
func (s *Script) Optional(add func()) {
	first := len(s.steps)
	add()
	s.notes++
	for i := first; i < len(s.steps); i++ {
		s.steps[i].note, s.steps[i].onNote = uint8(min(s.notes, maxNotes)), len(s.steps)-i
	}
}

// join makes one script of several, which stay as they are and may be used again.
func join(parts []*Script) *Script {
	n := 0
	for _, p := range parts {
		n += len(p.steps)
	}
	s := &Script{steps: make([]step, 0, n), names: make([]string, 0, n)}
	for _, p := range parts {
		for i := range p.steps {
			st := p.steps[i]
			if st.note != 0 {
				st.note = uint8(min(s.notes+int(st.note), maxNotes))
			}
			s.steps = append(s.steps, st)
		}
		s.names, s.keep = append(s.names, p.names...), append(s.keep, p)
		s.regs, s.notes = max(s.regs, p.regs), s.notes+p.notes
	}
	return s
}

func (s *Script) changeUser(c *Credential) {
	if !c.KeepGroups {
		groups := append(make([]uint32, 0, len(c.Groups)+1), c.Groups...)
		s.Do("set groups", unix.SYS_SETGROUPS, len(groups), unsafe.Pointer(unsafe.SliceData(groups)))
	}
	s.Do("set group", unix.SYS_SETRESGID, c.GID, c.GID, c.GID)
	s.Do("set user", unix.SYS_SETRESUID, c.UID, c.UID, c.UID)
}

func (s *Script) check() error {
	if s.regs > maxRegs || s.notes > maxNotes {
		return fmt.Errorf("spawn: a script with %d registers and %d optional parts", s.regs, s.notes)
	}
	return nil
}

// scriptOutcome is in memory that the process shares.
type scriptOutcome struct {
	failed uintptr // counts from 1; 0: no step
	errno  uintptr
	notes  [16]struct{ failed, errno uintptr }
}

// error is nil if no step failed.
func (s *Script) error(o *scriptOutcome) error {
	if o.failed == 0 {
		return nil
	}
	return &Error{Step: s.names[o.failed-1], Err: syscall.Errno(o.errno)}
}

func (s *Script) noted(o *scriptOutcome) (out []Note) {
	for _, n := range o.notes {
		if n.failed != 0 {
			out = append(out, Note{Name: s.names[n.failed-1], Err: syscall.Errno(n.errno)})
		}
	}
	return out
}

// scriptRun is what the process needs of a script. Nothing in it is allocated
// or grown after the clone.
type scriptRun struct {
	steps []step
	out   *scriptOutcome
	regs  [256]uintptr // any number of a register is in it
}

// run makes the steps, of which the last does not come back. Else it exits.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (r *scriptRun) run() {
	var (
		a    [6]uintptr
		i, j int
		st   *step
		v    uintptr
		e    syscall.Errno
	)
	for i = 0; i >= 0 && i < len(r.steps); {
		st = &r.steps[i]
		for j = range a {
			a[j] = st.args[j]
			if st.from[j] != 0 {
				a[j] = r.regs[st.from[j]]
			}
		}
		v, _, e = syscall.RawSyscall6(st.nr, a[0], a[1], a[2], a[3], a[4], a[5])
		if e == syscall.EINTR {
			continue
		}
		if e == 0 && st.want != 0 && v != st.want {
			e = syscall.EIO
		}
		switch {
		case e == 0:
			r.regs[st.to] = v
			i += st.onOK
		case e == st.allow[0] || e == st.allow[1]:
			i += st.onErr
		case st.note != 0:
			r.out.notes[st.note&15].failed, r.out.notes[st.note&15].errno = uintptr(i+1), uintptr(e)
			i += st.onNote
		default:
			r.out.failed, r.out.errno = uintptr(i+1), uintptr(e)
			i = -1
		}
	}
	for {
		syscall.RawSyscall6(unix.SYS_EXIT_GROUP, 253, 0, 0, 0, 0, 0) // stack is short here
	}
}
