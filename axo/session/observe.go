package session

import (
	"context"
	"io"
	"io/fs"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/admission"
	"github.com/axocoatl/isolation/engine"
)

// Observer is told of what is done with sessions, as it begins and ends: to measure it.
// Nothing that it does changes what is done. It must be quick, and safe for concurrent
// use.
type Observer interface {
	// Begin returns the context that the operation is done with, and what is called once
	// when it has ended.
	Begin(context.Context, Operation) (context.Context, func(OperationEnd))
	// Refused tells of a session, or a run, that may not be begun now.
	Refused(tenant string, why admission.Reason)
	// File tells of bytes of files that went into a session, or came out of one.
	File(written bool, n int)
}

// Operation is something that is done with a session.
type Operation struct {
	Name    OperationName
	Tenant  string
	Session string
	Exec    string // of OpStart and OpProgram
}

// OperationEnd is how an operation ended.
type OperationEnd struct {
	Err error
	// Tier and Engine are those of the session; Engine is empty where there is none.
	Tier   isolation.Tier
	Engine string
	// Exit is that of an OpProgram whose end was seen.
	Exit *isolation.Exit
}

// OperationName names an operation.
type OperationName string

// The operations.
const (
	OpCreate   OperationName = "create"
	OpRestore  OperationName = "restore" // create, of a snapshot
	OpFork     OperationName = "fork"    // all copies of one call
	OpSnapshot OperationName = "snapshot"
	OpPause    OperationName = "pause"
	OpResume   OperationName = "resume"
	OpStart    OperationName = "start" // a program
	OpDelete   OperationName = "delete"
	// OpProgram is a program's life, from its start on.
	OpProgram OperationName = "program"
)

// Operations are all names.
func Operations() []OperationName {
	return []OperationName{OpCreate, OpRestore, OpFork, OpSnapshot, OpPause, OpResume, OpStart, OpDelete, OpProgram}
}

// unobserved is an Observer that takes no notice.
type unobserved struct{}

func (unobserved) Begin(ctx context.Context, _ Operation) (context.Context, func(OperationEnd)) {
	return ctx, func(OperationEnd) {}
}
func (unobserved) Refused(string, admission.Reason) {}
func (unobserved) File(bool, int)                   {}

// begin begins an operation with the session; what it returns is called with how it
// ended.
func (s *Session) begin(ctx context.Context, name OperationName, exec string) (context.Context, func(OperationEnd)) {
	ctx, done := s.m.config.Observer.Begin(ctx, Operation{Name: name, Tenant: s.tenant, Session: s.id, Exec: exec})
	return ctx, func(end OperationEnd) {
		s.mu.Lock()
		end.Tier, end.Engine = s.rec.Decision.Got, s.rec.Decision.Engine
		s.mu.Unlock()
		done(end)
	}
}

// do does an operation with the session.
func (s *Session) do(ctx context.Context, name OperationName, f func(context.Context) error) error {
	ctx, done := s.begin(ctx, name, "")
	err := f(ctx)
	done(OperationEnd{Err: err})
	return err
}

// knowing is a context that knows what another does, too: that of the request by which a
// run was begun, which has its answer before the run ends.
type knowing struct {
	context.Context
	of context.Context
}

// Value implements context.Context.
func (k knowing) Value(key any) any {
	if v := k.Context.Value(key); v != nil {
		return v
	}
	return k.of.Value(key)
}

// measured has a run that outlives this process measured.
func (r *Run) measured(ctx context.Context, run func(context.Context) (*engine.Result, bool, error)) (res *engine.Result, left bool, err error) {
	res, err = r.r.config.Measure(ctx, r.tenant, r.id, func(ctx context.Context) (*engine.Result, error) {
		var res *engine.Result
		res, left, err = run(ctx)
		if left {
			return nil, nil
		}
		return res, err
	})
	return res, left, err
}

// step begins a step of it, as the engine does of others.
func (r *Run) step(ctx context.Context, name engine.StepName) (context.Context, func(engine.StepEnd)) {
	if r.r.config.Observer == nil {
		return ctx, func(engine.StepEnd) {}
	}
	d := r.rec.Lasting.Decision
	return r.r.config.Observer.Begin(ctx, engine.Step{Name: name, RunID: r.id, Tenant: r.tenant, Tier: d.Got, Engine: d.Engine})
}

// Kind is what sessions have in common.
type Kind struct {
	Engine string // empty: it is not known
	Tier   isolation.Tier
	Status api.Status
}

// Census counts the sessions there are.
type Census struct {
	Sessions map[Kind]int
	Programs map[Kind]int // those that run
	Tenants  map[string]int
	// Snapshots are those of all tenants.
	Snapshots int
}

// Census counts the sessions there are now.
func (m *Manager) Census() Census {
	c := Census{Sessions: map[Kind]int{}, Programs: map[Kind]int{}, Tenants: map[string]int{}}
	for _, s := range m.All() {
		s.mu.Lock()
		k := Kind{Engine: s.rec.Decision.Engine, Tier: s.rec.Decision.Got, Status: s.statusLocked()}
		programs := 0
		for _, e := range s.execs {
			if e.live() {
				programs++
			}
		}
		tenant := s.tenant
		s.mu.Unlock()
		c.Sessions[k]++
		c.Tenants[tenant]++
		if programs > 0 {
			c.Programs[k] += programs
		}
	}
	m.mu.Lock()
	c.Snapshots = len(m.snapshots)
	m.mu.Unlock()
	return c
}

type allFiles interface {
	isolation.Files
	isolation.Directories
}

// counted tells an observer of the bytes of files.
type counted struct {
	allFiles
	o Observer
}

// countedOf are those of a user, who can watch them too.
type countedOf struct {
	counted
	isolation.Watcher
}

// ReadFile implements isolation.Files.
func (c counted) ReadFile(ctx context.Context, name string) (io.ReadCloser, error) {
	r, err := c.allFiles.ReadFile(ctx, name)
	if err != nil {
		return nil, err
	}
	return countedContent{r, c.o}, nil
}

type countedContent struct {
	io.ReadCloser
	o Observer
}

func (c countedContent) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.o.File(false, n)
	return n, err
}

// WriteFile implements isolation.Files.
func (c counted) WriteFile(ctx context.Context, name string, mode fs.FileMode, r io.Reader) error {
	return c.allFiles.WriteFile(ctx, name, mode, &countedSource{r, c.o})
}

type countedSource struct {
	io.Reader
	o Observer
}

func (c *countedSource) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.o.File(true, n)
	return n, err
}
