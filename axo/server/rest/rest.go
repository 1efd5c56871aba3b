// Package rest is the daemon's own interface over HTTP: what api says, documented
// by an OpenAPI document that is made from it.
package rest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/internal/asked"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/axo/telemetry"
	"github.com/axocoatl/isolation/axo/tenant"
	"github.com/axocoatl/isolation/axo/tool"
	"github.com/axocoatl/isolation/engine"
)

// Engine runs programs in sandboxes of their own; *engine.Engine is one.
type Engine interface {
	Run(context.Context, engine.Request) (*engine.Result, error)
	Explain(context.Context, engine.Request) (engine.Decision, error)
	Tiers(ctx context.Context, engine string) []engine.EngineReport
	Doctor(context.Context) []engine.EngineReport
}

// Config makes a Server.
type Config struct {
	Sessions *session.Manager
	Runs     *session.Runs
	Engine   Engine
	// Tools are those of the registry; nil: there are none.
	Tools *tool.Caller
	// Allows says what a policy refuses: such a tool is not there for that tenant. nil:
	// every one is.
	Allows func(engine.Request) error
	// Images, Templates and Pools are those of the host; nil: there are none to be
	// had.
	Images    Images
	Templates Templates
	Pools     func() []api.Pool
	// Audit takes what is asked for, before it is done; nil: nothing is written down.
	Audit Audit
	// Find returns whose a key is: *tenant.Keys has it.
	Find func(secret string) (tenant.Key, error)
	// Keys and Quotas are what admins manage; nil: not over this interface.
	Keys    Keys
	Quotas  Quotas
	Version string
	// Draining reports whether the server is about to end; nil: never.
	Draining func() bool
	// Stopping is closed when streams are to end, so that their clients go on with
	// the next server; nil: never.
	Stopping <-chan struct{}
	Logger   *slog.Logger
}

// Server is the handler of /v1.
type Server struct {
	config Config
	mux    *http.ServeMux
	api    huma.API
	rules  map[string]rule // by pattern
}

// maxBody bounds a request: a module is in it.
const maxBody = 64 << 20

// New makes a server.
func New(c Config) *Server {
	if c.Draining == nil {
		c.Draining = func() bool { return false }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{config: c, mux: http.NewServeMux()}
	s.api = humago.New(s.mux, config(c.Version))
	s.register()
	s.rules = rulesOf(s.api.OpenAPI())
	return s
}

// OpenAPI is the document that describes the interface, as YAML.
func (s *Server) OpenAPI() ([]byte, error) { return s.api.OpenAPI().YAML() }

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, pattern := s.mux.Handler(r)
	call := telemetry.CallOf(r.Context())
	call.SetRoute(pattern)
	if public(r.URL.Path) {
		s.mux.ServeHTTP(w, r)
		return
	}
	key, err := s.config.Find(secretOf(r))
	if err != nil {
		w.Header().Set("WWW-Authenticate", "Bearer")
		writeProblem(w, err)
		return
	}
	values := valuesOf(pattern, r.URL.Path)
	whose, refusal := s.rules[pattern].check(key, pattern, r.URL.Query())
	call.Set(telemetry.FieldTenant, whose)
	call.Set(telemetry.FieldKey, key.ID)
	call.Set(telemetry.FieldSandbox, values["id"])
	call.Set(telemetry.FieldExec, values["exec"])
	call.Set(telemetry.FieldRun, values["run"])
	ctx := context.WithValue(asked.By(r.Context(), key.ID), keyOf{}, key)
	ctx = context.WithValue(ctx, whoseOf{}, whose)
	ctx = context.WithValue(ctx, instanceOf{}, strings.Trim(r.Header.Get("If-Match"), `"`))
	s.audited(w, r.WithContext(ctx), pattern, values, refusal)
}

func public(path string) bool {
	return path == "/v1/health" || strings.HasPrefix(path, "/openapi")
}

func secretOf(r *http.Request) string {
	if k := r.Header.Get("X-API-Key"); k != "" {
		return k
	}
	scheme, k, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return k
}

// keyOf is where a request's key is in its context, whoseOf the tenant whose things it
// is about, instanceOf the instance that it is for.
type (
	keyOf      struct{}
	whoseOf    struct{}
	instanceOf struct{}
)

