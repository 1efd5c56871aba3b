package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/engine"
	"github.com/axocoatl/isolation/internal/failpoint"
)

// LastingEngine makes sandboxes that outlive this process, and finds them again;
// *engine.Engine is one.
type LastingEngine interface {
	Explain(context.Context, engine.Request) (engine.Decision, error)
	Create(context.Context, engine.Request) (isolation.Sandbox, engine.Decision, error)
	RecoverOne(ctx context.Context, engine string, r engine.Request) (isolation.Sandbox, error)
}

// lasting is what a run that outlives this process has in its record, so that the
// next one goes on with it.
type lasting struct {
	Source          string          `json:"source,omitempty"`
	Egress          engine.Egress   `json:"egress,omitzero"`
	AllowUnenforced bool            `json:"allow_unenforced,omitempty"`
	Decision        engine.Decision `json:"decision"`
	Capture         engine.Capture  `json:"capture"`
	Input           bool            `json:"input,omitempty"`   // in the file inputFile
	Sandbox         string          `json:"sandbox,omitempty"` // the id that the driver has it by; "": it is being made
	// Exit is how the program ended; the sandbox may be there still.
	Exit   *isolation.Exit  `json:"exit,omitempty"`
	Phases isolation.Phases `json:"phases,omitzero"`
}

const (
	inputFile = "input"
	// lastingExec is the id of the one program of a run's sandbox.
	lastingExec = "run"
	// again is the pause before a sandbox that could not be reached, or removed, is
	// tried again.
	again = 5 * time.Second
	// removals is how often it is tried to remove a run's sandbox before its result says
	// that it is left.
	removals = 3
)

var errLeft = fmt.Errorf("the daemon is about to end, and the run goes on; ask the next one: %w", isolation.ErrUnavailable)

// last makes a run one that outlives this process, if the engine that would run it in
// any case can do that.
func (rs *Runs) last(ctx context.Context, q engine.Request) *lasting {
	if rs.config.Lasting == nil || len(q.CopyIn)+len(q.CopyOut)+len(q.Sync) > 0 {
		return nil
	}
	d, err := rs.config.Lasting.Explain(ctx, q)
	if err != nil {
		return nil // to run it says why
	}
	q.Spec.Detached = true
	detached, err := rs.config.Lasting.Explain(ctx, q)
	if err != nil || detached.Engine != d.Engine || detached.Got != d.Got {
		return nil
	}
	return &lasting{Source: q.Source, Egress: q.Egress, AllowUnenforced: q.AllowUnenforced, Decision: d, Capture: q.Capture, Input: q.Stdin != nil}
}

// request is the one that the run's sandbox is made and found again by.
func (r *Run) request() engine.Request {
	l := r.rec.Lasting
	q := engine.Request{ID: r.id, Source: l.Source, Spec: r.rec.Spec, Engine: l.Decision.Engine, AllowEmulated: l.Decision.Emulated, AllowUnenforced: l.AllowUnenforced, Egress: l.Egress}
	q.Spec.Tenant = r.tenant + "/" + r.rec.Spec.Tenant
	q.Spec.Detached = true
	return q
}

func (r *Run) inputFile() string { return filepath.Join(r.dir(), inputFile) }

