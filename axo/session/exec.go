package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/internal/failpoint"
)

// Exec is a program of a session, running or ended. It is safe for concurrent
// use.
type Exec struct {
	s  *Session
	id string
	outputs
	stdin *input // nil: it has none
	told  bool   // who asks for it finds it; guarded by s.mu
	past  bool   // it ended before this process began

	mu   sync.Mutex
	rec  execRecord        // guarded by mu
	proc isolation.Process // nil: ended before this process began; guarded by mu
}

// Exec starts a program. ctx bounds the start only. With stdin its input is what
// GiveStdin is given, else it is empty. With follow the caller calls Follow from the
// beginning on, or Unfollow: so that nothing is dropped before he does.
func (s *Session) Exec(ctx context.Context, p isolation.ProcessSpec, stdin, follow bool) (*Exec, error) {
	if p.ExecID == "" {
		p.ExecID = newID("x-")
	}
	within := ctx // of the program's life, too
	ctx, done := s.begin(ctx, OpStart, p.ExecID)
	e, err := s.exec(ctx, p, stdin, follow)
	done(OperationEnd{Err: err})
	if err != nil {
		return nil, err
	}
	_, ended := s.begin(context.WithoutCancel(within), OpProgram, e.id)
	go e.wait(e.proc, ended)
	return e, nil
}

func (s *Session) exec(ctx context.Context, p isolation.ProcessSpec, stdin, follow bool) (*Exec, error) {
	fail := func(err error) (*Exec, error) {
		return nil, &isolation.Error{Op: "exec", ID: s.id, Outcome: isolation.NotStarted, Err: err}
	}
	s.copying.RLock()
	defer s.copying.RUnlock()
	sb, err := s.use(ctx)
	if err != nil {
		return fail(err)
	}
	if err := isolation.ValidateID(p.ExecID); err != nil {
		return fail(err)
	}
	e := &Exec{s: s, id: p.ExecID, outputs: newOutputs(), rec: execRecord{Version: recordVersion, Process: p, Stdin: stdin, Started: s.m.config.Now()}}
	if stdin {
		e.stdin = newInput(0)
	}
	s.mu.Lock()
	switch {
	case s.gone || s.ending != nil:
		err = fmt.Errorf("session %s is being deleted: %w", s.id, isolation.ErrNotFound)
	case s.execs[e.id] != nil:
		err = fmt.Errorf("program %s is there already: %w", e.id, isolation.ErrAlreadyExists)
	default:
		s.execs[e.id] = e
		s.execWG.Add(1)
	}
	s.mu.Unlock()
	if err != nil {
		return fail(err)
	}
	if err := e.start(ctx, sb, follow); err != nil {
		s.mu.Lock()
		delete(s.execs, e.id)
		s.mu.Unlock()
		e.Unfollow()
		e.closeLogs()
		err = errors.Join(err, os.RemoveAll(s.execDir(e.id)))
		s.execWG.Done()
		return nil, err
	}
	s.mu.Lock()
	e.told = true // before, it has no outputs, and may not come to be
	s.mu.Unlock()
	s.retire()
	s.m.event(ctx, s, "exec", e.id, "pid", fmt.Sprint(e.proc.PID()))
	return e, nil
}

func (e *Exec) start(ctx context.Context, sb isolation.Sandbox, follow bool) error {
	dir := e.s.execDir(e.id)
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		err = save(e.s.execFile(e.id), e.rec)
	}
	if err == nil {
		err = e.openLogs()
	}
	if err == nil && follow {
		err = e.reserve()
	}
	if err != nil {
		return &isolation.Error{Op: "exec", ID: e.s.id, Outcome: isolation.NotStarted, Err: err}
	}
	failpoint.Hit(failpoint.ExecRecorded)
	proc, err := sb.Exec(ctx, e.rec.Process, e.stdio())
	if err != nil {
		return err
	}
	failpoint.Hit(failpoint.ExecStarted)
	e.mu.Lock()
	e.proc = proc
	e.mu.Unlock()
	return nil
}

