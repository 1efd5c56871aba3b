package mem

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/axocoatl/isolation"
)

// wear wraps the sandbox in those of its abilities that the features tell:
// each is a layer that isolation.As looks through, so that what is not told
// can't be found.
func (s *sandbox) wear(d *Driver) isolation.Sandbox {
	h := handle{s, d}
	var v isolation.Sandbox = plain{h}
	told := func(a string) bool { return slices.Contains(d.features.Abilities, a) }
	if told(isolation.AbilityAttach) {
		v = attacher{v, h}
	}
	if told(isolation.AbilityPause) {
		v = pauser{v, h}
	}
	if told(isolation.AbilitySnapshot) {
		v = snapshotter{v, h}
	}
	if told(isolation.AbilityFork) {
		v = forker{v, h}
	}
	if told(isolation.AbilityReset) {
		v = resetter{v, h}
	}
	if told(isolation.AbilityStats) {
		v = stats{v, h}
	}
	if told(isolation.AbilityFiles) {
		v = filer{v, h}
	}
	if told(isolation.AbilityWatch) {
		v = watcher{v, h}
	}
	if told(isolation.AbilityPorts) {
		v = portDialer{v, h}
	}
	if told(isolation.AbilityListen) {
		v = portListener{v, h}
	}
	return v
}

// handle is a sandbox as one driver has it.
type handle struct {
	s *sandbox
	d *Driver
}

// held fails for a driver that has let the sandbox go.
func (h handle) held(op string, o isolation.Outcome) error {
	if h.s.isHeld(h.d) {
		return nil
	}
	return &isolation.Error{Op: op, Driver: h.d.name, ID: h.s.id, Outcome: o, Err: isolation.ErrNotFound}
}

// plain hides everything but the core.
type plain struct{ handle }

func (p plain) ID() string { return p.s.id }

func (p plain) State(ctx context.Context) (isolation.State, error) {
	if err := p.held("state", ""); err != nil {
		return isolation.State{}, err
	}
	return p.s.State(ctx)
}

func (p plain) Exec(ctx context.Context, ps isolation.ProcessSpec, stdio isolation.Stdio) (isolation.Process, error) {
	if err := p.held("exec", isolation.NotStarted); err != nil {
		return nil, err
	}
	return p.s.Exec(ctx, ps, stdio)
}

// Delete of a sandbox that was let go does nothing: it is another's.
func (p plain) Delete(ctx context.Context) error {
	if !p.s.isHeld(p.d) {
		return nil
	}
	return p.s.Delete(ctx)
}

type attacher struct {
	isolation.Sandbox
	handle
}

func (a attacher) Unwrap() any { return a.Sandbox }

// Attach implements isolation.Attacher. The Exit of the process that it returns
// counts as dropped what this caller was not given from its offsets on.
func (a attacher) Attach(ctx context.Context, execID string, from isolation.Offsets, stdio isolation.Stdio) (isolation.Process, error) {
	if err := a.held("attach", ""); err != nil {
		return nil, err
	}
	p, err := a.s.attach(ctx, execID, from, stdio)
	if err != nil {
		return nil, a.s.fail("attach", "", err)
	}
	return a.s.borrowed(p), nil
}

func (s *sandbox) attach(ctx context.Context, execID string, from isolation.Offsets, stdio isolation.Stdio) (*attached, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	p := s.findLocked(execID)
	s.mu.Unlock()
	if p == nil {
		return nil, fmt.Errorf("exec id %.80q: %w", execID, isolation.ErrNotFound)
	}
	if from.Stdout < 0 || from.Stderr < 0 || from.Stdin < -1 {
		return nil, fmt.Errorf("offsets %+v: %w", from, isolation.ErrInvalidArgument)
	}
	a := &attached{process: p}
	var err error
	if a.sinks[0], err = sinkAt(p.stdout, stdio.Stdout, from.Stdout, "stdout"); err != nil {
		return nil, err
	}
	if a.sinks[1], err = sinkAt(p.stderr, stdio.Stderr, from.Stderr, "stderr"); err != nil {
		a.sinks[0].detach()
		return nil, err
	}
	if stdio.Stdin != nil {
		if err := p.stdin.attach(stdio.Stdin, from.Stdin); err != nil {
			a.sinks[0].detach()
			a.sinks[1].detach()
			return nil, err
		}
	}
	a.done = make(chan struct{})
	go a.settle()
	return a, nil
}

func sinkAt(s *stream, to io.Writer, from int64, name string) (*sink, error) {
	k, base, end, ok := s.attach(to, from)
	switch {
	case ok:
		return k, nil
	case from < base:
		return nil, fmt.Errorf("%s offset %d: held from %d on: %w", name, from, base, isolation.ErrFailedPrecondition)
	}
	return nil, fmt.Errorf("%s offset %d: %d bytes were written: %w", name, from, end, isolation.ErrInvalidArgument)
}