// runLasting runs the request in a sandbox that outlives this process. left: this
// process ends, and the run goes on.
func (r *Run) runLasting(ctx context.Context, q engine.Request) (res *engine.Result, left bool, err error) {
	fail := func(err error) (*engine.Result, bool, error) {
		return nil, false, &isolation.Error{Op: "run", ID: r.id, Outcome: isolation.NotStarted, Err: err}
	}
	c, began := r.r.config, r.r.config.Now()
	if c.Turn != nil {
		leave, err := c.Turn(ctx, q)
		if err != nil {
			return fail(err)
		}
		defer leave()
	}
	if c.Begun != nil {
		if err := c.Begun(ctx, q); err != nil {
			return fail(err)
		}
		defer func() {
			if !left {
				c.Ended(r.tenant, r.id, res, err)
			}
		}()
	}
	if q.Stdin != nil {
		if err := r.keepInput(q.Stdin); err != nil {
			return fail(fmt.Errorf("keep the input: %w", err))
		}
	}
	failpoint.Hit(failpoint.RunRecorded)
	own := r.request()
	own.Spec, own.Tier, own.MinTier, own.AllowEmulated = q.Spec, q.Tier, q.MinTier, q.AllowEmulated
	own.Spec.Detached = true
	chosen := c.Now()
	sb, _, err := c.Lasting.Create(ctx, own)
	if err != nil {
		return fail(err)
	}
	failpoint.Hit(failpoint.RunMade)
	if err := r.change(func(l *lasting) {
		l.Sandbox = engine.RecoveryID(sb)
		l.Phases = isolation.Phases{Select: chosen.Sub(began), Create: c.Now().Sub(chosen)}
	}); err != nil {
		return fail(errors.Join(err, r.removeSandbox(ctx, sb)))
	}
	stdio, err := r.stdio()
	if err != nil {
		return fail(errors.Join(err, r.removeSandbox(ctx, sb)))
	}
	q.Process.ExecID = lastingExec
	starting, started := r.step(ctx, engine.StepStart)
	p, err := sb.Exec(starting, q.Process, stdio)
	started(engine.StepEnd{Err: err})
	if err != nil {
		return fail(errors.Join(err, r.removeSandbox(ctx, sb)))
	}
	failpoint.Hit(failpoint.RunStarted)
	return r.watch(ctx, sb, p)
}

// goOn goes on with a run of a process before this one.
func (r *Run) goOn(ctx context.Context) (res *engine.Result, left bool, err error) {
	if c := r.r.config; c.Adopted != nil {
		defer c.Adopted(r.request())()
	}
	if c := r.r.config; c.Ended != nil {
		defer func() {
			if !left {
				c.Ended(r.tenant, r.id, res, err)
			}
		}()
	}
	never := func(err error) (*engine.Result, bool, error) {
		return nil, false, &isolation.Error{Op: "run", ID: r.id, Outcome: isolation.NotStarted, Err: errors.Join(fmt.Errorf("the daemon ended before the program began: %w", isolation.ErrUnavailable), err)}
	}
	unknown := func(err error) (*engine.Result, bool, error) {
		return nil, false, &isolation.Error{Op: "run", ID: r.id, Outcome: isolation.OutcomeUnknown, Err: fmt.Errorf("%w: %w", err, isolation.ErrUnavailable)}
	}
	l := *r.rec.Lasting
	sb, err := r.find()
	switch {
	case err != nil:
		return nil, true, nil
	case l.Exit != nil:
		return r.over(ctx, sb, *l.Exit)
	case sb == nil && l.Sandbox == "":
		return never(nil)
	case sb == nil:
		return unknown(errors.New("its sandbox was lost while it ran"))
	case l.Sandbox == "":
		return never(r.removeSandbox(ctx, sb)) // and nothing was run in it
	}
	p, err := r.attach(ctx, sb)
	switch {
	case errors.Is(err, isolation.ErrNotFound):
		return never(r.removeSandbox(ctx, sb))
	case err != nil:
		return unknown(errors.Join(err, r.removeSandbox(ctx, sb)))
	}
	return r.watch(ctx, sb, p)
}

// find looks for the run's sandbox, for as long as it cannot be reached. nil: there is
// none. The error is errLeft.
func (r *Run) find() (isolation.Sandbox, error) {
	q := r.request()
	if id := r.rec.Lasting.Sandbox; id != "" {
		q.ID = id
	}
	for {
		sb, err := r.r.config.Lasting.RecoverOne(r.r.ctx, q.Engine, q)
		var unsupported *isolation.UnsupportedError
		switch {
		case errors.Is(err, isolation.ErrNotFound) || errors.As(err, &unsupported):
			return nil, nil
		case err == nil:
			return sb, nil
		}
		r.r.config.Logger.Error("run cannot be reached; tried again later", "tenant", r.tenant, "run", r.id, "error", err)
		// Who cancels it meanwhile waits: what lives is not given up.
		select {
		case <-time.After(again):
		case <-r.r.ctx.Done():
			return nil, errLeft
		}
	}
}

