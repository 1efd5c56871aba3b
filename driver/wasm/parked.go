package wasm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/guest/wire"
)

// parked is an interpreter that was started ahead: an instance of its own, with
// seeds of its own, that has done its imports and waits for one program. To the
// worker it is a process like any other.
type parked struct {
	fit
	w      *workerProcess
	turn   turn
	stream uint32
	cpu0   time.Duration // CPU time of the worker when it was started
	timer  *time.Timer

	once    sync.Once
	settled chan struct{} // closed when it waits for its program, or failed
	ready   bool          // it waits; set before settled is closed
}

// fit is what it has for good. A program with other limits does not run in it.
type fit struct {
	memory uint64
	files  int64
}

// bootTimeout bounds the start of an interpreter, which takes 60 ms of a core.
const bootTimeout = 30 * time.Second

func newParked(w *workerProcess, f fit, s slots) *parked {
	k := &parked{fit: f, w: w, turn: turn{slots: s}, settled: make(chan struct{})}
	k.turn.grant = func() { _ = w.send(wire.Run, k.stream, nil) }
	return k
}

// serve handles one frame of an interpreter that nobody has claimed.
func (k *parked) serve(f wire.Frame) error {
	switch f.Type {
	case wire.Wait:
		if err := k.turn.waits(); err != nil {
			return err
		}
		k.settle(true)
		return nil
	case wire.Run:
		return k.turn.wantsRun()
	case wire.Stdout, wire.Stderr:
		return fmt.Errorf("the interpreter did not wait for its program, and wrote %.200q", f.Body)
	}
	return fmt.Errorf("the interpreter did not wait for its program: %v", f.Type)
}

func (k *parked) settle(ready bool) {
	k.once.Do(func() {
		k.timer.Stop()
		k.ready = ready
		close(k.settled)
	})
}

// waiting reports whether it is ready.
func (k *parked) waiting() bool {
	select {
	case <-k.settled:
		return k.ready
	default:
		return false
	}
}

// lost is called by the worker's reader when the worker is gone.
func (k *parked) lost() {
	k.settle(false)
	k.turn.end()
}

// misfit names what could not be parked.
type misfit struct {
	key poolKey
	fit fit
}

// park starts an interpreter in an idle worker. It waits for a slot, so that the
// start takes its turn among the runs; a run that takes the worker meanwhile
// comes first, and then there is nothing to do: nil.
func (p *pool) park(ctx context.Context, w *workerProcess, f fit, args []string) (*parked, error) {
	if err := p.slots.acquire(ctx, w.exited); err != nil {
		return nil, err
	}
	k := newParked(w, f, p.slots)
	p.mu.Lock()
	ok := p.parkLocked(k)
	p.mu.Unlock()
	if !ok {
		p.slots.release()
		return nil, nil
	}
	k.cpu0, _ = w.child.cpuTime()
	k.timer = time.AfterFunc(bootTimeout, w.child.kill)
	exec := wire.ExecMessage{Args: args, Memory: f.memory, Files: uint64(f.files)}
	if !w.boot(k, &exec) {
		k.lost()
	}
	return k, nil
}

// parkLocked marks the worker, if it is idle and there is memory for it.
func (p *pool) parkLocked(k *parked) bool {
	w := k.w
	if p.closed || w.parked != nil || !p.idleLocked(w) || p.misfits[misfit{w.key, k.fit}] {
		return false
	}
	if !w.weighed {
		if p.bytes+parkedBytes > p.config.MemoryBudget {
			return false
		}
		w.weighed = true
		w.cost += parkedBytes
		p.bytes += parkedBytes
	}
	w.parked = k
	return true
}

func (p *pool) idleLocked(w *workerProcess) bool {
	for _, have := range p.idle[w.key] {
		if have == w {
			return true
		}
	}
	return false
}

// again parks a worker after a run, off the caller's path.
func (p *pool) again(w *workerProcess, f fit, args []string) {
	p.mu.Lock()
	if p.closed || w.gone {
		p.mu.Unlock()
		return
	}
	p.wg.Add(1)
	p.mu.Unlock()
	go func() {
		defer p.wg.Done()
		k, err := p.park(context.Background(), w, f, args)
		if err == nil && k != nil {
			p.await(k)
		}
	}()
}

// await returns whether k got ready. What cannot be started is not tried again
// after each run.
func (p *pool) await(k *parked) bool {
	<-k.settled
	if k.ready {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// Its worker may have been killed to make room.
	if !p.closed && !k.w.evicted {
		if p.misfits == nil || len(p.misfits) >= maxKnown {
			p.misfits = map[misfit]bool{}
		}
		p.misfits[misfit{k.w.key, k.fit}] = true
	}
	return false
}

var _ isolation.Preparer = (*sandbox)(nil)

// Prepare implements isolation.Preparer. After a program that ran on its own or
// in a prepared interpreter the next one is prepared by itself.
func (s *sandbox) Prepare(ctx context.Context, language string) error {
	if err := s.prepare(ctx, language); err != nil {
		return s.error("prepare", err)
	}
	return nil
}

func (s *sandbox) prepare(ctx context.Context, language string) error {
	s.mu.Lock()
	deleted := s.deleted
	s.mu.Unlock()
	switch {
	case deleted:
		return isolation.ErrNotFound
	case s.dialect == nil || s.dialect.boot == "" || s.spec.SourceLanguage() != language:
		return &isolation.UnsupportedError{Feature: fmt.Sprintf("to prepare %q in this sandbox", language), Need: "a sandbox for Python, and python as the language"}
	case len(s.mounts) > 0:
		return &isolation.UnsupportedError{Feature: "to prepare an interpreter beside mounts", Need: "a sandbox without mounts"}
	}
	art, err := s.d.compiler.artefact(ctx, s.src, settings{})
	if err != nil {
		return err
	}
	key, f := s.key(art), fit{memory: s.memory()}
	k := s.d.pool.find(key, f)
	if k == nil {
		w, _, err := s.d.pool.get(ctx, s.gone, key, art, nil, nil)
		if err != nil {
			return err
		}
		s.d.pool.put(w)
		if k, err = s.d.pool.park(ctx, w, f, s.dialect.bootArgs()); err != nil {
			return err
		}
	}
	if k == nil {
		return fmt.Errorf("a run took the worker, or there is no memory for it: %w", isolation.ErrResourceExhausted)
	}
	select {
	case <-k.settled:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if !s.d.pool.await(k) {
		return fmt.Errorf("start the interpreter: %w", errors.Join(isolation.ErrUnavailable, k.w.failure()))
	}
	return nil
}

// find returns an interpreter that is parked or being started, or nil.
func (p *pool) find(key poolKey, f fit) *parked {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.idle[key] {
		if w.parked != nil && w.parked.fit == f {
			return w.parked
		}
	}
	return nil
}