func (e *Exec) openLogs() error { return e.open(e.s.execDir(e.id), e.s.m.config.Keep) }

func (s *Session) closeInputs() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.execs {
		if e.stdin != nil {
			e.stdin.close()
		}
	}
}

func (e *Exec) stdio() isolation.Stdio {
	io := isolation.Stdio{Stdout: e.stdout, Stderr: e.stderr}
	if e.stdin != nil {
		io.Stdin = e.stdin
	}
	return io
}

// wait writes down how the program ended.
func (e *Exec) wait(proc isolation.Process, observed func(OperationEnd)) {
	defer e.s.execWG.Done()
	m := e.s.m
	exit, err := proc.Wait(m.ctx)
	if err != nil && m.ctx.Err() != nil {
		observed(OperationEnd{Err: err})
		return // it goes on, and whoever comes next waits for it
	}
	e.ended(exit, err)
	if err != nil {
		observed(OperationEnd{Err: err})
		return
	}
	observed(OperationEnd{Exit: &exit})
}

func (e *Exec) ended(exit isolation.Exit, err error) {
	now := e.s.m.config.Now()
	if e.stdin != nil {
		e.stdin.close()
	}
	e.mu.Lock()
	e.rec.Ended = &now
	if err != nil {
		e.rec.Unknown = err.Error()
	} else {
		if exit.LimitsHit == nil {
			exit.LimitsHit = []isolation.LimitHit{} // a list in JSON
		}
		e.rec.Exit = &exit
	}
	rec := e.rec
	e.mu.Unlock()
	if err := save(e.s.execFile(e.id), rec); err != nil {
		e.s.log().Error("write how a program ended", "exec", e.id, "error", err)
	}
	failpoint.Hit(failpoint.ExecEnded)
	e.closeLogs()
	close(e.done)
	e.s.mu.Lock()
	e.s.active = now
	e.s.mu.Unlock()
	if err != nil {
		e.s.m.event(e.s.m.ctx, e.s, "exited", e.id, "unknown", rec.Unknown)
		return
	}
	e.s.m.event(e.s.m.ctx, e.s, "exited", e.id, "reason", string(exit.Reason), "code", fmt.Sprint(exit.Code))
}

