package wasm

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

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
	return nil
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
	memory := uint64(d.config.MaxMemory)
	if m := s.spec.Resources.MemoryBytes; m > 0 {
		memory = min(memory, uint64(m))
	}
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
		Args: ps.Args, Env: ps.Env, Memory: memory, Fuel: ps.Limits.Fuel,
		Files: uint64(ps.Limits.OpenFiles), Disk: uint64(s.spec.Resources.DiskBytes), NoStdin: stdio.Stdin == nil,
	}
	var direct []byte
	if stdio.Stdin != nil {
		if b, ok := inline(stdio.Stdin); ok {
			direct, stdio.Stdin = b, nil
			exec.NoStdin = len(b) == 0
		}
	}
	k := poolKey{tenant: s.spec.Tenant, artefact: art.key}
	for {
		w, err := d.pool.get(ctx, s.gone, k, art, s.mounts)
		if err != nil {
			return nil, err
		}
		p.w = w
		p.stdout.init(stdio.Stdout, p.grant(wire.Stdout))
		p.stderr.init(stdio.Stderr, p.grant(wire.Stderr))
		p.stdin.init(stdio.Stdin, func(t wire.Type, b []byte) error { return w.send(t, p.stream, b) })
		if ps.Limits.CPU > 0 {
			p.cpu0, _ = w.child.cpuTime()
		}
		quiet := d.slots.quiet()
		if w.child.busy.Store(quiet); quiet {
			exec.Linger = uint64(linger)
		}
		// The slot, the map entry and the timers are p's before it can end.
		if err := s.adopt(p); err != nil {
			d.pool.put(w)
			return nil, err
		}
		p.began = time.Now()
		p.phases.Start = p.began.Sub(began)
		if w.begin(p, &exec, direct) {
			break
		}
		// It died while it was idle; nothing was started. Take another.
	}
	held = false
	p.startTimers()
	if stdio.Stdin != nil {
		go p.stdin.pump()
	}
	return p, nil
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
