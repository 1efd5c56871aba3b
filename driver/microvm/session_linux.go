package microvm

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/guestconn"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/driver/microvm/internal/qemu"
	"github.com/axocoatl/isolation/guest/wire"
	"github.com/axocoatl/isolation/internal/cgroup"
	"github.com/axocoatl/isolation/internal/journal"
)

// record is what a later process must know of a detached machine, beside what
// every record has. What is read back is not trusted.
type record struct {
	Spec     isolation.Spec `json:"spec"`
	Name     string         `json:"name"`
	Template Template       `json:"template"` // its own, or what it was restored from
	Group    *cgroup.State  `json:"group,omitempty"`
	Token    []byte         `json:"token"`         // by which the guest knows its host; secret
	Protocol uint64         `json:"protocol"`      // that the guest speaks
	UID      int            `json:"uid,omitempty"` // who the VMM is; 0: nobody, or its maker's user
	// Paused is when it was paused (CLOCK_MONOTONIC, ns); 0: it is not.
	Paused int64 `json:"paused,omitempty"`
}

// note is what is written down of a program.
type note struct {
	Limits   isolation.Limits `json:"limits,omitzero"`
	Terminal bool             `json:"terminal,omitempty"`
	// Began is when (CLOCK_MONOTONIC, ns), later by what the machine was paused since.
	Began int64 `json:"began"`
}

// keeping is what a detached machine writes down.
type keeping struct {
	*journal.Kept
	mu    sync.Mutex
	rec   record          // guarded by mu
	notes map[string]note // guarded by mu; of programs that run, or can be attached to
}

func monotonic() int64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return 0
	}
	return ts.Nano()
}

// openKeep opens the directory of detached machines.
func (e *engine) openKeep() {
	if e.cfg.SessionDir != "" && e.copies() {
		e.keep, e.keepErr = journal.OpenKeep(e.cfg.SessionDir)
	}
}

// keepNew writes down a machine that is about to be made.
func (m *machine) keepNew(id string) error {
	if m.eng.keepErr != nil {
		return m.eng.keepErr
	}
	if m.eng.keep == nil {
		return proc.Unsupported("a sandbox that outlives its maker", "a directory for sessions (Config.SessionDir)")
	}
	k, err := m.eng.keep.New(m.eng.Name(), id)
	if errors.Is(err, os.ErrExist) {
		err = fmt.Errorf("sandbox %s is there, of an earlier process: %w", id, isolation.ErrAlreadyExists)
	}
	if err != nil {
		return err
	}
	m.kept, m.entry = &keeping{Kept: k, notes: map[string]note{}}, k
	return nil
}

// describe writes down all that it takes to find the machine again.
func (m *machine) describe() error {
	t := *m.from
	t.Live = nil
	m.kept.mu.Lock()
	defer m.kept.mu.Unlock()
	m.kept.rec = record{Spec: m.spec, Name: m.name, Template: t, Group: m.group.State(groupLimits(m.eng.tree(), t.Shape)), Token: m.token, Protocol: wire.Version, UID: m.uid()}
	return errors.Join(m.kept.SetData(m.kept.rec), m.kept.Ready())
}

// note writes down a program before it is started.
func (k *keeping) note(id string, n note) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.notes[id] = n
	return k.Note(id, n)
}

func (k *keeping) unnote(id string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.notes, id)
	return k.Unnote(id)
}

// pause writes down that the machine is paused, or that it goes on: its programs
// began as much later as it stood still.
func (k *keeping) pause(on bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	now, was := monotonic(), k.rec.Paused
	if on {
		k.rec.Paused = now
		return k.SetData(k.rec)
	}
	k.rec.Paused = 0
	var errs []error
	for id, n := range k.notes {
		n.Began += now - was
		k.notes[id] = n
		errs = append(errs, k.Note(id, n))
	}
	return errors.Join(append(errs, k.SetData(k.rec))...)
}

// Recoverable implements [proc.Recoverer].
func (e *engine) Recoverable(context.Context) ([]isolation.Recoverable, error) {
	if e.keepErr != nil {
		return nil, e.keepErr
	}
	list, err := e.keep.List(e.Name())
	var out []isolation.Recoverable
	for _, x := range list {
		out = append(out, isolation.Recoverable{ID: x.ID, Created: x.Created, Holder: x.Holder, Err: keptError(x.Err)})
	}
	return out, err
}

// Discard implements [proc.Discarder].
func (e *engine) Discard(_ context.Context, id string) error {
	if e.keepErr != nil {
		return e.keepErr
	}
	return keptError(e.keep.Discard(e.Name(), id))
}