// loadExecs finds the programs of a session again. sb is nil if its sandbox is
// gone.
func (s *Session) loadExecs(sb isolation.Sandbox) {
	list, err := os.ReadDir(filepath.Join(s.dir(), execsDir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.log().Error("list programs", "error", err)
	}
	for _, f := range list {
		if isolation.ValidateID(f.Name()) != nil {
			continue
		}
		s.mu.Lock()
		known := s.execs[f.Name()] != nil
		s.mu.Unlock()
		if known {
			continue
		}
		e := &Exec{s: s, id: f.Name(), outputs: newOutputs()}
		err := load(s.execFile(e.id), &e.rec)
		if errors.Is(err, os.ErrNotExist) {
			err = os.RemoveAll(s.execDir(e.id)) // its start had hardly begun
			if err == nil {
				continue
			}
		}
		if err == nil {
			err = e.openLogs()
		}
		if err != nil {
			s.log().Error("program cannot be read", "exec", e.id, "error", err)
			continue
		}
		if e.past = e.rec.Ended != nil; e.past {
			e.closeLogs()
			close(e.done)
		} else if !s.attach(sb, e) {
			continue
		}
		s.mu.Lock()
		e.told = true
		s.execs[e.id] = e
		s.mu.Unlock()
	}
}

// How often, and after what time each, a copy is asked again for output that it must
// have.
const (
	copyTries = 100
	copyTry   = 20 * time.Millisecond
)

// attach goes on with a program that nobody saw the end of, and reports whether it
// ever began.
func (s *Session) attach(sb isolation.Sandbox, e *Exec) bool {
	if sb == nil {
		e.ended(isolation.Exit{}, errors.New("the sandbox was lost while it ran"))
		return true
	}
	a, ok := isolation.As[isolation.Attacher](sb)
	if !ok {
		e.ended(isolation.Exit{}, errors.New("this engine does not find programs again"))
		return true
	}
	from := isolation.Offsets{Stdin: -1}
	_, from.Stdout = e.stdout.bounds()
	_, from.Stderr = e.stderr.bounds()
	if e.rec.Stdin {
		e.stdin = newInput(-1)
	}
	ctx, cancel := context.WithTimeout(s.m.ctx, time.Minute)
	defer cancel()
	proc, err := a.Attach(ctx, e.id, from, e.stdio())
	for range copyTries {
		if !errors.Is(err, isolation.ErrInvalidArgument) || s.rec.Request.From == "" {
			break
		}
		// In a copy the last of what its origin has of the output is on its way still.
		time.Sleep(copyTry)
		proc, err = a.Attach(ctx, e.id, from, e.stdio())
	}
	if errors.Is(err, isolation.ErrFailedPrecondition) && e.stdin != nil {
		// Its input has ended.
		e.stdin.close()
		io := e.stdio()
		io.Stdin = nil
		proc, err = a.Attach(ctx, e.id, from, io)
	}
	switch {
	case errors.Is(err, isolation.ErrNotFound):
		// It was written down and never started, so nobody was told of it.
		e.closeLogs()
		if err := os.RemoveAll(s.execDir(e.id)); err != nil {
			s.log().Error("remove a program that never began", "exec", e.id, "error", err)
		}
		return false
	case err != nil:
		e.ended(isolation.Exit{}, err)
		return true
	}
	e.proc = proc
	s.execWG.Add(1)
	_, ended := s.begin(s.m.ctx, OpProgram, e.id)
	go e.wait(proc, ended)
	return true
}

// retire forgets the programs that ended longest ago, when there are more than
// are to be known.
func (s *Session) retire() {
	s.mu.Lock()
	var ended []*Exec
	for _, e := range s.execs {
		if !e.live() {
			ended = append(ended, e)
		}
	}
	over := max(0, len(ended)-s.m.config.MaxEnded)
	slices.SortFunc(ended, func(a, b *Exec) int {
		// Whatever the clock was set to meanwhile, those of a process before this one are older.
		if a.past != b.past {
			if a.past {
				return -1
			}
			return 1
		}
		return a.endedAt().Compare(b.endedAt())
	})
	for _, e := range ended[:over] {
		delete(s.execs, e.id)
	}
	s.mu.Unlock()
	for _, e := range ended[:over] {
		e.removeLogs()
		if err := os.RemoveAll(s.execDir(e.id)); err != nil {
			s.log().Error("remove what is known of a program", "exec", e.id, "error", err)
		}
	}
}

func (e *Exec) endedAt() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.rec.Ended == nil {
		return time.Time{}
	}
	return *e.rec.Ended
}

