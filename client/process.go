package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
)

const (
	// grace is what each write to the caller has once the program has ended.
	grace = 100 * time.Millisecond
	// comeBack is how long a daemon that does not answer is waited for.
	comeBack = 30 * time.Second
)

// process is a program at the daemon, as one caller sees it.
type process struct {
	s      *sandbox
	id     string
	from   isolation.Offsets
	ctx    context.Context // ends when the caller has all he gets
	cancel context.CancelFunc
	out    *output
	errOut *output
	spare  chan []byte   // for frames
	done   chan struct{} // closed when exit and err are set

	mu    sync.Mutex
	pid   int            // guarded by mu
	ended *api.Process   // guarded by mu
	exit  isolation.Exit // guarded by mu
	err   error          // guarded by mu
	loose error          // why it was let go; guarded by mu
}

var (
	_ isolation.Process = (*process)(nil)
	_ isolation.Resizer = terminal{}
)

// open sends a request whose answer is a program's output, and goes on with it
// when the program is there.
func (s *sandbox) open(ctx context.Context, id string, send func(context.Context) (*http.Response, error), from isolation.Offsets, stdio isolation.Stdio) (*process, error) {
	p := &process{s: s, id: id, from: from, done: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	stop := context.AfterFunc(ctx, p.cancel) // until it has started
	resp, err := send(p.ctx)
	if err == nil {
		var first api.Process
		if first, err = p.first(resp.Body); err == nil {
			p.pid = first.PID
		} else {
			resp.Body.Close()
		}
	}
	if !stop() && err == nil {
		resp.Body.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		p.cancel()
		if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) {
			err = cause
		}
		return nil, err
	}
	p.spare = make(chan []byte, 2)
	p.out, p.errOut = newOutput(stdio.Stdout, p.spare), newOutput(stdio.Stderr, p.spare)
	s.mu.Lock()
	s.live[p] = struct{}{}
	if stdio.Stdin != nil {
		s.giving[id] = struct{}{}
	}
	s.mu.Unlock()
	s.d.running.Add(1)
	go p.run(resp.Body)
	if stdio.Stdin != nil {
		go p.give(stdio.Stdin)
	}
	return p, nil
}

// first reads the frame that says that the program is there.
func (p *process) first(r io.Reader) (out api.Process, err error) {
	for {
		k, b, err := api.ReadFrame(r, nil)
		switch {
		case err != nil:
			return out, fmt.Errorf("the daemon's answer was cut off: %w: %w", err, isolation.ErrUnavailable)
		case k == api.FrameProblem:
			return out, problemIn(b)
		case k == api.FrameProcess:
			if err := json.Unmarshal(b, &out); err != nil {
				return out, fmt.Errorf("the daemon's answer: %w: %w", err, isolation.ErrUnavailable)
			}
			return out, nil
		}
	}
}

func problemIn(b []byte) error {
	var pr api.Problem
	if err := json.Unmarshal(b, &pr); err != nil {
		return fmt.Errorf("the daemon's answer: %w: %w", err, isolation.ErrUnavailable)
	}
	return pr.Err()
}

// give sends the caller's input, until the program has ended. A reader that fails
// ends the input, as one at its end does.
func (p *process) give(stdin io.Reader) {
	resp, err := p.s.send(p.ctx, "POST", "/execs/"+p.id+"/stdin", url.Values{"end": {"true"}, "from": {fmt.Sprint(p.from.Stdin)}},
		ending{stdin}, http.Header{"Content-Type": {"application/octet-stream"}})
	if err == nil {
		resp.Body.Close()
	}
	// What the program does not take is no error: it may not want it.
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	delete(p.s.giving, p.id)
}

// ending is a reader whose errors are its end.
type ending struct{ io.Reader }

func (e ending) Read(p []byte) (int, error) {
	n, err := e.Reader.Read(p)
	if err != nil {
		err = io.EOF
	}
	return n, err
}

// run reads the output until the program has ended, again where a connection
// breaks, and hands it over.
func (p *process) run(body io.ReadCloser) {
	defer p.s.d.running.Done()
	err := p.read(body)
	for err != nil && p.ctx.Err() == nil && errors.Is(err, errCut) {
		body, rerr := p.again()
		if rerr != nil {
			err = rerr
			break
		}
		err = p.read(body)
	}
	p.finish(err)
}