// keptError gives an error of the journal its class.
func keptError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrNotExist), errors.Is(err, journal.ErrGone):
		return fmt.Errorf("%w (%w)", err, isolation.ErrNotFound)
	case errors.Is(err, journal.ErrHeld), errors.Is(err, journal.ErrUnreadable):
		return fmt.Errorf("%w (%w)", err, isolation.ErrFailedPrecondition)
	}
	return err
}

// helloTimeout bounds the wait for a guest that is there.
const helloTimeout = 20 * time.Second

// Recover implements [proc.Recoverer].
func (e *engine) Recover(ctx context.Context, id string) (_ proc.Recovered, err error) {
	if e.keepErr != nil {
		return proc.Recovered{}, e.keepErr
	}
	k, err := e.keep.Adopt(e.Name(), id)
	if err != nil {
		return proc.Recovered{}, keptError(err)
	}
	m := &machine{eng: e, entry: k, kept: &keeping{Kept: k, notes: map[string]note{}}}
	defer func() {
		if err != nil {
			m.Leave()
		}
	}()
	if err := m.reopen(); err != nil {
		if errors.Is(err, journal.ErrGone) {
			err = errors.Join(err, k.Remove())
		}
		return proc.Recovered{}, keptError(err)
	}
	soon, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	left, err := m.find(soon)
	if err != nil {
		return proc.Recovered{}, m.silent(ctx, err)
	}
	return proc.Recovered{Place: m.place(), Spec: m.spec, Created: k.Created(), Left: left, Paused: m.kept.rec.Paused != 0}, nil
}

// reopen finds what there is of a machine outside of it.
func (m *machine) reopen() error {
	s := &m.kept.rec // nobody else has it yet
	if err := m.kept.Data(s); err != nil {
		return err
	}
	bad := func(what string) error { return fmt.Errorf("%w: %s", journal.ErrUnreadable, what) }
	if s.Protocol != wire.Version {
		return fmt.Errorf("its guest speaks version %d of the protocol, and this program %d: it can be recovered by the program that made it (%w)",
			s.Protocol, wire.Version, isolation.ErrFailedPrecondition)
	}
	if err := s.Spec.Validate(); err != nil {
		return bad(err.Error())
	}
	if !s.Spec.Detached || filepath.Base(s.Name) != s.Name || !strings.HasPrefix(s.Name, "axo-microvm-") || len(s.Token) != wire.TokenBytes {
		return bad("it is not of a detached machine")
	}
	var err error
	if m.group, err = cgroup.Reopen(s.Group); err != nil {
		return bad(err.Error())
	}
	if m.group != nil && m.group.Name() != s.Name {
		return bad("its control group is another's")
	}
	m.name, m.spec, m.token, m.from = s.Name, s.Spec, s.Token, &s.Template
	m.memory = int64(m.from.Shape.MemoryMiB) << 20
	if s.UID != 0 {
		m.user = m.eng.users.Retake(s.UID) // nil: while nobody had the machine, its id was given to another
	}
	pid, _ := m.kept.Main()
	vm, err := qemu.Reopen(pid, m.kept.Dir())
	if err != nil {
		return fmt.Errorf("%w: QEMU: %w", journal.ErrGone, err)
	}
	m.vm = qemuMachine{vm}
	return nil
}

// find connects to the machine and its guest, and finds the programs. One that was
// paused runs for this moment.
func (m *machine) find(ctx context.Context) ([]proc.Left, error) {
	vm := m.vm.(qemuMachine)
	if vm.Frozen() {
		if err := vm.Thaw(); err != nil {
			return nil, err
		}
	}
	if err := vm.Connect(ctx); err != nil {
		return nil, err
	}
	rw, err := vm.DialGuest(ctx)
	if err != nil {
		return nil, err
	}
	if m.Conn, err = guestconn.Open(ctx, rw, m.token); err != nil {
		return nil, err
	}
	m.Programs = guestconn.Programs{
		Conn: m.Conn, Resources: m.spec.Resources, Request: m.from.request(m.spec.Requirement), PID: vm.PID, Lost: m.lost,
	}
	// It may have waited for this when its host ended.
	if err := m.Conn.Sync(ctx, again(m.spec.Resources)); err != nil {
		return nil, err
	}
	return m.processesLeft(ctx)
}

