package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/failpoint"
	"github.com/axocoatl/isolation/internal/journal"
)

// undoTimeout bounds what a run does to clean up after its caller gave up.
const undoTimeout = 30 * time.Second

// Run runs one request to its end. What the program did is the Result, however
// it ended. The error is the engine's, and says by isolation.OutcomeOf whether
// the program may have run; it wraps a *RefusedError when no engine may run it.
// If the program may have run, the Result is there beside the error with what is
// known: the output so far, and the Exit if its end was seen, else one without a
// Reason.
//
// When ctx ends while the program runs, it is ended, and the Result has the
// reason canceled with the output so far; the error is nil.
func (e *Engine) Run(ctx context.Context, r Request) (*Result, error) {
	if err := e.begin(); err != nil {
		return nil, notStarted(r.ID, err)
	}
	defer e.runs.Done()
	g, asked, err := e.complete(r)
	if err != nil {
		return nil, notStarted(r.ID, err)
	}
	run := run{e: e, r: g.Request, policy: g.policy, began: e.config.Now()}
	res, err := run.do(ctx, asked)
	if err != nil {
		kind := EventFailed
		if refused := (*RefusedError)(nil); errors.As(err, &refused) {
			kind = EventRefused
		}
		run.event(kind, "error", err.Error(), "outcome", string(isolation.OutcomeOf(err)))
	}
	return res, err
}

func notStarted(id string, err error) error {
	return &isolation.Error{Op: "run", ID: id, Outcome: isolation.NotStarted, Err: err}
}

// run is one run under way.
type run struct {
	e      *Engine
	r      Request
	policy Policy
	began  time.Time
	out    capture
	errOut capture
	spill  *journal.Entry // nil: no spill files
	syncs  []*synced
}

func (r *run) event(k EventKind, fields ...string) {
	if r.e.config.OnEvent == nil {
		return
	}
	ev := Event{Time: r.e.config.Now(), RunID: r.r.ID, Tenant: r.r.Spec.Tenant, Kind: k}
	for i := 0; i+1 < len(fields); i += 2 {
		if ev.Fields == nil {
			ev.Fields = map[string]string{}
		}
		ev.Fields[fields[i]] = fields[i+1]
	}
	r.e.config.OnEvent(ev)
}

func (r *run) do(ctx context.Context, asked []isolation.Limit) (res *Result, err error) {
	now := r.e.config.Now
	if err := r.e.enter(ctx, r.policy, r.r); err != nil {
		return nil, notStarted(r.r.ID, err)
	}
	defer r.e.admission.leave()
	r.event(EventAdmitted)
	d, c, err := r.e.decide(ctx, r.policy, r.r, asked)
	if err != nil {
		return nil, notStarted(r.r.ID, err)
	}
	r.event(EventChosen, "tier", d.Got.String(), "engine", d.Engine)
	if err := r.openCaptures(); err != nil {
		return nil, notStarted(r.r.ID, err)
	}
	defer func() {
		if cerr := r.closeCaptures(res != nil); cerr != nil {
			err = errors.Join(err, cerr)
		}
	}()
	chosen := now()
	sb, err := r.e.make(ctx, r.policy, r.r, d, func(ctx context.Context) (isolation.Sandbox, error) { return c.driver.Create(ctx, r.r.ID, r.r.Spec) })
	if err != nil {
		return nil, notStarted(r.r.ID, err)
	}
	failpoint.Hit(failpoint.Created)
	r.event(EventCreated)
	created := now()
	exit, err := r.exec(ctx, sb, d)
	if err == nil && ctx.Err() == nil {
		err = r.copyOut(ctx, sb, d)
	}
	if cerr := r.closeSyncs(); cerr != nil {
		err = errors.Join(err, cerr)
	}
	ended := now()
	failpoint.Hit(failpoint.Exited)
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	undo, done := r.e.step(undo, StepDelete, r.r, d)
	derr := sb.Delete(undo)
	done(StepEnd{Err: derr})
	if derr != nil {
		// A result that hides a leak is not the truth.
		err = errors.Join(err, &isolation.Error{Op: "delete", Driver: d.Engine, ID: r.r.ID, Outcome: isolation.OutcomeUnknown, Err: derr})
	} else {
		r.event(EventDeleted)
	}
	if err != nil && isolation.OutcomeOf(err) == isolation.NotStarted {
		return nil, err
	}
	failpoint.Hit(failpoint.Deleted)
	exit.Usage.Phases.Select = chosen.Sub(r.began)
	exit.Usage.Phases.Create = created.Sub(chosen)
	exit.Usage.Phases.Teardown = now().Sub(ended)
	res = r.result(d, exit)
	if reporter, ok := sb.(EgressReporter); ok {
		report := reporter.EgressReport()
		res.Egress = &report
	}
	return res, err
}