// errCut is a stream that broke off.
var errCut = errors.New("the daemon's answer was cut off")

func (p *process) read(body io.ReadCloser) error {
	defer body.Close()
	stop := context.AfterFunc(p.ctx, func() { body.Close() })
	defer stop()
	for {
		var buf []byte
		select {
		case buf = <-p.spare:
		default:
		}
		k, b, err := api.ReadFrame(body, buf)
		if err != nil {
			return fmt.Errorf("%w: %w", errCut, err)
		}
		switch k {
		case api.FrameStdout:
			p.hand(p.out, b)
		case api.FrameStderr:
			p.hand(p.errOut, b)
		case api.FrameProblem:
			err := problemIn(b)
			if errors.Is(err, isolation.ErrUnavailable) {
				return fmt.Errorf("%w: %w", errCut, err) // it goes on, or says how it ended
			}
			return err
		case api.FrameProcess:
			var info api.Process
			if err := json.Unmarshal(b, &info); err != nil {
				return fmt.Errorf("the daemon's answer: %w", err)
			}
			if !info.Running {
				p.end(info)
				return nil
			}
		}
		if p.ctx.Err() != nil {
			return context.Cause(p.ctx)
		}
	}
}

// hand gives an output what came. While the caller does not take it, it is
// watched whether the program ends: it is not held up for him then.
func (p *process) hand(o *output, b []byte) {
	if put(o, b, time.After(grace)) {
		return
	}
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	ended := make(chan api.Process, 1)
	go p.watch(ctx, ended)
	select {
	case o.parts <- b:
		o.add(len(b))
	case info := <-ended:
		p.end(info)
		// What is still to come has the same grace as what is handed over now.
		if !put(o, b, o.stuck()) {
			p.cancel()
		}
	case <-p.ctx.Done():
	}
}

// put gives b to be handed over, unless that takes too long.
func put[T any](o *output, b []byte, late <-chan T) bool {
	select {
	case o.parts <- b:
		o.add(len(b))
		return true
	case <-late:
		return false
	}
}

// watch waits for the program's end.
func (p *process) watch(ctx context.Context, ended chan<- api.Process) {
	for ctx.Err() == nil {
		var info api.Process
		err := p.s.d.remote.call(ctx, "GET", p.s.path+"/execs/"+p.id+"/wait", nil, p.s.match(), nil, &info)
		if err == nil && !info.Running {
			ended <- info
			return
		}
		if err != nil {
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	}
}

// again asks for the output from where it broke off.
func (p *process) again() (io.ReadCloser, error) {
	until := time.Now().Add(comeBack)
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		from := isolation.Offsets{Stdout: p.from.Stdout + p.out.given(), Stderr: p.from.Stderr + p.errOut.given()}
		resp, err := p.s.following(p.id, from)(p.ctx)
		if err == nil {
			if _, err = p.first(resp.Body); err == nil {
				return resp.Body, nil
			}
			resp.Body.Close()
		}
		if isolation.Class(err) != isolation.ErrUnavailable || time.Now().After(until) {
			return nil, err
		}
		select {
		case <-time.After(wait):
		case <-p.ctx.Done():
			return nil, context.Cause(p.ctx)
		}
	}
}

func (p *process) end(info api.Process) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended == nil {
		p.ended = &info
	}
}

// letGo ends what the caller sees of it, when its sandbox is gone or left to
// others.
func (p *process) letGo(why error) {
	p.mu.Lock()
	if why != nil && p.loose == nil {
		p.loose = why
	}
	p.mu.Unlock()
	if why != nil {
		p.cancel()
		return
	}
	// The daemon's last words on its programs may be on their way.
	go func() {
		select {
		case <-p.done:
		case <-time.After(5 * time.Second):
			p.cancel()
		}
	}()
}

