// Package engine runs tool code in the strongest tier that the host has and
// that can run it: it probes, chooses, explains, admits, runs, and accounts.
// It knows drivers only by the contract of the root package.
package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/journal"
)

// Engine runs requests. It is safe for concurrent use.
type Engine struct {
	config     Config
	candidates []candidate
	probes     *probes
	admission  admission
	journal    *journal.Journal // nil: no state directory
	keep       *journal.Keep    // likewise
	prefix     string
	serial     atomic.Int64

	mu     sync.Mutex
	closed bool           // guarded by mu
	runs   sync.WaitGroup // added to under mu
	// networks are those of sandboxes that are there; guarded by mu
	networks map[*network]struct{}
}

// New makes an Engine. Drivers are not probed before they are needed.
func New(c Config) (*Engine, error) {
	if c.MaxRuns == 0 {
		c.MaxRuns = 1024
	}
	if c.MaxQueue == 0 {
		c.MaxQueue = 4096
	}
	if c.ProbeTimeout == 0 {
		c.ProbeTimeout = 3 * time.Second
	}
	if c.Policy.Admission == 0 {
		c.Policy.Admission = 30 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.MaxRuns < 0 || c.MaxQueue < 0 || c.ProbeTimeout < 0 {
		return nil, fmt.Errorf("engine config: negative bound: %w", isolation.ErrInvalidArgument)
	}
	if err := c.Policy.Validate(); err != nil {
		return nil, err
	}
	if c.StateDir != "" {
		if !filepath.IsAbs(c.StateDir) {
			return nil, fmt.Errorf("state directory %q is not absolute: %w", c.StateDir, isolation.ErrInvalidArgument)
		}
		if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
			return nil, fmt.Errorf("state directory: %w", err)
		}
	}
	e := &Engine{
		config: c, networks: map[*network]struct{}{}, probes: newProbes(c), admission: newAdmission(c.MaxRuns, c.MaxQueue),
		prefix: fmt.Sprintf("run-%d-%s-", os.Getpid(), strconv.FormatInt(c.Now().UnixNano(), 36)),
	}
	if c.StateDir != "" {
		var err error
		if e.journal, err = journal.Open(filepath.Join(c.StateDir, journal.Dir)); err != nil {
			return nil, err
		}
		if e.keep, err = journal.OpenKeep(filepath.Join(c.StateDir, journal.KeptDir)); err != nil {
			return nil, err
		}
		e.Sweep()
	}
	for _, r := range c.Registry.All() {
		e.candidates = append(e.candidates, candidate{r.Tier, r.Driver.Name(), r.Driver})
	}
	return e, nil
}

// Explain says what Run would do with a request, and runs nothing of it. The
// error is a *RefusedError when no engine may run it.
func (e *Engine) Explain(ctx context.Context, r Request) (Decision, error) {
	g, asked, err := e.complete(r)
	if err != nil {
		return Decision{}, err
	}
	d, _, err := choose(ctx, g.policy, e.candidates, g.Request, asked, e.probes.features)
	return d, err
}

// Allows says whether the policy's rules let a request be, without a look at the
// engines: it is what Config.Rules says. Where there are no rules, each may.
func (e *Engine) Allows(r Request) error {
	_, err := e.policyFor(r)
	return err
}

// governed is a request with the policy that holds for it.
type governed struct {
	Request
	policy Policy
}

// policyFor finds the policy for a request, and names its rule.
func (e *Engine) policyFor(r Request) (Policy, error) {
	p := e.config.Policy
	if e.config.Rules == nil {
		return p, nil
	}
	ruled, name, err := e.config.Rules(r)
	if err != nil {
		return p, err
	}
	ruled.Admission, ruled.rule = p.Admission, name
	// What the engine itself may not use no rule allows.
	if len(ruled.Engines) == 0 {
		ruled.Engines = p.Engines
	} else if len(p.Engines) > 0 {
		ruled.Engines = slices.DeleteFunc(slices.Clone(ruled.Engines), func(n string) bool { return !slices.Contains(p.Engines, n) })
		if len(ruled.Engines) == 0 {
			return p, fmt.Errorf("the engines of policy rule %q are none that may be used here: %w", name, isolation.ErrPermissionDenied)
		}
	}
	if ruled.Egress == nil {
		ruled.Egress = p.Egress
	}
	return ruled, nil
}

// complete validates a request and fills in the policy's defaults. It returns
// the limits that the caller asked for by name.
func (e *Engine) complete(asks Request) (governed, []isolation.Limit, error) {
	r := governed{Request: asks}
	if err := r.Spec.Validate(); err != nil {
		return r, nil, err
	}
	if err := r.Spec.ValidateProcess(r.Process); err != nil {
		return r, nil, err
	}
	if err := errors.Join(checkCopies(r.CopyIn, r.CopyOut), checkSync(r.Request)); err != nil {
		return r, nil, err
	}
	if c := r.Capture; c.Head < 0 || c.Tail < 0 || c.SpillBytes < 0 {
		return r, nil, fmt.Errorf("capture: negative size: %w", isolation.ErrInvalidArgument)
	}
	if r.Capture.SpillBytes > 0 && e.config.StateDir == "" {
		return r, nil, fmt.Errorf("capture: a spill file needs a state directory: %w", isolation.ErrFailedPrecondition)
	}
	asked := isolation.LimitsOf(r.Spec, r.Process)
	var err error
	if r.ID, err = e.completeID(r.ID); err != nil {
		return r, nil, err
	}
	if r.policy, err = e.policyFor(r.Request); err != nil {
		return r, nil, err
	}
	if r.Process.Limits, err = r.policy.limits(r.Process.Limits); err != nil {
		return r, nil, err
	}
	if _, _, err := r.policy.egressRules(r.Egress); err != nil {
		return r, nil, err
	}
	r.Spec.Resources, err = r.policy.resources(r.Spec.Resources)
	return r, asked, err
}

