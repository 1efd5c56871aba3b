package server

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/audit"
	"github.com/axocoatl/isolation/axo/internal/asked"
	"github.com/axocoatl/isolation/axo/server/rest"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/engine"
)

// Auditor writes down what happens to sandboxes and runs. What is asked for is written
// down before it is done, by the interface; what happens then cannot be refused, so
// that it is only logged when it cannot be written down.
type Auditor struct {
	Log    *audit.Log
	Logger *slog.Logger

	sessions atomic.Pointer[session.Manager]
	runs     atomic.Pointer[session.Runs]
}

// auditTimeout bounds an entry of something that has happened.
const auditTimeout = 10 * time.Second

func (a *Auditor) record(e audit.Entry) {
	ctx, cancel := context.WithTimeout(context.Background(), auditTimeout)
	defer cancel()
	if err := a.Log.Record(ctx, e); err != nil {
		a.Logger.Error("write down what happened", "kind", e.Kind, "tenant", e.Tenant, "subject", e.Subject, "exec", e.Exec, "error", err)
	}
}

// EngineEvent is for [engine.Config.OnEvent]. Connections are written down before they
// are opened.
func (a *Auditor) EngineEvent(e engine.Event) {
	if e.Kind != engine.EventEgress {
		return // runs and sessions tell the rest
	}
	who, _, _ := strings.Cut(e.Tenant, "/")
	what := e.RunID
	if m := a.sessions.Load(); m != nil {
		if t, s, ok := m.Named(e.RunID); ok {
			who, what = t, s
		}
	}
	if m := a.runs.Load(); m != nil {
		if t, run, ok := m.Owns(e.RunID); ok {
			who, what = t, run
		}
	}
	a.record(audit.Entry{Kind: string(e.Kind), Tenant: who, Subject: what, Fields: e.Fields})
}

func (a *Auditor) has(m *session.Manager) {
	if a != nil {
		a.sessions.Store(m)
	}
}

func (a *Auditor) sessionEvents(also func(session.Event)) func(session.Event) {
	return func(e session.Event) {
		a.record(audit.Entry{Kind: e.Kind, Tenant: e.Tenant, Key: e.Key, Subject: e.Session, Exec: e.Exec, Fields: e.Fields})
		if also != nil {
			also(e)
		}
	}
}

// prune removes what is older than is to be kept, every hour.
func (a *Auditor) prune(ctx context.Context, keep time.Duration) {
	if a == nil || keep <= 0 {
		return
	}
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		if n, err := a.Log.Prune(keep); err != nil {
			a.Logger.Error("remove old entries of the audit log", "error", err)
		} else if n > 0 {
			a.Logger.Info("old entries of the audit log removed", "entries", n)
		}
		// Noted down elsewhere, as in the system's log, it shows that nothing before it
		// was touched.
		if h, err := a.Log.Head(); err != nil {
			a.Logger.Error("read the head of the audit log", "error", err)
		} else {
			a.Logger.Info("audit log", "head", h.String())
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// engine has runs written down.
func (a *Auditor) engine(e rest.Engine, images rest.Images) rest.Engine {
	return &auditedEngine{e, a, images}
}

type auditedEngine struct {
	rest.Engine
	a      *Auditor
	images rest.Images
}

// Run is that of the engine. A run that cannot be written down is not begun.
func (e *auditedEngine) Run(ctx context.Context, r engine.Request) (*engine.Result, error) {
	if r.ID == "" {
		r.ID = session.NewRunID()
	}
	if err := e.a.runBegins(ctx, r, e.images); err != nil {
		return nil, &isolation.Error{Op: "run", ID: r.ID, Outcome: isolation.NotStarted, Err: err}
	}
	res, err := e.Engine.Run(ctx, r)
	who, _, _ := strings.Cut(r.Spec.Tenant, "/")
	e.a.runEnded(who, r.ID, res, err)
	return res, err
}

func (a *Auditor) runBegins(ctx context.Context, r engine.Request, images rest.Images) error {
	who, _, _ := strings.Cut(r.Spec.Tenant, "/")
	fields := requestFields(r)
	if r.Spec.Root.Image != "" && images != nil {
		if img, err := images.Get(r.Spec.Root.Image); err == nil {
			fields["image_digest"] = img.Digest
		}
	}
	return a.Log.Record(ctx, audit.Entry{Kind: "run", Tenant: who, Key: asked.Key(ctx), Subject: r.ID, Fields: fields})
}

func (a *Auditor) runEnded(tenant, id string, res *engine.Result, err error) {
	a.record(audit.Entry{Kind: "ran", Tenant: tenant, Subject: id, Fields: resultFields(res, err)})
}

func requestFields(r engine.Request) map[string]string {
	f := map[string]string{"requirement": r.Spec.Requirement.String()}
	for k, v := range map[string]string{
		"tool": r.Tool, "image": r.Spec.Root.Image, "template": r.Spec.Root.Template, "module_digest": r.Spec.Module.Digest, "cwd": r.Process.Cwd, "user": r.Process.User,
	} {
		if v != "" {
			f[k] = v
		}
	}
	if len(r.Process.Args) > 0 {
		b, err := json.Marshal(r.Process.Args)
		if err == nil {
			f["args"] = string(b)
		}
	}
	return f
}

func resultFields(res *engine.Result, err error) map[string]string {
	f := map[string]string{}
	if err != nil {
		f["error"], f["outcome"] = err.Error(), string(isolation.OutcomeOf(err))
	}
	if res == nil {
		return f
	}
	d := res.Decision
	f["tier"], f["engine"], f["wanted"] = d.Got.String(), d.Engine, d.Wanted.String()
	for k, v := range map[string]bool{"degraded": d.Degraded, "emulated": d.Emulated} {
		if v {
			f[k] = "true"
		}
	}
	if d.Rule != "" {
		f["rule"] = d.Rule
	}
	e := res.Exit
	if e.Reason != "" {
		f["reason"], f["code"] = string(e.Reason), strconv.Itoa(e.Code)
		f["stdout_bytes"], f["stderr_bytes"] = strconv.FormatInt(e.Stdout.Bytes, 10), strconv.FormatInt(e.Stderr.Bytes, 10)
		f["wall_ms"] = fmt.Sprintf("%.3f", float64(e.Usage.Wall)/float64(time.Millisecond))
		f["cpu_ms"] = fmt.Sprintf("%.3f", float64(e.Usage.CPU)/float64(time.Millisecond))
	}
	return f
}