// copyIn copies into the sandbox what the request has for it.
func (r *run) copyIn(ctx context.Context, sb isolation.Sandbox, d Decision) error {
	if len(r.r.CopyIn)+len(r.r.Sync) == 0 {
		return nil
	}
	ctx, done := r.e.step(ctx, StepCopyIn, r.r, d)
	err := errors.Join(CopyIn(ctx, sb, r.r.CopyIn...), r.syncIn(ctx, sb))
	done(StepEnd{Err: err})
	return err
}

// copyOut copies out of it what the request wants.
func (r *run) copyOut(ctx context.Context, sb isolation.Sandbox, d Decision) error {
	if len(r.r.CopyOut)+len(r.r.Sync) == 0 {
		return nil
	}
	ctx, done := r.e.step(ctx, StepCopyOut, r.r, d)
	err := errors.Join(copyOut(ctx, sb, r.copyOutBytes(), r.r.CopyOut), r.syncOut(ctx, sb))
	done(StepEnd{Err: err})
	if err != nil {
		return &isolation.Error{Op: "copy out", ID: r.r.ID, Outcome: isolation.OutcomeUnknown, Err: err}
	}
	return nil
}

func (r *run) copyOutBytes() int64 {
	if n := r.r.CopyOutBytes; n > 0 {
		return min(n, copyBytes)
	}
	return copyBytes
}

// exec runs the process, and ends it when ctx does. With an error that does not
// say NotStarted comes an Exit that has no Reason.
func (r *run) exec(ctx context.Context, sb isolation.Sandbox, d Decision) (isolation.Exit, error) {
	if err := r.copyIn(ctx, sb, d); err != nil {
		return isolation.Exit{}, notStarted(r.r.ID, err)
	}
	starting, started := r.e.step(ctx, StepStart, r.r, d)
	p, err := sb.Exec(starting, r.r.Process, isolation.Stdio{Stdin: r.r.Stdin, Stdout: &r.out, Stderr: &r.errOut})
	started(StepEnd{Err: err})
	if err != nil {
		return isolation.Exit{}, notStarted(r.r.ID, err)
	}
	r.event(EventStarted, "exec_id", p.ID())
	ctx, done := r.e.step(ctx, StepExec, r.r, d)
	exit, err := r.wait(ctx, sb, p)
	if err != nil {
		done(StepEnd{Err: err})
		return exit, err
	}
	done(StepEnd{Exit: &exit})
	r.event(EventExited, "reason", string(exit.Reason), "code", strconv.Itoa(exit.Code))
	return exit, nil
}

// wait waits for the program's end, and makes it when ctx ends.
func (r *run) wait(ctx context.Context, sb isolation.Sandbox, p isolation.Process) (isolation.Exit, error) {
	defer r.resize(ctx, p)()
	exit, err := p.Wait(ctx)
	if err != nil && ctx.Err() != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		// Delete ends the process with the reason canceled.
		if err := sb.Delete(undo); err != nil {
			return r.unseen("cancel", err)
		}
		exit, err = p.Wait(undo)
	}
	if err != nil {
		return r.unseen("wait", err)
	}
	return exit, nil
}

