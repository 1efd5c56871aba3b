package telemetry

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/admission"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/engine"
)

// Config makes a Telemetry. The zero value is good.
type Config struct {
	Version string
	// Tenants is how many tenants have series of their own, those that come first; all
	// others have one together. 0: tenants are not told apart.
	Tenants int
	Logger  *slog.Logger // nil: silent
	// Log counts what it has left out; nil: nothing does. Traces takes spans; nil: there
	// are none.
	Log    *Log
	Traces *Traces
}

// Telemetry measures a daemon. It is safe for concurrent use.
type Telemetry struct {
	config  Config
	metrics *metrics
}

// New makes one.
func New(c Config) *Telemetry {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	t := &Telemetry{config: c, metrics: newMetrics(c.Version, c.Tenants)}
	t.metrics.state.log, t.metrics.state.traces = c.Log, c.Traces
	return t
}

// Run measures a run, from the moment at which it is asked for. One that has neither a
// result nor an error goes on without this process, and is not counted.
func (t *Telemetry) Run(ctx context.Context, tenant, runID string, run func(context.Context) (*engine.Result, error)) (*engine.Result, error) {
	m := t.metrics
	CallOf(ctx).Set(FieldRun, runID)
	began := time.Now()
	ctx, span := t.span(ctx, "run", began, id(attrRun, runID))
	m.runsRunning.Inc()
	res, err := run(ctx)
	m.runsRunning.Dec()
	ended := time.Now()
	if res == nil && err == nil {
		endSpan(span, ended, nil)
		return nil, nil
	}
	tier, eng, outcome := "", "", outcomeOf(err)
	if res != nil {
		tier, eng = res.Tier.String(), res.Engine
		if err == nil {
			outcome = reasonOf(res.Exit.Reason)
		}
		m.exited(res.Exit)
	}
	m.runs.WithLabelValues(tier, eng, outcome).Inc()
	m.runDuration.WithLabelValues(tier).Observe(ended.Sub(began).Seconds())
	who := tenantOf(tenant)
	m.tenants.runs.inc(who)
	endSpan(span, ended, err, attrTier.String(tier), attrEngine.String(eng), attrOutcome.String(outcome))
	if outcome == outcomeInternal {
		t.config.Logger.ErrorContext(ctx, "run failed", keyTenant, who, keyRun, runID, "error", err)
	}
	return res, err
}

// Wait measures the wait for a tenant's turn.
func (t *Telemetry) Wait(ctx context.Context, tenant, queue string, enter func(context.Context) error) error {
	began := time.Now()
	ctx, span := t.span(ctx, stepWait, began)
	err := enter(ctx)
	endSpan(span, time.Now(), err)
	t.metrics.step.WithLabelValues(stepWait, "").Observe(time.Since(began).Seconds())
	if err != nil {
		t.Refused(tenant, admission.ReasonOf(err))
		return err
	}
	t.metrics.admitted.WithLabelValues(queue).Inc()
	return nil
}

// Refused counts a sandbox or run that may not be begun now.
func (t *Telemetry) Refused(tenant string, why admission.Reason) {
	t.metrics.refused.WithLabelValues(string(why)).Inc()
	t.metrics.tenants.refused.inc(tenant)
}

// EngineEvent is for [engine.Config.OnEvent].
func (t *Telemetry) EngineEvent(e engine.Event) {
	if e.Kind == engine.EventEgress {
		decision := "deny"
		if e.Fields["allowed"] == "true" {
			decision = "allow"
		}
		t.metrics.egress.WithLabelValues(decision).Inc()
	}
}

// SessionEvent is for [session.Config.OnEvent].
func (t *Telemetry) SessionEvent(e session.Event) {
	switch e.Kind {
	case "deleted":
		t.metrics.ended.WithLabelValues(oneOf(e.Fields["reason"], endings)).Inc()
	case "lost":
		t.metrics.ended.WithLabelValues("lost").Inc()
	}
}

// endings are why sandboxes end.
var endings = []string{"deleted", "idle", "end of life", "nobody holds it", "fork failed"}

// MCP counts a request of the Model Context Protocol; tool is one of a fixed number.
func (t *Telemetry) MCP(method, tool string, failed bool) {
	outcome := "ok"
	if failed {
		outcome = "error"
	}
	t.metrics.mcp.WithLabelValues(oneOf(method, methods), tool, outcome).Inc()
}

// methods are those of the protocol that clients call.
var methods = []string{
	"initialize", "ping", "tools/list", "tools/call", "prompts/list", "prompts/get", "resources/list", "resources/read", "resources/templates/list",
	"logging/setLevel", "completion/complete", "notifications/initialized", "notifications/cancelled", "notifications/progress",
}

// Swept counts what a sweep did.
func (t *Telemetry) Swept(r engine.SweepReport) {
	m := t.metrics
	m.sweeps.Inc()
	m.swept.Add(float64(len(r.Removed)))
	m.sweepErrors.Add(float64(len(r.Errors)))
}

// Engine returns what measures the steps of runs.
func (t *Telemetry) Engine() engine.Observer { return steps{t} }

type steps struct{ t *Telemetry }

