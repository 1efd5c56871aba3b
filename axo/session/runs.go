package session

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/admission"
	"github.com/axocoatl/isolation/axo/internal/clock"
	"github.com/axocoatl/isolation/engine"
)

// Runner runs one program in a sandbox of its own; *engine.Engine is one.
type Runner interface {
	Run(context.Context, engine.Request) (*engine.Result, error)
}

// RunsConfig makes Runs.
type RunsConfig struct {
	Engine Runner
	// Lasting has the runs that ask for it outlive this process, where the engine that
	// runs them can do that; nil: none do. Of one of these Turn is waited for before it
	// begins (nil: it begins at once); Begun and Ended are told of it, as of each run
	// that Engine is given it is told itself, and an error of Begun keeps it from
	// beginning.
	Lasting LastingEngine
	Turn    func(context.Context, engine.Request) (leave func(), err error)
	// Adopted is told of one that a process before this one has begun, and that goes on.
	Adopted func(engine.Request) (leave func())
	Begun   func(context.Context, engine.Request) error
	Ended   func(tenant, id string, res *engine.Result, err error)
	// Leaving is closed when this process is about to end; nil: only Close tells.
	Leaving <-chan struct{}
	// Dir keeps the records and outputs; it is made with mode 0700.
	Dir string
	// Keep is how much is kept of each stream, at least; 0: 8 MiB.
	Keep int64
	// MaxLive bounds the runs of a tenant that are under way; 0: 64. Of those that have
	// ended as many are known as MaxEnded, MaxBytes of output and Retain allow; 0: 256,
	// 512 MiB, an hour.
	MaxLive, MaxEnded int
	MaxBytes          int64
	Retain            time.Duration
	Logger            *slog.Logger     // nil: silent
	Now               func() time.Time // nil: time.Now
	// Boot is as Config has it.
	Boot func() (id string, up time.Duration)
	// Measure has a run that outlives this process run, and sees how it ends; one that
	// goes on without this process returns neither a result nor an error. Observer is
	// told of its steps. nil: nobody is.
	Measure  func(ctx context.Context, tenant, id string, run func(context.Context) (*engine.Result, error)) (*engine.Result, error)
	Observer engine.Observer
	// OnRefused is told of runs that would be more than MaxLive; nil: nobody is.
	OnRefused func(tenant string, why admission.Reason)
}

// Runs has the runs that go on by themselves. It is safe for concurrent use.
type Runs struct {
	config RunsConfig
	ctx    context.Context // ends what is under way
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	all    map[string]*Run // guarded by mu
	closed bool            // guarded by mu
}

// OpenRuns finds the runs that are known.
func OpenRuns(c RunsConfig) (*Runs, error) {
	if c.Keep == 0 {
		c.Keep = 8 << 20
	}
	c.MaxLive, c.MaxEnded, c.MaxBytes, c.Retain = cmp.Or(c.MaxLive, 64), cmp.Or(c.MaxEnded, 256), cmp.Or(c.MaxBytes, 512<<20), cmp.Or(c.Retain, time.Hour)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
		if c.Boot == nil {
			c.Boot = clock.Boot
		}
	}
	if c.OnRefused == nil {
		c.OnRefused = func(string, admission.Reason) {}
	}
	if c.Measure == nil {
		c.Measure = func(ctx context.Context, _, _ string, run func(context.Context) (*engine.Result, error)) (*engine.Result, error) {
			return run(ctx)
		}
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("runs: %w", err)
	}
	rs := &Runs{config: c, all: map[string]*Run{}}
	rs.ctx, rs.cancel = context.WithCancelCause(context.Background())
	list, err := os.ReadDir(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("runs: %w", err)
	}
	for _, f := range list {
		if !f.IsDir() || isolation.ValidateID(f.Name()) != nil {
			continue
		}
		if err := rs.find(f.Name()); err != nil {
			// Only a person can say what it is.
			c.Logger.Error("run cannot be read; it is left alone", "run", f.Name(), "error", err)
		}
	}
	rs.Retire()
	return rs, nil
}

