package session

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/internal/clock"
	"github.com/axocoatl/isolation/engine"
)

// Run is a program in a sandbox of its own that goes on whether or not somebody
// waits for it. It is safe for concurrent use.
type Run struct {
	r      *Runs
	id     string
	tenant string
	outputs
	ctx    context.Context // of one that this process runs
	cancel context.CancelCauseFunc
	heads  [2]*head // of the outputs of one that lasts

	mu    sync.Mutex
	rec   runRecord // guarded by mu
	ended time.Time // as this process's clock has it; guarded by mu
}

// runRecord is a run on disk: DIR/ID/run.json.
type runRecord struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	Tenant  string `json:"tenant"`
	// Key is what its caller tells a repetition of the request by; Request is the
	// request's digest.
	Key     string                `json:"key,omitempty"`
	Request string                `json:"request,omitempty"`
	Spec    isolation.Spec        `json:"spec"` // without a module's data
	Process isolation.ProcessSpec `json:"process"`
	Started time.Time             `json:"started"`
	Ended   *time.Time            `json:"ended,omitempty"`
	// EndedAt is the same for the next process: the host's clock may have been set.
	EndedAt clock.Moment   `json:"ended_at,omitzero"`
	Result  *engine.Result `json:"result,omitempty"`
	Problem *api.Problem   `json:"problem,omitempty"`
	// Lasting is there in one that goes on when this process ends.
	Lasting *lasting `json:"lasting,omitempty"`
}

const runFile = "run.json"

func (r *Run) dir() string { return filepath.Join(r.r.config.Dir, r.id) }

// ID returns the run's id.
func (r *Run) ID() string { return r.id }

// Info tells what is known.
func (r *Run) Info() api.RunStatus {
	r.mu.Lock()
	rec := r.rec
	r.mu.Unlock()
	i := api.RunStatus{
		ID: r.id, Key: rec.Key, Running: rec.Ended == nil, Spec: rec.Spec, Process: rec.Process, Started: rec.Started, Ended: rec.Ended,
		Result: rec.Result, Problem: rec.Problem, Durable: rec.Lasting != nil,
	}
	i.Stdout.From, i.Stdout.To = r.stdout.bounds()
	i.Stderr.From, i.Stderr.To = r.stderr.bounds()
	return i
}

// Wait returns how it ended, as [engine.Engine.Run] does. Unavailable: this process
// ends, and the run does not.
func (r *Run) Wait(ctx context.Context) (*engine.Result, error) {
	var leaving <-chan struct{}
	if r.lasts() {
		leaving = r.r.config.Leaving
	}
	select {
	case <-r.done:
	case <-leaving:
		return nil, &isolation.Error{Op: "wait", ID: r.id, Outcome: isolation.OutcomeUnknown, Err: errLeft}
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.rec.Problem; p != nil {
		return r.rec.Result, p.Err()
	}
	return r.rec.Result, nil
}

// Cancel ends it. Its result says so.
func (r *Run) Cancel() {
	if r.cancel != nil { // else it has ended in a process before this one
		r.cancel(context.Canceled)
	}
}

// lasts reports whether it goes on when this process ends.
func (r *Run) lasts() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rec.Lasting != nil
}

// notStarted reports whether it is known that the program did not run.
func (r *Run) notStarted() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rec.Problem != nil && r.rec.Problem.Outcome == string(isolation.NotStarted)
}

// fail ends a run that could not be begun.
func (r *Run) fail(err error) {
	now := r.r.moment()
	r.mu.Lock()
	r.endLocked(now)
	r.rec.Problem = api.ProblemOf(err)
	r.mu.Unlock()
	close(r.done)
}