// Begin implements engine.Observer.
func (s steps) Begin(ctx context.Context, st engine.Step) (context.Context, func(engine.StepEnd)) {
	began, m := time.Now(), s.t.metrics
	tier := ""
	if st.Engine != "" {
		tier = st.Tier.String()
	}
	within := ctx
	ctx, span := s.t.span(ctx, string(st.Name), began, attrTier.String(tier), attrEngine.String(st.Engine))
	return ctx, func(end engine.StepEnd) {
		ended, name := time.Now(), string(st.Name)
		if st.Name == engine.StepCreate && end.MadeAhead {
			name = stepClaim
			endSpan(span, ended, end.Err, attrAhead.Bool(true))
			m.step.WithLabelValues(name, tier).Observe(ended.Sub(began).Seconds())
			return
		}
		if end.Exit == nil {
			endSpan(span, ended, end.Err)
			m.step.WithLabelValues(name, tier).Observe(ended.Sub(began).Seconds())
			return
		}
		// The program's own time began a little before its start was told.
		over := began.Add(min(end.Exit.Usage.Wall, ended.Sub(began)))
		if end.Exit.Usage.Wall == 0 {
			over = ended // it is not known
		}
		endSpan(span, over, nil, attrOutcome.String(reasonOf(end.Exit.Reason)))
		_, drain := s.t.span(within, stepDrain, over, attrTier.String(tier), attrEngine.String(st.Engine))
		endSpan(drain, ended, nil)
		m.step.WithLabelValues(name, tier).Observe(over.Sub(began).Seconds())
		m.step.WithLabelValues(stepDrain, tier).Observe(ended.Sub(over).Seconds())
	}
}

// Steps beside the engine's: the wait for a tenant's turn, the creation of a sandbox
// that stood ready, and the last of a program's output.
const (
	stepWait  = "wait"
	stepClaim = "claim"
	stepDrain = "drain"
)

// Sessions returns what measures what is done with sessions.
func (t *Telemetry) Sessions() session.Observer { return operations{t} }

type operations struct{ t *Telemetry }

// Begin implements session.Observer.
func (o operations) Begin(ctx context.Context, op session.Operation) (context.Context, func(session.OperationEnd)) {
	began, m := time.Now(), o.t.metrics
	CallOf(ctx).Set(FieldSandbox, op.Session)
	attrs := []attribute.KeyValue{id(attrSandbox, op.Session)}
	if op.Exec != "" {
		CallOf(ctx).Set(FieldExec, op.Exec)
		attrs = append(attrs, id(attrExec, op.Exec))
	}
	ctx, span := o.t.span(ctx, "sandbox "+string(op.Name), began, attrs...)
	return ctx, func(end session.OperationEnd) {
		ended, tier, outcome := time.Now(), "", outcomeOf(end.Err)
		if end.Engine != "" {
			tier = end.Tier.String()
		}
		if op.Name != session.OpProgram {
			m.operation.WithLabelValues(string(op.Name), tier).Observe(ended.Sub(began).Seconds())
			if end.Err != nil {
				m.operationErrors.WithLabelValues(string(op.Name), outcome).Inc()
			}
		} else {
			outcome = "unknown"
			if end.Exit != nil {
				outcome = reasonOf(end.Exit.Reason)
				m.exited(*end.Exit)
			}
			m.programs.WithLabelValues(tier, end.Engine, outcome).Inc()
		}
		endSpan(span, ended, end.Err, attrTier.String(tier), attrEngine.String(end.Engine), attrOutcome.String(outcome))
	}
}

// Refused implements session.Observer.
func (o operations) Refused(tenant string, why admission.Reason) { o.t.Refused(tenant, why) }

// File implements session.Observer.
func (o operations) File(written bool, n int) {
	if written {
		o.t.metrics.fileWritten.Add(float64(n))
	} else {
		o.t.metrics.fileRead.Add(float64(n))
	}
}

// exited counts what a program wrote and ran into.
func (m *metrics) exited(e isolation.Exit) {
	m.outputOut.Add(float64(max(e.Stdout.Bytes, 0)))
	m.outputErr.Add(float64(max(e.Stderr.Bytes, 0)))
	for _, l := range e.LimitsHit {
		m.limits.WithLabelValues(oneOf(string(l.Limit), limits)).Inc()
	}
}

var limits = func() (names []string) {
	for _, l := range []isolation.Limit{
		isolation.LimitWall, isolation.LimitCPUTime, isolation.LimitFuel, isolation.LimitOutput, isolation.LimitFiles, isolation.LimitMemory,
		isolation.LimitCPUs, isolation.LimitPids, isolation.LimitDisk, isolation.LimitIO, isolation.LimitStack, isolation.LimitTable,
	} {
		names = append(names, string(l))
	}
	return names
}()

// oneOf is a text that is known, or "other".
func oneOf(s string, known []string) string {
	for _, k := range known {
		if s == k {
			return s
		}
	}
	return "other"
}

func reasonOf(r isolation.Reason) string {
	for _, k := range isolation.Reasons() {
		if r == k {
			return string(r)
		}
	}
	return "other"
}

// outcomeOf is the class of an error; "ok" for none.
func outcomeOf(err error) string {
	switch class := isolation.Class(err); {
	case err == nil:
		return "ok"
	case class != nil:
		return strings.ReplaceAll(class.Error(), " ", "_")
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, context.DeadlineExceeded):
		return "deadline"
	}
	return outcomeInternal
}

// outcomeInternal is an error of no class: a fault of the daemon's.
const outcomeInternal = "internal"

// tenantOf is the daemon's tenant of a Spec's: what comes after the slash is whom that
// tells apart.
func tenantOf(s string) string {
	who, _, _ := strings.Cut(s, "/")
	return who
}