// silent says why a guest does not answer: one whose machine is on its way out is
// gone, and what is left of it is removed.
func (m *machine) silent(ctx context.Context, why error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	select {
	case <-m.vm.Ended():
	case <-time.After(time.Second):
		return fmt.Errorf("the machine does not answer: %w (%w)", why, isolation.ErrUnavailable)
	}
	if err := m.kept.Remove(); err != nil {
		return err
	}
	return keptError(fmt.Errorf("%w: QEMU has ended", journal.ErrGone))
}

// processesLeft attaches to the programs that the guest knows. One that nobody has
// written down, or so that nobody can read it, has no limits that could be held:
// it is ended. One that the guest does not know was never started, or is forgotten.
func (m *machine) processesLeft(ctx context.Context) ([]proc.Left, error) {
	notes := map[string]note{}
	err := m.kept.Notes(func(name string, b []byte, err error) {
		var n note
		if err == nil && isolation.ValidateID(name) == nil && json.Unmarshal(b, &n) == nil && n.Began > 0 {
			notes[name] = n
			return
		}
		m.eng.cfg.Logger.Warn("a program's record cannot be read", "sandbox", m.name, "program", name, "error", err)
		notes[name] = note{}
	})
	if err != nil {
		return nil, err
	}
	stood := time.Duration(0)
	if at := m.kept.rec.Paused; at != 0 {
		stood = time.Duration(monotonic() - at)
	}
	var left []proc.Left
	for _, st := range m.Conn.Hello().Processes {
		r, err := m.Conn.Attach(ctx, &wire.AttachMessage{ID: st.ID, Held: true})
		if err != nil {
			return nil, fmt.Errorf("attach to %s: %w", st.ID, err)
		}
		n, known := notes[st.ID]
		delete(notes, st.ID)
		if !known || n.Began == 0 {
			m.discard(st.ID, r)
			continue
		}
		m.kept.notes[st.ID] = n
		left = append(left, proc.Left{
			ID: st.ID, Ended: st.Ended,
			Spec:  isolation.ProcessSpec{ExecID: st.ID, Limits: n.Limits, Terminal: n.Terminal},
			Began: time.Now().Add(stood - time.Duration(monotonic()-n.Began)),
			Resume: func(p *proc.Process) proc.Task {
				return m.task(st.ID, m.Programs.Resume(p, r, st), -1<<62)
			},
		})
	}
	for id := range notes {
		if err := m.kept.Unnote(id); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(left, func(a, b proc.Left) int {
		if a.Ended != b.Ended {
			return map[bool]int{true: -1, false: 1}[a.Ended]
		}
		return a.Began.Compare(b.Began)
	})
	return left, nil
}

// discard ends a program that nobody may have.
func (m *machine) discard(id string, r *guestconn.Process) {
	m.eng.cfg.Logger.Warn("a program that nobody has written down is ended", "sandbox", m.name, "program", id)
	go func() {
		_ = r.Kill()
		_, _ = r.Stdout.Close(), r.Stderr.Close()
		<-r.Done()
		r.Forget()
		_ = m.kept.unnote(id) // if not, the next one does
	}()
}

// Leave implements [proc.Leaver].
func (m *machine) Leave() {
	m.left.Store(true)
	if m.Conn != nil {
		m.Conn.Close()
	}
	if vm, ok := m.vm.(qemuMachine); ok {
		vm.Leave()
	}
	if m.user != nil {
		m.user.File.Close()
	}
	m.group.Close()
	if m.borrowed != nil {
		m.eng.release(m.borrowed)
	}
	m.kept.Release()
}

// Resumed implements [proc.Leaver].
func (m *machine) Resumed() {
	if m.kept.rec.Paused != 0 {
		if err := m.freeze(); err != nil {
			m.eng.cfg.Logger.Warn("a paused machine runs", "sandbox", m.name, "error", err)
		}
	}
}

// adoptKept writes down a program of a copy.
func (m *machine) adoptKept(p *proc.Process, ran time.Duration) error {
	return m.kept.note(p.ID(), note{Limits: p.Spec.Limits, Terminal: p.Spec.Terminal, Began: max(1, monotonic()-int64(ran))})
}

// startKept starts a program of a detached machine: it is written down first.
func (m *machine) startKept(ctx context.Context, p *proc.Process) (proc.Task, error) {
	n := note{Limits: p.Spec.Limits, Terminal: p.Spec.Terminal, Began: cmp.Or(monotonic(), 1)}
	if err := m.kept.note(p.ID(), n); err != nil {
		return nil, fmt.Errorf("write down the process: %w", err)
	}
	t, err := m.Programs.Start(ctx, p)
	if err != nil {
		return nil, errors.Join(err, m.kept.unnote(p.ID()))
	}
	return t, nil
}
