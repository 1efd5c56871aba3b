package mcp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/modelcontextprotocol/go-sdk/auth"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/axocoatl/isolation/axo/telemetry"
	"github.com/axocoatl/isolation/axo/tenant"
)

// Bounds of what is kept for clients over HTTP.
const (
	maxBody     = 16 << 20 // bytes of a request
	maxSessions = 64       // of a tenant; the one that was used least lately goes
	sessionLife = 24 * time.Hour
)

// roleExtra is where the role of a request's key is.
const roleExtra = "role"

// keyExtra is where the id of a request's key is.
const keyExtra = "key"

const sessionHeader = "Mcp-Session-Id"

// remembered is a session over HTTP.
type remembered struct {
	tenant string
	used   time.Time
}

// Handler speaks streamable HTTP. Each request needs a key, as find has them; the
// tenant is the key's. Streams that only wait for news end when stopping is closed;
// nil: they do not.
//
// Revisions before 2026-07-28 have sessions: initialize begins one, in which a client
// hears of changes (GET) and can cancel calls. Of others each request stands for
// itself, as 2026-07-28 has it, and subscriptions/listen tells of changes.
func (s *Server) Handler(find func(secret string) (tenant.Key, error), stopping <-chan struct{}) http.Handler {
	verify := func(_ context.Context, token string, r *http.Request) (*auth.TokenInfo, error) {
		k, err := find(token)
		if err != nil {
			return nil, auth.ErrInvalidToken
		}
		call := telemetry.CallOf(r.Context())
		call.Set(telemetry.FieldTenant, k.Tenant)
		call.Set(telemetry.FieldKey, k.ID)
		return &auth.TokenInfo{UserID: k.Tenant, Expiration: time.Now().Add(time.Hour), Extra: map[string]any{roleExtra: k.Role, keyExtra: k.ID}}, nil
	}
	server := func(*http.Request) *sdk.Server { return s.sdk }
	o := sdk.StreamableHTTPOptions{Logger: s.config.Logger, MaxRequestBodyBytes: maxBody, PropagateRequestCancellation: true}
	kept := o
	kept.SessionTimeout = sessionLife
	o.Stateless = true
	h := &overHTTP{s: s, stopping: stopping, single: sdk.NewStreamableHTTPHandler(server, &o), kept: sdk.NewStreamableHTTPHandler(server, &kept)}
	inner := http.NewCrossOriginProtection().Handler(auth.RequireBearerToken(verify, nil)(h))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		telemetry.CallOf(r.Context()).SetRoute("/mcp")
		inner.ServeHTTP(w, r)
	})
}

type overHTTP struct {
	s            *Server
	stopping     <-chan struct{}
	single, kept http.Handler
}

// ServeHTTP implements http.Handler.
func (h *overHTTP) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if id := r.Header.Get(sessionHeader); id != "" {
		h.s.touch(id)
		if r.Method == http.MethodGet {
			var end func()
			r, end = h.untilStopping(r)
			defer end()
		}
		h.kept.ServeHTTP(w, r)
		return
	}
	method := ""
	if r.Method == http.MethodPost {
		b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			http.Error(w, "the request has more than 16 MiB", http.StatusRequestEntityTooLarge)
			return
		} else if err != nil {
			http.Error(w, "the request cannot be read", http.StatusBadRequest)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(b))
		var head struct {
			Method string `json:"method"`
		}
		if json.Unmarshal(b, &head) == nil { // what it is not the handlers say
			method = head.Method
		}
	}
	switch method {
	case "initialize":
		who := auth.TokenInfoFromContext(r.Context()).UserID
		h.s.makeRoom(who)
		h.kept.ServeHTTP(w, r)
		h.s.remember(w.Header().Get(sessionHeader), who)
		return
	case "subscriptions/listen":
		var end func()
		r, end = h.untilStopping(r)
		defer end()
	}
	h.single.ServeHTTP(w, r)
}

// untilStopping is a request that ends when streams are to.
func (h *overHTTP) untilStopping(r *http.Request) (*http.Request, func()) {
	ctx, cancel := context.WithCancel(r.Context())
	if h.stopping != nil {
		go func() {
			select {
			case <-h.stopping:
				cancel()
			case <-ctx.Done():
			}
		}()
	}
	return r.WithContext(ctx), cancel
}

// touch notes that a session is used.
func (s *Server) touch(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x, ok := s.sessions[id]; ok {
		x.used = time.Now()
		s.sessions[id] = x
	}
}

func (s *Server) remember(id, who string) {
	if id == "" {
		return // there is none
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions[id] = remembered{who, time.Now()}
}

// makeRoom ends a tenant's session if it has as many as it may.
func (s *Server) makeRoom(who string) {
	live := map[string]*sdk.ServerSession{}
	for x := range s.sdk.Sessions() {
		live[x.ID()] = x
	}
	s.mu.Lock()
	oldest, n := "", 0
	for id, x := range s.sessions {
		switch {
		case live[id] == nil:
			delete(s.sessions, id)
		case x.tenant == who:
			if n++; oldest == "" || x.used.Before(s.sessions[oldest].used) {
				oldest = id
			}
		}
	}
	if n >= maxSessions {
		delete(s.sessions, oldest)
	} else {
		oldest = ""
	}
	s.mu.Unlock()
	if oldest != "" {
		if err := live[oldest].Close(); err != nil {
			s.config.Logger.Debug("close a session", "error", err)
		}
	}
}
