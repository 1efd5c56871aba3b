package rest

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/audit"
	"github.com/axocoatl/isolation/axo/tenant"
)

// Audit is the log of what was asked for; *audit.Log is one.
type Audit interface {
	audit.Recorder
	List(context.Context, audit.Query) ([]audit.Entry, error)
}

// audited serves a request. One that changes something is written down before, and is
// refused if it cannot be, unless it only ends something; one about another tenant is
// written down also if it only looks, among what is that tenant's. A refusal of the
// caller's role is the answer.
func (s *Server) audited(w http.ResponseWriter, r *http.Request, pattern string, values map[string]string, refusal error) {
	handler := http.Handler(s.mux)
	if refusal != nil {
		handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { writeProblem(w, refusal) })
	}
	by, other := stranger(r.Context())
	if s.config.Audit == nil || !changes(pattern) && !other {
		handler.ServeHTTP(w, r)
		return
	}
	key := caller(r.Context())
	e := audit.Entry{
		Kind: "request", Tenant: key.Tenant, Key: key.ID, Subject: values["id"] + values["run"] + values["snapshot"] + values["key"], Exec: values["exec"],
		Fields: map[string]string{"operation": pattern},
	}
	for _, name := range []string{"path", "name", "reference", "port", "tenant"} {
		if v := r.URL.Query().Get(name) + values[name]; v != "" {
			e.Fields[name] = v
		}
	}
	if other {
		e.Fields["by"] = by
	}
	if e.Tenant == everyone {
		e.Tenant = by // there is no such tenant
	}
	if err := s.config.Audit.Record(r.Context(), e); err != nil {
		if !ends(pattern) {
			writeProblem(w, fmt.Errorf("nothing is begun that is not written down: %w", err))
			return
		}
		s.config.Logger.ErrorContext(r.Context(), "write down that something is to be ended", "key", e.Key, "operation", pattern, "error", err)
	}
	out := &statusWriter{ResponseWriter: w}
	handler.ServeHTTP(out, r)
	if out.status < 400 {
		return
	}
	e.Kind = "refused"
	e.Fields["status"] = strconv.Itoa(out.status)
	// The caller has his answer.
	if err := s.config.Audit.Record(context.WithoutCancel(r.Context()), e); err != nil {
		s.config.Logger.ErrorContext(r.Context(), "write down that a request was refused", "operation", pattern, "error", err)
	}
}

// changes reports whether a request does anything to be written down. What is sent to
// a port is the sandbox's affair.
func changes(pattern string) bool {
	method, path, _ := strings.Cut(pattern, " ")
	return path != "" && method != http.MethodGet && method != http.MethodHead && path != "/v1/explain"
}

// ends reports whether a request does no more than end something: on a full disk, too,
// what runs can be ended.
func ends(pattern string) bool {
	method, path, _ := strings.Cut(pattern, " ")
	return method == http.MethodDelete && !strings.HasSuffix(path, "/files") || strings.HasSuffix(path, "/kill") || strings.HasSuffix(path, "/cancel") || strings.HasSuffix(path, "/pause")
}

// valuesOf are those of a pattern's names in a path.
func valuesOf(pattern, path string) map[string]string {
	_, want, _ := strings.Cut(pattern, " ")
	have := strings.Split(path, "/")
	values := map[string]string{}
	for i, w := range strings.Split(want, "/") {
		if i < len(have) && strings.HasPrefix(w, "{") && strings.HasSuffix(w, "}") {
			values[w[1:len(w)-1]] = have[i]
		}
	}
	return values
}

// statusWriter remembers the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (s *statusWriter) WriteHeader(status int) {
	if s.status == 0 {
		s.status = status
	}
	s.ResponseWriter.WriteHeader(status)
}

// Flush sends what there is by now.
func (s *statusWriter) Flush() { _ = http.NewResponseController(s.ResponseWriter).Flush() } // as http.Flusher has it

// Unwrap lets http.ResponseController be used.
func (s *statusWriter) Unwrap() http.ResponseWriter { return s.ResponseWriter }

func (s *Server) registerAudit() {
	huma.Register(s.api, op("list-audit", "GET", "/v1/audit", "What was asked for and what happened, in order: the tenant's, or for an admin everybody's", "audit", ownTenant), s.auditLog)
}

const (
	auditPage = 100
	maxAudit  = 1000
)

func (s *Server) auditLog(ctx context.Context, in *struct {
	Tenant  string    `query:"tenant" doc:"Only this tenant's; for admins, who else see all"`
	Kind    string    `query:"kind" doc:"Only entries of this kind"`
	Subject string    `query:"subject" doc:"Only those of this sandbox or run"`
	Since   time.Time `query:"since" doc:"Only those from this time on"`
	Until   time.Time `query:"until" doc:"Only those before this time"`
	After   int64     `query:"after" minimum:"0" doc:"Only those after this one, by its seq"`
	Limit   int       `query:"limit" minimum:"0" maximum:"1000" doc:"How many at most; 0: 100"`
}) (*body[api.AuditEntries], error) {
	if s.config.Audit == nil {
		return nil, problem(&isolation.UnsupportedError{Feature: "the audit log, which this daemon does not keep", Need: "audit.off = false in its settings"})
	}
	k := caller(ctx)
	if k.Role != tenant.RoleAdmin {
		if in.Tenant != "" && in.Tenant != k.Tenant {
			return nil, problem(admin(ctx, "to see what another tenant did"))
		}
		in.Tenant = k.Tenant
	}
	limit := min(in.Limit, maxAudit)
	if limit == 0 {
		limit = auditPage
	}
	list, err := s.config.Audit.List(ctx, audit.Query{
		Tenant: in.Tenant, Kind: in.Kind, Subject: in.Subject, Since: in.Since, Until: in.Until, After: in.After, Limit: limit + 1,
	})
	if err != nil {
		return nil, problem(err)
	}
	out := api.AuditEntries{Entries: list, More: len(list) > limit}
	if out.More {
		out.Entries = list[:limit]
	}
	return &body[api.AuditEntries]{out}, nil
}