// FindExec returns a program that was started.
func (s *Session) FindExec(ctx context.Context, id string) (*Exec, error) {
	select {
	case <-s.ready:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.execs[id]; e != nil && e.told {
		return e, nil
	}
	if s.unknown != nil {
		return nil, fmt.Errorf("session %s cannot be reached: %w: %w", s.id, s.unknown, isolation.ErrUnavailable)
	}
	return nil, fmt.Errorf("program %.80q of session %s: %w", id, s.id, isolation.ErrNotFound)
}

// Execs lists the programs that were started, the first one first.
func (s *Session) Execs(ctx context.Context) ([]*Exec, error) {
	select {
	case <-s.ready:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*Exec, 0, len(s.execs))
	for _, e := range s.execs {
		if e.told {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b *Exec) int { return a.rec.Started.Compare(b.rec.Started) })
	return out, nil
}

// ID returns the program's id.
func (e *Exec) ID() string { return e.id }

// Info tells what is known.
func (e *Exec) Info() api.Process {
	e.mu.Lock()
	defer e.mu.Unlock()
	i := api.Process{
		ID: e.id, Process: e.rec.Process, Running: e.rec.Ended == nil, Started: e.rec.Started, Ended: e.rec.Ended,
		Exit: e.rec.Exit, Unknown: e.rec.Unknown,
	}
	if i.Running && e.proc != nil {
		i.PID = e.proc.PID()
	}
	if e.stdin != nil {
		i.Stdin = e.stdin.state()
	}
	i.Stdin.Open = i.Stdin.Open && i.Running
	i.Stdout.From, i.Stdout.To = e.stdout.bounds()
	i.Stderr.From, i.Stderr.To = e.stderr.bounds()
	return i
}

// Wait returns how the program ended. An error that is not ctx's means that nobody
// knows.
func (e *Exec) Wait(ctx context.Context) (isolation.Exit, error) {
	select {
	case <-e.done:
	case <-ctx.Done():
		return isolation.Exit{}, context.Cause(ctx)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.rec.Exit == nil {
		return isolation.Exit{}, &isolation.Error{Op: "wait", ID: e.id, Outcome: isolation.OutcomeUnknown, Err: fmt.Errorf("%s: %w", e.rec.Unknown, isolation.ErrUnavailable)}
	}
	return *e.rec.Exit, nil
}

// Kill sends a signal; see [isolation.Process].
func (e *Exec) Kill(ctx context.Context, sig isolation.Signal) error {
	if !e.live() {
		return nil
	}
	if _, err := e.s.use(ctx); err != nil {
		return err
	}
	p := e.process()
	if p == nil {
		return errStarting
	}
	return p.Kill(ctx, sig)
}

// Resize tells the program's terminal its size.
func (e *Exec) Resize(ctx context.Context, size isolation.TerminalSize) error {
	if !e.live() {
		return nil
	}
	if _, err := e.s.use(ctx); err != nil {
		return err
	}
	p := e.process()
	if p == nil {
		return errStarting
	}
	r, ok := isolation.As[isolation.Resizer](p)
	if !ok {
		return fmt.Errorf("program %s has no terminal: %w", e.id, isolation.ErrFailedPrecondition)
	}
	return r.Resize(ctx, size)
}

var errStarting = fmt.Errorf("the program is being started: %w", isolation.ErrFailedPrecondition)

func (e *Exec) process() isolation.Process {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.proc
}

// GiveStdin gives the program what r has, as it takes it. Where is the offset of
// its first byte in the whole input; what was given already is skipped. -1: it
// goes on where the input ends by now. At the end of r the input ends, if end is
// set. FailedPrecondition: somebody else gives some, or it has ended.
func (e *Exec) GiveStdin(ctx context.Context, r io.Reader, where int64, end bool) error {
	if e.stdin == nil {
		return fmt.Errorf("program %s was started without input: %w", e.id, isolation.ErrFailedPrecondition)
	}
	if err := e.stdin.claim(); err != nil {
		return err
	}
	defer e.stdin.release()
	have := e.stdin.state()
	skip := int64(0)
	switch {
	case !have.Open:
		return errInputEnded
	case where < 0:
	case have.To < 0:
		return &isolation.UnsupportedError{Feature: "input from an offset, of a program from before the daemon's restart", Need: "-1"}
	case where > have.To:
		return fmt.Errorf("input from byte %d, when %d were given: %w", where, have.To, isolation.ErrInvalidArgument)
	default:
		skip = have.To - where
	}
	if _, err := io.CopyN(io.Discard, r, skip); err != nil && err != io.EOF {
		return err
	}
	for {
		// Each part is kept until the program takes it, so it is one of its own.
		p := make([]byte, 32<<10)
		n, rerr := r.Read(p)
		if n > 0 {
			if _, err := e.s.use(ctx); err != nil {
				return err
			}
			if err := e.stdin.write(ctx, p[:n]); err != nil {
				return err
			}
		}
		if rerr == io.EOF {
			break
		} else if rerr != nil {
			return rerr
		}
	}
	if end {
		e.stdin.close()
	}
	return nil
}