// resize passes the terminal's sizes on until the returned function is called.
func (r *run) resize(ctx context.Context, p isolation.Process) (stop func()) {
	resizer, ok := isolation.As[isolation.Resizer](p)
	if r.r.Resize == nil || !ok {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case size, open := <-r.r.Resize:
				if !open {
					return
				}
				if err := resizer.Resize(ctx, size); err != nil && ctx.Err() == nil {
					r.e.config.Logger.WarnContext(ctx, "resize terminal", "tenant", r.r.Spec.Tenant, "run", r.r.ID, "error", err)
				}
			case <-ctx.Done():
				return
			}
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}

// unseen is what is known of a program whose end was not seen.
func (r *run) unseen(op string, err error) (isolation.Exit, error) {
	exit := isolation.Exit{Code: -1, Detail: err.Error()}
	exit.Stdout.Bytes, exit.Stderr.Bytes = r.out.bytes(), r.errOut.bytes()
	exit.Usage.PeakMemoryBytes = -1
	return exit, &isolation.Error{Op: op, ID: r.r.ID, Outcome: isolation.OutcomeUnknown, Err: err}
}

func (r *run) openCaptures() (err error) {
	c := r.r.Capture
	r.out = capture{head: c.Head, tail: c.Tail, live: r.r.Stdout}
	r.errOut = capture{head: c.Head, tail: c.Tail, live: r.r.Stderr}
	if c.SpillBytes == 0 {
		return nil
	}
	dir := filepath.Join(r.e.config.StateDir, "spill")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("spill: %w", err)
	}
	name := func(stream string) string { return filepath.Join(dir, r.r.ID+"."+stream) }
	// A run that is killed has no result, and nobody would know of its files.
	if r.spill, err = r.e.journal.Begin("spill-" + r.r.ID); err != nil {
		return err
	}
	if err = r.spill.AddPath(journal.KindTemp, name("stdout")); err == nil {
		err = r.spill.AddPath(journal.KindTemp, name("stderr"))
	}
	for _, s := range []struct {
		c    *capture
		name string
	}{{&r.out, name("stdout")}, {&r.errOut, name("stderr")}} {
		if err == nil {
			s.c.file, err = os.OpenFile(s.name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			s.c.fileLeft = c.SpillBytes
		}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("spill: %w", err), r.closeCaptures(false))
	}
	failpoint.Hit(failpoint.SpillMade)
	return nil
}

// closeCaptures closes the spill files; if they are not to stay it removes
// them.
func (r *run) closeCaptures(stay bool) error {
	var errs []error
	for _, c := range []*capture{&r.out, &r.errOut} {
		if c.file == nil {
			continue
		}
		errs = append(errs, c.file.Close())
		if !stay {
			errs = append(errs, os.Remove(c.file.Name()))
		}
	}
	if r.spill != nil {
		errs = append(errs, r.spill.Done())
	}
	return errors.Join(errs...)
}

func (r *run) result(d Decision, exit isolation.Exit) *Result {
	res := &Result{
		ID: r.r.ID, Tier: d.Got, Engine: d.Engine, Decision: d, Exit: exit,
		Stdout: r.out.text(), Stderr: r.errOut.text(),
		StdoutBytes: exit.Stdout.Bytes, StderrBytes: exit.Stderr.Bytes,
		Usage: exit.Usage,
	}
	kept := func(t Text) int64 { return int64(len(t.Head) + len(t.Tail)) }
	res.Truncated = kept(res.Stdout) < res.StdoutBytes || kept(res.Stderr) < res.StderrBytes
	if r.out.file != nil {
		res.StdoutFile, res.StderrFile = r.out.file.Name(), r.errOut.file.Name()
	}
	if res.Exit.LimitsHit == nil {
		res.Exit.LimitsHit = []isolation.LimitHit{}
	}
	return res
}