// attached is a process as one that attached to it sees it.
type attached struct {
	*process
	sinks   [2]*sink
	dropped [2]int64      // set before done is closed
	done    chan struct{} // its output was delivered
}

func (a *attached) settle() {
	defer close(a.done)
	<-a.process.done
	for i, k := range a.sinks {
		a.dropped[i] = k.drain()
	}
}

// Wait waits for this caller's output too.
func (a *attached) Wait(ctx context.Context) (isolation.Exit, error) {
	exit, err := a.process.Wait(ctx)
	if err != nil {
		return exit, err
	}
	select {
	case <-a.done:
	default:
		select {
		case <-a.done:
		case <-ctx.Done():
			return isolation.Exit{}, a.s.fail("wait", isolation.OutcomeUnknown, context.Cause(ctx))
		}
	}
	exit.Stdout.Dropped, exit.Stderr.Dropped = a.dropped[0], a.dropped[1]
	return exit, nil
}

type pauser struct {
	isolation.Sandbox
	handle
}

func (w pauser) Unwrap() any { return w.Sandbox }

// Pause implements isolation.Pauser. Programs stop at their next call of Proc.
func (w pauser) Pause(ctx context.Context) error { return w.pause(ctx, "pause", true) }

// Resume implements isolation.Pauser.
func (w pauser) Resume(ctx context.Context) error { return w.pause(ctx, "resume", false) }

func (w pauser) pause(ctx context.Context, op string, on bool) error {
	if err := w.held(op, ""); err != nil {
		return err
	}
	return w.s.pause(ctx, op, on)
}

func (s *sandbox) pause(ctx context.Context, op string, on bool) error {
	if err := context.Cause(ctx); err != nil {
		return s.fail(op, "", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.deleted:
		return s.fail(op, "", isolation.ErrNotFound)
	case s.lost:
		return s.fail(op, "", fmt.Errorf("sandbox is lost: %w", isolation.ErrFailedPrecondition))
	case s.paused == on:
		return nil
	}
	s.paused = on
	for _, p := range s.live {
		p.pause(on)
	}
	return nil
}

func (p *process) pause(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if on {
		p.resume = make(chan struct{})
		p.stopWallLocked()
		return
	}
	close(p.resume)
	p.resume = nil
	p.runWallLocked()
}

type resetter struct {
	isolation.Sandbox
	handle
}

func (w resetter) Unwrap() any { return w.Sandbox }

// Reset implements isolation.Resetter. What runs ends as canceled.
func (w resetter) Reset(ctx context.Context) error {
	if err := w.held("reset", ""); err != nil {
		return err
	}
	if err := w.s.reset(ctx); err != nil {
		return w.s.fail("reset", "", err)
	}
	return nil
}

func (s *sandbox) reset(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	switch {
	case s.deleted:
		s.mu.Unlock()
		return isolation.ErrNotFound
	case s.lost:
		s.mu.Unlock()
		return fmt.Errorf("sandbox is lost: %w", isolation.ErrFailedPrecondition)
	}
	s.resets++
	live, cancel := s.liveLocked(), s.cancel
	s.mu.Unlock()
	for _, p := range live {
		p.end(isolation.ReasonCanceled, 0, "the sandbox was reset")
	}
	cancel()
	err := s.quiet(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resets--
	if err == nil && !s.deleted && !s.lost {
		s.files.mu.Lock()
		s.files.resetLocked()
		s.files.mu.Unlock()
		s.ended, s.next, s.used, s.disk, s.paused = nil, 0, isolation.Usage{}, 0, false
		s.ctx, s.cancel = context.WithCancel(context.Background())
	}
	return err
}

type stats struct {
	isolation.Sandbox
	handle
}

func (w stats) Unwrap() any { return w.Sandbox }

// Stats implements isolation.Stats: the sum of the ended and the live
// processes.
func (w stats) Stats(ctx context.Context) (isolation.Usage, error) {
	s := w.s
	if err := w.held("stats", ""); err != nil {
		return isolation.Usage{}, err
	}
	if err := context.Cause(ctx); err != nil {
		return isolation.Usage{}, s.fail("stats", "", err)
	}
	s.mu.Lock()
	used, live, deleted := s.used, s.liveLocked(), s.deleted
	s.mu.Unlock()
	used.Now = &isolation.Load{CPUs: 1, MemoryTotal: s.spec.Resources.MemoryBytes, DiskTotal: s.spec.Resources.DiskBytes}
	if deleted {
		return isolation.Usage{}, s.fail("stats", "", isolation.ErrNotFound)
	}
	for _, p := range live {
		p.mu.Lock()
		used = add(used, p.usageLocked())
		p.mu.Unlock()
	}
	return used, nil
}