// attach goes on with the program's output from where that on disk ends.
func (r *Run) attach(ctx context.Context, sb isolation.Sandbox) (isolation.Process, error) {
	a, ok := isolation.As[isolation.Attacher](sb)
	if !ok {
		return nil, errors.New("this engine does not find programs again")
	}
	var from isolation.Offsets
	_, from.Stdout = r.stdout.bounds()
	_, from.Stderr = r.stderr.bounds()
	stdio, err := r.stdio()
	if err != nil {
		return nil, err
	}
	// Who has canceled it gets a result that says so.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	p, err := a.Attach(ctx, lastingExec, from, stdio)
	if errors.Is(err, isolation.ErrFailedPrecondition) && stdio.Stdin != nil {
		stdio.Stdin = nil // its input has ended
		p, err = a.Attach(ctx, lastingExec, from, stdio)
	}
	return p, err
}

// watch waits for the program's end, and ends it when ctx does, unless that is because
// this process does.
func (r *Run) watch(ctx context.Context, sb isolation.Sandbox, p isolation.Process) (*engine.Result, bool, error) {
	within := ctx
	ctx, done := r.step(ctx, engine.StepExec)
	exit, err := p.Wait(ctx)
	if err != nil && ctx.Err() != nil {
		if errors.Is(context.Cause(ctx), errLeft) {
			done(engine.StepEnd{})
			return nil, true, nil
		}
		if err := r.removeSandbox(ctx, sb); err != nil {
			done(engine.StepEnd{Err: err})
			return nil, false, err
		}
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		exit, err = p.Wait(undo) // with the reason canceled
	}
	if err != nil {
		done(engine.StepEnd{Err: err})
		err = &isolation.Error{Op: "wait", ID: r.id, Outcome: isolation.OutcomeUnknown, Err: err}
		return nil, false, errors.Join(err, r.removeSandbox(ctx, sb))
	}
	done(engine.StepEnd{Exit: &exit})
	return r.over(within, sb, exit)
}

// over writes down how the program ended before its sandbox is removed, and makes the
// result. sb nil: it is gone.
func (r *Run) over(ctx context.Context, sb isolation.Sandbox, exit isolation.Exit) (*engine.Result, bool, error) {
	if err := r.change(func(l *lasting) { l.Exit = &exit }); err != nil {
		r.r.config.Logger.Error("write how the program of a run ended", "tenant", r.tenant, "run", r.id, "error", err)
	}
	failpoint.Hit(failpoint.RunExited)
	began := r.r.config.Now()
	var err error
	if sb != nil {
		err = r.removeSandbox(ctx, sb)
	}
	failpoint.Hit(failpoint.RunUnmade)
	l := *r.rec.Lasting
	exit.Usage.Phases.Select, exit.Usage.Phases.Create, exit.Usage.Phases.Teardown = l.Phases.Select, l.Phases.Create, r.r.config.Now().Sub(began)
	if exit.LimitsHit == nil {
		exit.LimitsHit = []isolation.LimitHit{} // a list in JSON
	}
	res := &engine.Result{
		ID: r.id, Tier: l.Decision.Got, Engine: l.Decision.Engine, Decision: l.Decision, Exit: exit,
		Stdout: r.heads[0].text(l.Capture), Stderr: r.heads[1].text(l.Capture), StdoutBytes: exit.Stdout.Bytes, StderrBytes: exit.Stderr.Bytes, Usage: exit.Usage,
	}
	kept := func(t engine.Text) int64 { return int64(len(t.Head) + len(t.Tail)) }
	res.Truncated = kept(res.Stdout) < res.StdoutBytes || kept(res.Stderr) < res.StderrBytes
	if reporter, ok := isolation.As[engine.EgressReporter](sb); ok {
		report := reporter.EgressReport() // of what this process has seen
		res.Egress = &report
	}
	return res, false, err
}