// do runs the request, or goes on with one of a process before this one, and writes
// down how it ended.
func (r *Run) do(run func(context.Context) (res *engine.Result, left bool, err error)) {
	res, left, err := run(r.ctx)
	if left {
		return // who comes next waits for it; what is written till then is there
	}
	now := r.r.moment()
	r.mu.Lock()
	r.endLocked(now)
	r.rec.Result = res
	if err != nil {
		r.rec.Problem = api.ProblemOf(err)
	}
	rec := r.rec
	r.mu.Unlock()
	if err := save(filepath.Join(r.dir(), runFile), rec); err != nil {
		r.r.config.Logger.Error("write how a run ended", "tenant", r.tenant, "run", r.id, "error", err)
	}
	if rec.Lasting != nil && rec.Lasting.Input {
		if err := os.Remove(r.inputFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
			r.r.config.Logger.Error("remove the input of a run", "tenant", r.tenant, "run", r.id, "error", err)
		}
	}
	r.closeLogs()
	close(r.done)
}

// remove removes what is known of a run that has ended.
func (r *Run) remove() error {
	r.closeLogs()
	r.removeLogs()
	return os.RemoveAll(r.dir())
}

// Delete ends it and forgets it.
func (r *Run) Delete(ctx context.Context) error {
	r.Cancel()
	select {
	case <-r.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	r.r.forget(r)
	if err := r.remove(); err != nil {
		return &isolation.Error{Op: "delete run", ID: r.id, Err: err}
	}
	return nil
}

// find reads a run of a process before this one.
func (rs *Runs) find(id string) error {
	r := &Run{r: rs, id: id, outputs: newOutputs()}
	err := load(filepath.Join(r.dir(), runFile), &r.rec)
	if errors.Is(err, os.ErrNotExist) {
		return os.RemoveAll(r.dir()) // its start had hardly begun
	}
	switch {
	case err != nil:
	case r.rec.Version != recordVersion:
		err = fmt.Errorf("the record has version %d, this program knows %d", r.rec.Version, recordVersion)
	case r.rec.ID != id:
		err = fmt.Errorf("the record is of another run, %.80q", r.rec.ID)
	default:
		err = r.open(r.dir(), rs.config.Keep)
	}
	if err != nil {
		return err
	}
	r.tenant = r.rec.Tenant
	if r.rec.Ended == nil && r.rec.Lasting != nil && rs.config.Lasting != nil {
		if r.heads[0], err = openHead(r.stdout, r.rec.Lasting.Capture.Head); err == nil {
			r.heads[1], err = openHead(r.stderr, r.rec.Lasting.Capture.Head)
		}
		if err != nil {
			return err
		}
		r.ctx, r.cancel = context.WithCancelCause(rs.ctx)
		rs.all[id] = r
		rs.wg.Add(1)
		rs.begin(r, func(ctx context.Context) (*engine.Result, bool, error) { return r.measured(ctx, r.goOn) })
		return nil
	}
	if r.rec.Ended == nil {
		// Its sandbox went with the process that ran it.
		r.endLocked(rs.moment())
		r.rec.Problem = api.ProblemOf(&isolation.Error{
			Op: "run", ID: id, Outcome: isolation.OutcomeUnknown, Err: fmt.Errorf("the daemon ended while it ran: %w", isolation.ErrUnavailable),
		})
		if err := save(filepath.Join(r.dir(), runFile), r.rec); err != nil {
			return err
		}
	}
	if r.ended.IsZero() {
		r.ended = rs.endedBefore(r.rec)
	}
	r.closeLogs()
	close(r.done)
	rs.all[id] = r
	return nil
}

// endLocked notes that it has ended.
func (r *Run) endLocked(now clock.Moment) {
	r.rec.Ended, r.rec.EndedAt, r.ended = &now.Wall, now, now.Wall
}

// endedBefore is when a run of a process before this one has ended, by this one's clock.
// What is known of it is kept for as long as it may be too early to forget it: by its key
// it would be begun again.
func (rs *Runs) endedBefore(rec runRecord) time.Time {
	now, then := rs.moment(), rec.EndedAt
	if then.Wall.IsZero() {
		then.Wall = *rec.Ended // of a version that wrote no more
	}
	return now.Wall.Add(-now.AtLeast(then))
}
