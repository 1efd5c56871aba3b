package proc

import (
	"context"
	"fmt"
	"io"

	"github.com/axocoatl/isolation"
)

// Holder is a Task whose output is held for who attaches. In a detached sandbox its
// program goes on when this side ends.
type Holder interface {
	Task
	// Input is how much input the program was given when this side found it, and
	// whether it takes no more.
	Input() (given int64, ended bool)
	// Feed gives it a caller's input, from that byte of it on, until either ends.
	Feed(from io.Reader, skip int64)
	// Forget has nothing kept of a program that has ended.
	Forget()
}

// Attachable is a Place whose tasks are Holders, detached or not.
type Attachable interface {
	Attachable()
}

// maxEnded is how many ended processes of a sandbox can be attached to.
const maxEnded = 16

// attaching is a sandbox whose processes can be attached to.
type attaching struct {
	isolation.Sandbox
	sb *sandbox
}

// Unwrap lets isolation.As find further abilities.
func (a attaching) Unwrap() any { return a.Sandbox }

// Attach implements [isolation.Attacher].
func (a attaching) Attach(ctx context.Context, execID string, from isolation.Offsets, stdio isolation.Stdio) (isolation.Process, error) {
	p, err := a.sb.attach(ctx, execID, from, stdio)
	if err != nil {
		return nil, a.sb.fail("attach", "", err)
	}
	return p, nil
}

func (s *sandbox) attach(ctx context.Context, execID string, from isolation.Offsets, stdio isolation.Stdio) (isolation.Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p, err := s.find(execID)
	if err != nil {
		return nil, err
	}
	var skip int64
	if stdio.Stdin != nil {
		if skip, err = p.takeInput(from.Stdin); err != nil {
			return nil, err
		}
	}
	v, err := p.seen(from, stdio)
	if err != nil {
		if stdio.Stdin != nil {
			p.fed.Store(false)
		}
		return nil, err
	}
	if stdio.Stdin != nil {
		go p.task.(Holder).Feed(stdio.Stdin, skip)
	}
	return v, nil
}

// find returns a process that runs, or one of those that ended last.
func (s *sandbox) find(execID string) (*Process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.deleting {
		return nil, fmt.Errorf("sandbox %s was deleted: %w", s.id, isolation.ErrNotFound)
	}
	if p := s.live[execID]; p != nil && p.begun {
		return p, nil
	}
	for _, p := range s.ended {
		if p.id == execID {
			return p, nil
		}
	}
	return nil, fmt.Errorf("process %.80q: %w", execID, isolation.ErrNotFound)
}

// takeInput gives the caller the process's input, if nobody has it, and says how
// much of what he has there is known.
func (p *Process) takeInput(from int64) (skip int64, err error) {
	given, ended := p.task.(Holder).Input()
	select {
	case <-p.done:
		ended = true
	default:
	}
	switch {
	case ended:
		return 0, fmt.Errorf("the input of process %s has ended: %w", p.id, isolation.ErrFailedPrecondition)
	case from < -1 || from > given:
		return 0, fmt.Errorf("input of process %s from %d on: %d bytes were given: %w", p.id, from, given, isolation.ErrInvalidArgument)
	case !p.fed.CompareAndSwap(false, true):
		return 0, fmt.Errorf("somebody gives input to process %s: %w", p.id, isolation.ErrFailedPrecondition)
	case from == -1:
		return 0, nil
	}
	return given - from, nil
}

// seen is p as one caller has it, who gets its output from some offsets on.
func (p *Process) seen(from isolation.Offsets, stdio isolation.Stdio) (isolation.Process, error) {
	v := &view{Process: p, settled: make(chan struct{})}
	var err error
	if v.out[0], err = p.held[0].attach("stdout", from.Stdout, stdio.Stdout); err != nil {
		return nil, err
	}
	if v.out[1], err = p.held[1].attach("stderr", from.Stderr, stdio.Stderr); err != nil {
		v.out[0].leave()
		return nil, err
	}
	for _, c := range v.out {
		c.begin()
	}
	go v.settle()
	return p.withSize(v), nil
}

// withSize adds the ability of a process with a terminal.
func (p *Process) withSize(v isolation.Process) isolation.Process {
	if r, ok := p.task.(Resizer); ok && p.Spec.Terminal {
		return resizing{v, p, r}
	}
	return v
}

// view is a process as one caller has it.
type view struct {
	*Process
	out     [2]*caller
	missing [2]int64      // set before settled is closed
	settled chan struct{} // his output was delivered
}

func (v *view) settle() {
	defer close(v.settled)
	<-v.done
	for i, c := range v.out {
		v.missing[i] = c.drain(v.sb.d.drain)
	}
}

// Wait waits for this caller's output, too.
func (v *view) Wait(ctx context.Context) (isolation.Exit, error) {
	e, err := v.Process.Wait(ctx)
	if err != nil {
		return e, err
	}
	select {
	case <-v.settled:
	default:
		select {
		case <-v.settled:
		case <-ctx.Done():
			return isolation.Exit{}, v.sb.d.fail("wait", v.id, isolation.OutcomeUnknown, ctx.Err())
		}
	}
	e.Stdout.Dropped += v.missing[0]
	e.Stderr.Dropped += v.missing[1]
	return e, nil
}
