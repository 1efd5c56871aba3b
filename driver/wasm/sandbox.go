package wasm

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/guest/wire"
)

// sandbox is a module with its mounts and limits. It costs nothing until a
// process runs in it: workers belong to the driver's pool.
type sandbox struct {
	id      string
	d       *Driver
	spec    isolation.Spec
	src     source
	dialect *dialect // of the language; nil: a module, or a language without one
	mounts  []mount
	created time.Time

	mu      sync.Mutex
	execs   map[string]*process // guarded by mu; live ones, nil: starting
	used    map[string]bool     // guarded by mu; ids of the caller's that ended
	next    int                 // guarded by mu
	deleted bool                // guarded by mu
	gone    chan struct{}       // closed by Delete
	quiet   sync.Cond           // signalled when execs shrinks
}

// mount is an open directory of the host.
type mount struct {
	destination string
	readOnly    bool
	dir         *os.File
}

var _ isolation.Sandbox = (*sandbox)(nil)

func (s *sandbox) ID() string { return s.id }

func (s *sandbox) State(context.Context) (isolation.State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.deleted {
		return isolation.State{}, s.error("state", isolation.ErrNotFound)
	}
	st := isolation.State{ID: s.id, Status: isolation.StatusCreated, Created: s.created}
	for id := range s.execs {
		st.Execs = append(st.Execs, id)
	}
	slices.Sort(st.Execs)
	if len(st.Execs) > 0 {
		st.Status = isolation.StatusRunning
	}
	return st, nil
}

func (s *sandbox) error(op string, err error) error {
	return &isolation.Error{Op: op, Driver: s.d.Name(), ID: s.id, Err: err}
}

func (s *sandbox) notStarted(err error) error {
	return &isolation.Error{Op: "exec", Driver: s.d.Name(), ID: s.id, Outcome: isolation.NotStarted, Err: err}
}

// Exec starts the module.
func (s *sandbox) Exec(ctx context.Context, ps isolation.ProcessSpec, stdio isolation.Stdio) (isolation.Process, error) {
	if err := s.check(ctx, ps); err != nil {
		return nil, s.notStarted(err)
	}
	id, err := s.reserve(ps.ExecID)
	if err != nil {
		return nil, s.notStarted(err)
	}
	p, err := s.start(ctx, id, ps, stdio)
	if err != nil {
		s.unreserve(id)
		return nil, s.notStarted(err)
	}
	return p, nil
}

func (s *sandbox) check(ctx context.Context, ps isolation.ProcessSpec) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := ps.Validate(); err != nil {
		return err
	}
	unsupported := func(what, need string) error {
		return &isolation.UnsupportedError{Feature: what, Need: need}
	}
	switch {
	case ps.Cwd != "":
		return unsupported("a working directory", "a container or a microVM: WASI preview 1 has none")
	case ps.User != "":
		return unsupported("a user", "a container or a microVM: a module has no user")
	case ps.Terminal:
		return unsupported("a terminal", "a container or a microVM")
	}
	if s.src.component {
		for _, text := range slices.Concat(ps.Args, ps.Env) {
			if !utf8.ValidString(text) {
				return fmt.Errorf("%q: arguments and environment of a component are UTF-8: %w", text, isolation.ErrInvalidArgument)
			}
		}
	}
	return s.dialect.check(s.spec.SourceLanguage(), ps.Args)
}

// memory is the limit of an instance's memory in bytes.
func (s *sandbox) memory() uint64 {
	memory := uint64(s.d.config.MaxMemory)
	if m := s.spec.Resources.MemoryBytes; m > 0 {
		memory = min(memory, uint64(m))
	}
	return memory
}

func (s *sandbox) key(art *artefact) poolKey {
	return poolKey{tenant: s.spec.Tenant, artefact: art.key}
}

// reserve claims an exec id before the slow part of starting.
func (s *sandbox) reserve(id string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.deleted {
		return "", isolation.ErrNotFound
	}
	if id == "" {
		for {
			s.next++
			id = "exec-" + strconv.Itoa(s.next)
			if _, live := s.execs[id]; !live && !s.used[id] {
				break
			}
		}
	} else if _, live := s.execs[id]; live || s.used[id] {
		return "", fmt.Errorf("exec id %s: %w", id, isolation.ErrAlreadyExists)
	} else {
		if s.used == nil {
			s.used = map[string]bool{}
		}
		s.used[id] = true
	}
	s.execs[id] = nil
	return id, nil
}

func (s *sandbox) unreserve(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.execs, id)
	delete(s.used, id)
	s.quiet.Broadcast()
}

// ended is called once a process has its exit.
func (s *sandbox) ended(p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.execs, p.id)
	s.quiet.Broadcast()
}