// caller is the key of a request, with the tenant whose things the request is about: for
// an admin that may be another than his own.
func caller(ctx context.Context) tenant.Key {
	k, _ := ctx.Value(keyOf{}).(tenant.Key) // every handler that asks is behind ServeHTTP
	k.Tenant, _ = ctx.Value(whoseOf{}).(string)
	return k
}

// problem tells an error as huma wants it.
func problem(err error) error {
	if err == nil {
		return nil
	}
	return api.ProblemOf(err)
}

func (s *Server) session(ctx context.Context, id string) (*session.Session, error) {
	sn, err := s.config.Sessions.Get(caller(ctx).Tenant, id)
	if want, _ := ctx.Value(instanceOf{}).(string); err == nil && want != "" && want != sn.Instance() {
		return nil, fmt.Errorf("session %.80q is another one by now: %w", id, isolation.ErrNotFound)
	}
	return sn, err
}

type (
	none        struct{}
	body[T any] struct{ Body T }
	InBox       struct {
		ID string `path:"id" doc:"Of the sandbox"`
	}
	InExec struct {
		ID   string `path:"id" doc:"Of the sandbox"`
		Exec string `path:"exec" doc:"Of the program"`
	}
)

func op(id, method, path, summary, tag string, change ...func(*huma.Operation)) huma.Operation {
	o := huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary, Tags: []string{tag}, MaxBodyBytes: 1 << 20, BodyReadTimeout: time.Minute}
	least := tenant.RoleUser
	if method == http.MethodGet {
		least = tenant.RoleViewer
	}
	takes(least)(&o)
	for _, f := range change {
		f(&o)
	}
	return o
}

func large(o *huma.Operation)   { o.MaxBodyBytes = maxBody }
func created(o *huma.Operation) { o.DefaultStatus = http.StatusCreated }

func (s *Server) register() {
	huma.Register(s.api, op("health", "GET", "/v1/health", "Does it answer?", "daemon", func(o *huma.Operation) {
		o.Security = []map[string][]string{{}}
	}), s.health)
	huma.Register(s.api, op("list-tiers", "GET", "/v1/tiers", "What each engine of this host can do; an admin may have them probed anew", "engine"), s.tiers)
	huma.Register(s.api, op("explain", "POST", "/v1/explain", "What would run this, and why; nothing is run", "engine", large, takes(tenant.RoleViewer)), s.explain)
	s.registerRuns()
	s.registerHost()

	huma.Register(s.api, op("create-sandbox", "POST", "/v1/sandboxes", "Make a sandbox that stays", "sandboxes", large, created), s.create)
	huma.Register(s.api, op("list-sandboxes", "GET", "/v1/sandboxes", "The tenant's sandboxes, the oldest first", "sandboxes", everyTenant), s.list)
	huma.Register(s.api, op("get-sandbox", "GET", "/v1/sandboxes/{id}", "What is known of a sandbox", "sandboxes", anyTenant), s.get)
	huma.Register(s.api, op("touch-sandbox", "PATCH", "/v1/sandboxes/{id}", "Set its times anew, or say that it is in use", "sandboxes"), s.touch)
	huma.Register(s.api, op("delete-sandbox", "DELETE", "/v1/sandboxes/{id}", "End all that runs in it and remove it", "sandboxes", anyTenant), s.remove)
	huma.Register(s.api, op("pause-sandbox", "POST", "/v1/sandboxes/{id}/pause", "Stop its programs", "sandboxes", anyTenant), s.pause)
	huma.Register(s.api, op("resume-sandbox", "POST", "/v1/sandboxes/{id}/resume", "Let them go on", "sandboxes", anyTenant), s.resume)
	huma.Register(s.api, op("stat-sandbox", "GET", "/v1/sandboxes/{id}/stats", "What it uses", "sandboxes", anyTenant), s.stats)
	s.raw(op("hold-sandbox", "GET", "/v1/sandboxes/{id}/hold", "Hold a sandbox that was made with hold_ms, for as long as the answer lasts", "sandboxes", takes(tenant.RoleUser), func(o *huma.Operation) {
		o.Responses = map[string]*huma.Response{"200": {Description: "Comments, from time to time", Content: map[string]*huma.MediaType{"text/event-stream": {}}}}
	}), s.hold)
	s.registerExecs()
	s.registerFiles()
	s.registerSnapshots()
	s.registerPorts()
	s.registerTools()
	s.registerAudit()
	s.registerTenants()
}