// completeID makes an id where there is none.
func (e *Engine) completeID(id string) (string, error) {
	if id == "" {
		return e.prefix + strconv.FormatInt(e.serial.Add(1), 10), nil
	}
	return id, isolation.ValidateID(id)
}

// limits fills in the defaults of a process's limits, and refuses more than a
// request may have.
func (p Policy) limits(l isolation.Limits) (isolation.Limits, error) {
	d, m := p.DefaultLimits, p.MaxLimits
	return l, errors.Join(
		bound(isolation.LimitWall, &l.Wall, d.Wall, m.Wall), bound(isolation.LimitCPUTime, &l.CPU, d.CPU, m.CPU),
		bound(isolation.LimitFuel, &l.Fuel, d.Fuel, m.Fuel), bound(isolation.LimitOutput, &l.OutputBytes, d.OutputBytes, m.OutputBytes),
		bound(isolation.LimitFiles, &l.OpenFiles, d.OpenFiles, m.OpenFiles))
}

// resources does so with a sandbox's resources.
func (p Policy) resources(r isolation.Resources) (isolation.Resources, error) {
	d, m := p.DefaultResources, p.MaxResources
	return r, errors.Join(
		bound(isolation.LimitMemory, &r.MemoryBytes, d.MemoryBytes, m.MemoryBytes), bound(isolation.LimitCPUs, &r.CPUs, d.CPUs, m.CPUs),
		bound(isolation.LimitPids, &r.Pids, d.Pids, m.Pids), bound(isolation.LimitDisk, &r.DiskBytes, d.DiskBytes, m.DiskBytes),
		bound(isolation.LimitIO, &r.IO.ReadBytes, d.IO.ReadBytes, m.IO.ReadBytes), bound(isolation.LimitIO, &r.IO.WriteBytes, d.IO.WriteBytes, m.IO.WriteBytes),
		bound(isolation.LimitIO, &r.IO.ReadOps, d.IO.ReadOps, m.IO.ReadOps), bound(isolation.LimitIO, &r.IO.WriteOps, d.IO.WriteOps, m.IO.WriteOps))
}

// bound fills in what is not asked for, and refuses more than there may be.
func bound[T cmp.Ordered](l isolation.Limit, v *T, def, most T) error {
	var none T
	if most > none && *v > most {
		return fmt.Errorf("the limit %s of %v is more than the policy's %v: %w", l, *v, most, isolation.ErrPermissionDenied)
	}
	fill(v, def)
	fill(v, most)
	return nil
}

func fill[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Doctor probes every engine anew, one after another: probes that share the
// cores would fail each other's deadlines.
func (e *Engine) Doctor(ctx context.Context) []EngineReport {
	var out []EngineReport
	for _, c := range e.candidates {
		began := e.config.Now()
		f, err := e.probes.anew(ctx, c)
		r := EngineReport{Tier: c.tier, Engine: c.name, OK: err == nil, Features: f, Took: e.config.Now().Sub(began)}
		r.TookMS = float64(r.Took) / float64(time.Millisecond)
		if err != nil {
			r.Reason, r.Fix = probeReason(err)
		}
		out = append(out, r)
	}
	return out
}

// SweepReport says what a sweep found of processes that were killed.
type SweepReport = journal.Report

// Sweep removes what killed processes left behind: their sandboxes' processes
// and control groups. Detached sandboxes that live it leaves alone: see Recover. New
// does so once; a daemon does it from time to time.
func (e *Engine) Sweep() SweepReport {
	if e.journal == nil {
		return SweepReport{}
	}
	rep, kept := e.journal.Sweep(), e.keep.Sweep()
	rep.Entries, rep.Kept = rep.Entries+kept.Entries, kept.Kept
	rep.Removed, rep.Errors = append(rep.Removed, kept.Removed...), append(rep.Errors, kept.Errors...)
	if rep.Entries > 0 || len(rep.Errors) > 0 {
		e.config.Logger.Info("sweep", "entries", rep.Entries, "kept", rep.Kept, "removed", rep.Removed, "errors", rep.Errors)
	}
	return rep
}

var errClosed = fmt.Errorf("engine is closed: %w", isolation.ErrFailedPrecondition)

// begin counts a run that Close waits for.
func (e *Engine) begin() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return errClosed
	}
	e.runs.Add(1)
	return nil
}

// Close refuses new runs, waits for those under way, and closes the drivers.
func (e *Engine) Close() error {
	e.mu.Lock()
	already := e.closed
	e.closed = true
	e.mu.Unlock()
	e.runs.Wait()
	e.probes.close()
	if already {
		return nil
	}
	// Those of sandboxes that outlive this engine end too: the next one has its own.
	e.endNetworks()
	var errs []error
	for _, c := range e.candidates {
		if err := c.driver.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close %s: %w", c.name, err))
		}
	}
	return errors.Join(errs...)
}