func (s *sandbox) start(ctx context.Context, id string, ps isolation.ProcessSpec, stdio isolation.Stdio) (_ *process, err error) {
	began := time.Now()
	d := s.d
	art, err := d.compiler.artefact(ctx, s.src, settings{fuel: ps.Limits.Fuel > 0})
	if err != nil {
		return nil, err
	}
	memory := s.memory()
	if art.meta.MinMemory > memory {
		return nil, fmt.Errorf("the module declares at least %d bytes of memory, the limit is %d: %w", art.meta.MinMemory, memory, isolation.ErrInvalidArgument)
	}
	if err := d.slots.acquire(ctx, s.gone); err != nil {
		return nil, err
	}
	held := true
	defer func() {
		if held {
			d.slots.release()
		}
	}()
	p := &process{
		id: id, sb: s, limits: ps.Limits, memory: memory, done: make(chan struct{}),
	}
	exec := wire.ExecMessage{
		Args: s.dialect.command(ps.Args), Env: ps.Env, Memory: memory, Fuel: ps.Limits.Fuel,
		Files: uint64(ps.Limits.OpenFiles), Disk: uint64(s.spec.Resources.DiskBytes), NoStdin: stdio.Stdin == nil,
	}
	var direct []byte
	if stdio.Stdin != nil {
		if b, ok := inline(stdio.Stdin); ok {
			direct, stdio.Stdin = b, nil
			exec.NoStdin = len(b) == 0
		}
	}
	var wants *fit
	if len(s.mounts) == 0 && s.dialect.fits(ps) {
		wants = &fit{memory, ps.Limits.OpenFiles}
	}
	for {
		w, kept, err := d.pool.get(ctx, s.gone, s.key(art), art, s.mounts, wants)
		if err != nil {
			return nil, err
		}
		p.w = w
		p.turn = &turn{slots: d.slots, grant: func() { _ = w.send(wire.Run, p.stream, nil) }}
		if wants != nil && !d.config.NoPark {
			p.again = func() { d.pool.again(w, *wants, s.dialect.bootArgs()) }
		}
		in, first := stdio.Stdin, direct
		if kept != nil {
			in, first = withRecord(ps, in, direct)
		}
		p.stdout.init(stdio.Stdout, p.grant(wire.Stdout))
		p.stderr.init(stdio.Stderr, p.grant(wire.Stderr))
		p.stdin.init(in, func(t wire.Type, b []byte) error { return w.send(t, p.stream, b) })
		p.ahead = 0
		if ps.Limits.CPU > 0 || kept != nil {
			p.cpu0, _ = w.child.cpuTime()
		}
		if kept != nil {
			p.ahead = p.cpu0 - kept.cpu0
		}
		quiet := d.slots.quiet()
		if w.child.busy.Store(quiet); quiet {
			exec.Linger = uint64(linger)
		}
		// The slot, the map entry and the timers are p's before it can end.
		if err := s.adopt(p); err != nil {
			if kept != nil {
				d.pool.giveBack(w, kept)
			} else {
				d.pool.put(w)
			}
			return nil, err
		}
		p.began = time.Now()
		p.phases.Start = p.began.Sub(began)
		if kept != nil && w.hand(p, kept, first) || kept == nil && w.begin(p, &exec, first) {
			break
		}
		// It died while it was idle; nothing was started. Take another.
	}
	held = false
	p.startTimers()
	if p.stdin.r != nil {
		go p.stdin.pump()
	}
	return p, nil
}

// withRecord puts a program's record before its input. What is at hand and short
// is returned as bytes, to be sent at once, instead of as a reader.
func withRecord(ps isolation.ProcessSpec, in io.Reader, direct []byte) (io.Reader, []byte) {
	rec := record(ps)
	switch {
	case in != nil:
		return io.MultiReader(bytes.NewReader(rec), in), nil
	case len(rec)+len(direct) > wire.MaxData:
		return io.MultiReader(bytes.NewReader(rec), bytes.NewReader(direct)), nil
	}
	return nil, append(rec, direct...)
}

// adopt makes p visible to Delete.
func (s *sandbox) adopt(p *process) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.deleted {
		return isolation.ErrNotFound
	}
	s.execs[p.id] = p
	return nil
}

// Delete ends what runs and forgets the sandbox.
func (s *sandbox) Delete(ctx context.Context) error {
	s.mu.Lock()
	if !s.deleted {
		s.deleted = true
		close(s.gone)
	}
	live := make([]*process, 0, len(s.execs))
	for _, p := range s.execs {
		if p != nil {
			live = append(live, p)
		}
	}
	s.mu.Unlock()
	for _, p := range live {
		p.end(isolation.ReasonCanceled, 0)
	}
	if err := s.settle(ctx); err != nil {
		return s.error("delete", err)
	}
	s.d.forget(s)
	return nil
}

// settle waits until no process is left.
func (s *sandbox) settle(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.quiet.Broadcast()
	})
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.execs) > 0 {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		s.quiet.Wait()
	}
	for _, m := range s.mounts {
		m.dir.Close()
	}
	s.mounts = nil
	return nil
}