func (s *Server) health(context.Context, *none) (*body[api.Health], error) {
	h := api.Health{Status: "ready", Version: s.config.Version}
	if s.config.Draining() {
		h.Status = "draining"
	}
	return &body[api.Health]{h}, nil
}

func (s *Server) tiers(ctx context.Context, in *struct {
	Engine string `query:"engine" doc:"Of this one alone"`
	Fresh  bool   `query:"fresh" doc:"Probe every engine anew; for admins"`
}) (*body[api.Tiers], error) {
	if !in.Fresh {
		return &body[api.Tiers]{api.Tiers{Engines: s.config.Engine.Tiers(ctx, in.Engine)}}, nil
	}
	if err := admin(ctx, "to probe engines anew"); err != nil {
		return nil, problem(err)
	}
	return &body[api.Tiers]{api.Tiers{Engines: s.config.Engine.Doctor(ctx)}}, nil
}

// admin refuses what is for admins.
func admin(ctx context.Context, what string) error {
	if caller(ctx).Role == tenant.RoleAdmin {
		return nil
	}
	return fmt.Errorf("%s takes a key of an admin's: %w", what, isolation.ErrPermissionDenied)
}

// hostPaths refuses what would name something of the host's, or run a program
// without isolation: the daemon has rights that its callers have not.
func hostPaths(spec isolation.Spec, tier *isolation.Tier) error {
	refuse := func(what, instead string) error {
		return fmt.Errorf("%s cannot be asked for over the API; %s: %w", what, instead, isolation.ErrPermissionDenied)
	}
	switch {
	case spec.Requirement == isolation.NativeTrusted || tier != nil && *tier == isolation.TierNone || spec.Func != "":
		return refuse("a program without isolation", "ask for a tier that isolates")
	case len(spec.Mounts) > 0:
		return refuse("a directory of the host", "copy files into the sandbox")
	case spec.Root.Path != "":
		return refuse("a root directory of the host", "import it as an image")
	case spec.Module.Path != "":
		return refuse("a module by its path", "send it as data")
	}
	return nil
}

func (s *Server) request(ctx context.Context, r api.Run) (engine.Request, error) {
	if s.config.Draining() {
		return engine.Request{}, fmt.Errorf("the daemon is about to end; retry later: %w", isolation.ErrUnavailable)
	}
	if err := hostPaths(r.Spec, r.Tier); err != nil {
		return engine.Request{}, err
	}
	r.Spec.Tenant = caller(ctx).Tenant + "/" + r.Spec.Tenant
	return engine.Request{
		Source: "rest", Spec: r.Spec, Process: r.Process, Tier: r.Tier, Engine: r.Engine, MinTier: r.MinTier,
		AllowEmulated: r.AllowEmulated, AllowUnenforced: r.AllowUnenforced, Egress: r.Egress, Capture: engine.DefaultCapture,
		Stdin: bytesReader(r.Input),
	}, nil
}

func (s *Server) explain(ctx context.Context, in *body[api.Run]) (*body[engine.Decision], error) {
	r, err := s.request(ctx, in.Body)
	if err != nil {
		return nil, problem(err)
	}
	d, err := s.config.Engine.Explain(ctx, r)
	if err != nil {
		return nil, problem(err)
	}
	return &body[engine.Decision]{d}, nil
}

func (s *Server) create(ctx context.Context, in *body[api.Create]) (*body[api.Sandbox], error) {
	b := in.Body
	var err error
	switch {
	case s.config.Draining():
		err = fmt.Errorf("the daemon is about to end; retry later: %w", isolation.ErrUnavailable)
	default:
		err = hostPaths(b.Spec, b.Tier)
	}
	if err != nil {
		return nil, problem(&isolation.Error{Op: "create", Outcome: isolation.NotStarted, Err: err})
	}
	sn, err := s.config.Sessions.Create(ctx, caller(ctx).Tenant, session.Request{
		ID: b.ID, Spec: b.Spec, Tier: b.Tier, Engine: b.Engine, MinTier: b.MinTier, AllowEmulated: b.AllowEmulated,
		AllowUnenforced: b.AllowUnenforced, Egress: b.Egress, Ephemeral: b.Ephemeral, Metadata: b.Metadata,
		Idle: time.Duration(b.IdleMS) * time.Millisecond, Life: time.Duration(b.LifeMS) * time.Millisecond,
		Hold: time.Duration(b.HoldMS) * time.Millisecond,
	})
	if err != nil {
		return nil, problem(err)
	}
	return &body[api.Sandbox]{sn.Info()}, nil
}