// removeSandbox removes the run's sandbox, whatever becomes of ctx. A result that hides
// a leak would not be the truth: after some tries the error is in it.
func (r *Run) removeSandbox(ctx context.Context, sb isolation.Sandbox) (err error) {
	for try := 1; ; try++ {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		undo, done := r.step(undo, engine.StepDelete)
		err = sb.Delete(undo)
		done(engine.StepEnd{Err: err})
		cancel()
		if err == nil {
			return nil
		}
		if try == removals {
			return &isolation.Error{Op: "delete", ID: r.id, Outcome: isolation.OutcomeUnknown, Err: err}
		}
		r.r.config.Logger.Warn("remove the sandbox of a run; tried again", "tenant", r.tenant, "run", r.id, "error", err)
		time.Sleep(again)
	}
}

// change writes down a change of what a lasting run has in its record.
func (r *Run) change(f func(*lasting)) error {
	r.mu.Lock()
	next := *r.rec.Lasting
	f(&next)
	r.rec.Lasting = &next
	rec := r.rec
	r.mu.Unlock()
	return save(filepath.Join(r.dir(), runFile), rec)
}

// keepInput puts the input where the next process finds it.
func (r *Run) keepInput(in io.Reader) error {
	f, err := os.OpenFile(r.inputFile(), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, in)
	return errors.Join(err, f.Close())
}

// stdio are the program's streams. The beginning of each output is kept in memory: that
// on disk is dropped when there is much.
func (r *Run) stdio() (isolation.Stdio, error) {
	for i, l := range []*log{r.stdout, r.stderr} {
		h, err := openHead(l, r.rec.Lasting.Capture.Head)
		if err != nil {
			return isolation.Stdio{}, err
		}
		r.heads[i] = h
	}
	io := isolation.Stdio{Stdout: r.heads[0], Stderr: r.heads[1]}
	if r.rec.Lasting.Input {
		f, err := os.Open(r.inputFile())
		if err != nil {
			return isolation.Stdio{}, fmt.Errorf("the input: %w", err)
		}
		io.Stdin = f // it is closed with this process, or by the collector
	}
	return io, nil
}

// head is a log and the beginning of what was written to it.
type head struct {
	l    *log
	most int64

	mu   sync.Mutex
	kept []byte // guarded by mu
	lost bool   // the beginning was not there any more; guarded by mu
}

func openHead(l *log, most int64) (*head, error) {
	h := &head{l: l, most: most}
	start, end := l.bounds()
	if h.lost = start > 0; h.lost || end == 0 {
		return h, nil
	}
	b, err := l.part(0, min(most, end))
	h.kept = b
	return h, err
}

// Write implements io.Writer.
func (h *head) Write(p []byte) (int, error) {
	n, err := h.l.Write(p)
	h.mu.Lock()
	defer h.mu.Unlock()
	if room := h.most - int64(len(h.kept)); room > 0 && !h.lost {
		h.kept = append(h.kept, p[:min(room, int64(n))]...)
	}
	return n, err
}

// text is what a result has of the stream: its beginning, and of what is on disk the
// end.
func (h *head) text(c engine.Capture) engine.Text {
	h.mu.Lock()
	defer h.mu.Unlock()
	start, end := h.l.bounds()
	t := engine.Text{Head: bytes.Clone(h.kept)}
	from := max(int64(len(h.kept)), start, end-c.Tail)
	tail, err := h.l.part(from, end)
	if err != nil {
		tail = nil
	}
	t.Tail, t.Omitted = tail, end-int64(len(t.Head))-int64(len(tail))
	return t
}

// part reads what is kept from one offset to another.
func (l *log) part(from, to int64) ([]byte, error) {
	r, err := l.read(from)
	if err != nil {
		return nil, err
	}
	defer r.close()
	b := make([]byte, to-from)
	for n := 0; n < len(b); {
		k, _, err := r.now(b[n:])
		if err != nil {
			return nil, err
		}
		if k == 0 {
			return nil, io.ErrUnexpectedEOF
		}
		n += k
	}
	return b, nil
}