// finish waits until the caller has the output, within bounds, and says how the
// program ended.
func (p *process) finish(err error) {
	outs := []*output{p.out, p.errOut}
	for _, o := range outs {
		close(o.parts)
	}
	for _, o := range outs {
		select {
		case <-o.done:
		case <-o.stuck():
			o.abandon()
		}
	}
	p.cancel()
	p.s.mu.Lock()
	delete(p.s.live, p)
	gone := p.s.gone
	p.s.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	defer close(p.done)
	switch {
	case p.ended != nil && p.ended.Exit != nil:
		p.exit = *p.ended.Exit
		p.exit.Stdout.Dropped = max(0, p.exit.Stdout.Bytes-p.from.Stdout-p.out.delivered())
		p.exit.Stderr.Dropped = max(0, p.exit.Stderr.Bytes-p.from.Stderr-p.errOut.delivered())
		return
	case p.ended != nil:
		err = fmt.Errorf("%s: %w", p.ended.Unknown, isolation.ErrUnavailable)
	case p.loose != nil:
		err = p.loose
	case gone || errors.Is(err, isolation.ErrNotFound):
		// It was deleted before its end was told.
		p.exit = isolation.Exit{Code: -1, Reason: isolation.ReasonCanceled, LimitsHit: []isolation.LimitHit{}, Detail: "the sandbox was deleted"}
		p.exit.Stdout.Bytes, p.exit.Stderr.Bytes = p.from.Stdout+p.out.given(), p.from.Stderr+p.errOut.given()
		p.exit.Usage.PeakMemoryBytes = -1
		return
	}
	p.err = p.s.fail("wait", isolation.OutcomeUnknown, err)
}

// ID implements isolation.Process.
func (p *process) ID() string { return p.id }

// PID implements isolation.Process: on the daemon's host.
func (p *process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}

// Kill implements isolation.Process.
func (p *process) Kill(ctx context.Context, sig isolation.Signal) error {
	select {
	case <-p.done:
		return nil
	default:
	}
	err := p.s.do(ctx, "kill", "POST", "/execs/"+p.id+"/kill", nil, api.Kill{Signal: fmt.Sprint(int(sig))}, nil)
	if errors.Is(err, isolation.ErrNotFound) {
		return nil // it went with its sandbox
	}
	return err
}

// terminal is a process that has one.
type terminal struct{ *process }

// Resize implements isolation.Resizer.
func (t terminal) Resize(ctx context.Context, size isolation.TerminalSize) error {
	select {
	case <-t.done:
		return nil
	default:
	}
	return t.s.do(ctx, "resize", "POST", "/execs/"+t.id+"/resize", nil, size, nil)
}

// Wait implements isolation.Process.
func (p *process) Wait(ctx context.Context) (isolation.Exit, error) {
	select {
	case <-p.done:
	default:
		select {
		case <-p.done:
		case <-ctx.Done():
			return isolation.Exit{}, context.Cause(ctx)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exit, p.err
}

// output hands one stream to the caller's writer.
type output struct {
	parts chan []byte
	spare chan []byte // takes those that were delivered, for what comes
	done  chan struct{}

	mu    sync.Mutex
	came  int64     // guarded by mu
	wrote int64     // guarded by mu
	last  time.Time // when a write began, or ended last; guarded by mu
	left  bool      // given up; guarded by mu
}

func newOutput(w io.Writer, spare chan []byte) *output {
	o := &output{parts: make(chan []byte, 4), spare: spare, done: make(chan struct{}), last: time.Now()}
	go o.deliver(w)
	return o
}

func (o *output) deliver(w io.Writer) {
	defer close(o.done)
	failed := w == nil
	for b := range o.parts {
		o.mu.Lock()
		o.last = time.Now()
		left := o.left
		o.mu.Unlock()
		if failed || left {
			continue
		}
		n, err := w.Write(b)
		failed = err != nil
		select {
		case o.spare <- b:
		default:
		}
		o.mu.Lock()
		if !o.left {
			o.wrote += int64(n)
		}
		o.last = time.Now()
		o.mu.Unlock()
	}
}

func (o *output) add(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.came += int64(n)
}

// given is what came, handed over or waiting: the stream goes on after it.
func (o *output) given() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.came
}

func (o *output) delivered() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.wrote
}

func (o *output) abandon() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.left = true
}

// stuck is closed when the caller's writer has not taken anything for the grace,
// from now on.
func (o *output) stuck() <-chan struct{} {
	c := make(chan struct{})
	began := time.Now()
	go func() {
		for {
			select {
			case <-o.done:
				return
			case <-time.After(grace / 4):
			}
			o.mu.Lock()
			last := o.last
			o.mu.Unlock()
			if last.Before(began) {
				last = began
			}
			if time.Since(last) > grace {
				close(c)
				return
			}
		}
	}()
	return c
}