// NewRunID is an id for a run.
func NewRunID() string { return newID("run-") }

// Start begins a run, or returns the one that was begun by the same request before.
// A request is the same if it has the same key, which is the caller's; "": no other
// is. One with the key and another digest is AlreadyExists; one of which it is known
// that its program did not run does not count. With follow the caller calls Follow
// from the beginning on, or Unfollow. A run is written down before it begins. The
// error is of one that has not begun.
//
// One that is to last goes on, with its limits, when this process ends, however it does,
// if its engine can have it so; the next process has it, and its result.
func (rs *Runs) Start(ctx context.Context, tenant, key, digest string, req engine.Request, follow, last bool) (_ *Run, again bool, err error) {
	fail := func(err error) error { return &isolation.Error{Op: "run", Outcome: isolation.NotStarted, Err: err} }
	r := &Run{r: rs, id: NewRunID(), tenant: tenant, outputs: newOutputs()}
	r.rec = runRecord{
		Version: recordVersion, ID: r.id, Tenant: tenant, Key: key, Request: digest, Spec: req.Spec, Process: req.Process, Started: rs.config.Now(),
	}
	r.rec.Spec.Module.Data = nil
	r.rec.Spec.Tenant = strings.TrimPrefix(req.Spec.Tenant, tenant+"/") // as it was asked for
	if last {
		r.rec.Lasting = rs.last(ctx, req)
	}
	r.ctx, r.cancel = context.WithCancelCause(rs.ctx)
	rs.Retire()
	if err = os.Mkdir(r.dir(), 0o700); err == nil {
		err = r.open(r.dir(), rs.config.Keep)
	}
	if err == nil && follow {
		err = r.reserve()
	}
	var other *Run
	if err == nil {
		other, err = rs.reserve(r)
	}
	if err != nil || other != nil {
		r.cancel(nil)
		r.Unfollow()
		if err = errors.Join(err, r.remove()); err != nil {
			return nil, false, fail(err)
		}
		return other, true, nil
	}
	if err := save(filepath.Join(r.dir(), runFile), r.rec); err != nil {
		r.cancel(nil)
		r.Unfollow()
		err = fail(errors.Join(err, r.remove()))
		rs.forget(r)
		r.fail(err) // somebody may wait for it by its key
		rs.wg.Done()
		return nil, false, err
	}
	req.ID = r.id
	of := context.WithoutCancel(ctx)
	rs.begin(r, func(ctx context.Context) (*engine.Result, bool, error) {
		ctx = knowing{ctx, of}
		if r.rec.Lasting != nil {
			return r.measured(ctx, func(ctx context.Context) (*engine.Result, bool, error) { return r.runLasting(ctx, req) })
		}
		req.Stdout, req.Stderr = r.stdout, r.stderr
		res, err := rs.config.Engine.Run(ctx, req)
		return res, false, err
	})
	return r, false, nil
}

// begin has a run that is counted in wg run.
func (rs *Runs) begin(r *Run, run func(context.Context) (res *engine.Result, left bool, err error)) {
	go func() {
		defer rs.wg.Done()
		defer r.cancel(nil)
		r.do(run)
	}()
}

// reserve enters a run, or returns the one that is the same.
func (rs *Runs) reserve(r *Run) (*Run, error) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.closed {
		return nil, fmt.Errorf("the daemon is about to end: %w", isolation.ErrUnavailable)
	}
	live := 0
	for _, other := range rs.all {
		if other.tenant != r.tenant {
			continue
		}
		if other.live() {
			live++
		}
		if r.rec.Key == "" || other.rec.Key != r.rec.Key || other.notStarted() {
			continue
		}
		if other.rec.Request != r.rec.Request {
			return nil, fmt.Errorf("the key %.80q is that of another request: %w", r.rec.Key, isolation.ErrAlreadyExists)
		}
		return other, nil
	}
	if live >= rs.config.MaxLive {
		rs.config.OnRefused(r.tenant, admission.ReasonQuota)
		return nil, fmt.Errorf("the tenant has %d runs under way, no more are taken; retry later: %w", live, isolation.ErrResourceExhausted)
	}
	rs.all[r.id] = r
	rs.wg.Add(1)
	return nil, nil
}