// hold lasts until the caller goes, or the sandbox does.
func (s *Server) hold(w http.ResponseWriter, r *http.Request) error {
	sn, err := s.session(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	gone, release, err := sn.Hold(r.Context())
	if err != nil {
		return err
	}
	defer release()
	w.Header().Set("Content-Type", "text/event-stream")
	flush := http.NewResponseController(w).Flush
	tick := time.NewTicker(aliveEvery)
	defer tick.Stop()
	for {
		_, err := io.WriteString(w, ": held\n\n")
		if err == nil {
			err = flush()
		}
		if err != nil {
			return nil // nobody is there
		}
		select {
		case <-r.Context().Done():
			return nil
		case <-gone:
			return nil
		case <-s.config.Stopping:
			return nil
		case <-tick.C:
		}
	}
}

type listInput struct {
	Metadata []string `query:"metadata,explode" doc:"KEY=VALUE that a sandbox must have; may be repeated"`
}

func (s *Server) list(ctx context.Context, in *listInput) (*body[api.Sandboxes], error) {
	want := map[string]string{}
	for _, m := range in.Metadata {
		k, v, ok := strings.Cut(m, "=")
		if !ok {
			return nil, problem(fmt.Errorf("metadata %.80q: want KEY=VALUE: %w", m, isolation.ErrInvalidArgument))
		}
		want[k] = v
	}
	out := api.Sandboxes{Sandboxes: []api.Sandbox{}}
	err := s.eachTenant(ctx, func(who string) {
		for _, sn := range s.config.Sessions.List(who, want) {
			out.Sandboxes = append(out.Sandboxes, sandboxOf(ctx, sn))
		}
	})
	if err != nil {
		return nil, problem(err)
	}
	return &body[api.Sandboxes]{out}, nil
}

func (s *Server) get(ctx context.Context, in *InBox) (*body[api.Sandbox], error) {
	sn, err := s.session(ctx, in.ID)
	if err != nil {
		return nil, problem(err)
	}
	return &body[api.Sandbox]{sandboxOf(ctx, sn)}, nil
}

func (s *Server) touch(ctx context.Context, in *struct {
	InBox
	Body api.Touch
}) (*body[api.Sandbox], error) {
	sn, err := s.session(ctx, in.ID)
	if err == nil {
		err = sn.Touch(ctx, time.Duration(in.Body.IdleMS)*time.Millisecond, time.Duration(in.Body.LifeMS)*time.Millisecond)
	}
	if err != nil {
		return nil, problem(err)
	}
	return &body[api.Sandbox]{sn.Info()}, nil
}

func (s *Server) remove(ctx context.Context, in *InBox) (*none, error) {
	sn, err := s.session(ctx, in.ID)
	if errors.Is(err, isolation.ErrNotFound) {
		return nil, problem(err)
	}
	// It goes on when the caller does not wait for it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return nil, problem(sn.Delete(ctx))
}

func (s *Server) pause(ctx context.Context, in *InBox) (*none, error) {
	return s.onSession(ctx, in, (*session.Session).Pause)
}

func (s *Server) resume(ctx context.Context, in *InBox) (*none, error) {
	return s.onSession(ctx, in, (*session.Session).Resume)
}

func (s *Server) onSession(ctx context.Context, in *InBox, f func(*session.Session, context.Context) error) (*none, error) {
	sn, err := s.session(ctx, in.ID)
	if err == nil {
		err = f(sn, ctx)
	}
	return nil, problem(err)
}

func (s *Server) stats(ctx context.Context, in *InBox) (*body[isolation.Usage], error) {
	sn, err := s.session(ctx, in.ID)
	if err != nil {
		return nil, problem(err)
	}
	u, err := sn.Stats(ctx)
	if err != nil {
		return nil, problem(err)
	}
	return &body[isolation.Usage]{u}, nil
}

// wants reports whether a request accepts a content type by its name.
func wants(accept, contentType string) bool {
	return slices.ContainsFunc(strings.Split(accept, ","), func(a string) bool {
		name, _, _ := strings.Cut(a, ";")
		return strings.TrimSpace(name) == contentType
	})
}