func (rs *Runs) forget(r *Run) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	delete(rs.all, r.id)
}

// Get returns a tenant's run. Another's is NotFound.
func (rs *Runs) Get(tenant, id string) (*Run, error) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	r := rs.all[id]
	if r == nil || r.tenant != tenant {
		return nil, fmt.Errorf("run %.80q: %w", id, isolation.ErrNotFound)
	}
	return r, nil
}

// List returns a tenant's runs, the oldest first.
func (rs *Runs) List(tenant string) (out []*Run) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for _, r := range rs.all {
		if r.tenant == tenant {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b *Run) int {
		return cmp.Or(a.rec.Started.Compare(b.rec.Started), cmp.Compare(a.id, b.id))
	})
	return out
}

// Tenants are those who have a run, in order.
func (rs *Runs) Tenants() []string {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	all := map[string]bool{}
	for _, r := range rs.all {
		all[r.tenant] = true
	}
	return slices.Sorted(maps.Keys(all))
}

// Retire forgets the runs that ended too long ago, or longest ago when there are too
// many. It is done for each new one.
func (rs *Runs) Retire() {
	now := rs.config.Now()
	rs.mu.Lock()
	ended := map[string][]*Run{}
	for _, r := range rs.all {
		if !r.live() {
			ended[r.tenant] = append(ended[r.tenant], r)
		}
	}
	var old []*Run
	for _, list := range ended {
		slices.SortFunc(list, func(a, b *Run) int { return b.endedAt().Compare(a.endedAt()) })
		bytes := int64(0)
		for i, r := range list {
			bytes += r.kept()
			if i >= rs.config.MaxEnded || bytes > rs.config.MaxBytes || now.Sub(r.endedAt()) > rs.config.Retain {
				old = append(old, r)
				delete(rs.all, r.id)
			}
		}
	}
	rs.mu.Unlock()
	for _, r := range old {
		if err := r.remove(); err != nil {
			rs.config.Logger.Error("remove what is known of a run", "tenant", r.tenant, "run", r.id, "error", err)
		}
	}
}

func (r *Run) endedAt() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ended
}

// moment is now, as it can be written down.
func (rs *Runs) moment() clock.Moment { return clock.At(rs.config.Now(), rs.config.Boot) }

// Owns reports whether a sandbox, by the id that its driver has it by, is a run's; id
// is the run's.
func (rs *Runs) Owns(sandbox string) (tenant, id string, ok bool) {
	rs.mu.Lock()
	all := slices.Collect(maps.Values(rs.all))
	rs.mu.Unlock()
	for _, r := range all {
		r.mu.Lock()
		ok := r.rec.Ended == nil && r.rec.Lasting != nil && (r.rec.Lasting.Sandbox == sandbox || r.id == sandbox)
		r.mu.Unlock()
		if ok {
			return r.tenant, r.id, true
		}
	}
	return "", "", false
}

// Close takes no more runs, gives those under way the time that ctx has, and ends the
// rest, whose results say so. Those that last it lets go.
func (rs *Runs) Close(ctx context.Context) {
	rs.mu.Lock()
	rs.closed = true
	all := slices.Collect(maps.Values(rs.all))
	rs.mu.Unlock()
	for _, r := range all {
		if r.lasts() {
			continue
		}
		select {
		case <-r.done:
		case <-ctx.Done():
		}
	}
	rs.cancel(errLeft)
	rs.wg.Wait()
}
