package e2b

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/base"
	"github.com/axocoatl/isolation/axo/build"
	"github.com/axocoatl/isolation/axo/internal/asked"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/axo/telemetry"
	"github.com/axocoatl/isolation/axo/tenant"
	"github.com/axocoatl/isolation/image"
)

// What is kept with a sandbox.
const (
	labelTemplate = "e2b.template"
	labelEnv      = "e2b.env"     // JSON
	labelHome     = "e2b.home"    // where relative paths begin
	labelPrivate  = "e2b.private" // its ports take a token
	labelNetwork  = "e2b.network" // what was asked for of the network, JSON
	labelKey      = "e2b.key"     // the id of the API key by which it was made
	labelResume   = "e2b.resume"  // when it is paused, a request has it go on: for so many seconds
)

// BaseTemplate is the image that axo setup base makes, or where there is none the host's
// own system with the user "user"; other templates are images.
const BaseTemplate = "base"

// TierKey is the entry of the metadata that says which tier a sandbox is to have.
const TierKey = "axo.tier"

const defaultTimeout = 300 // seconds; E2B's SDKs say so of sandboxes that they do not set it for

func homeOf(sn *session.Session) string { return sn.Labels()[labelHome] }

type handler func(w http.ResponseWriter, r *http.Request, tenant string) error

// least is the role that a request takes: who only looks gets nothing by which files could
// be sent.
func least(pattern string) tenant.Role {
	if strings.HasPrefix(pattern, "GET ") && pattern != uploadPattern {
		return tenant.RoleViewer
	}
	return tenant.RoleUser
}

// roleOf is where a request's role is in its context.
type roleOf struct{}

func (s *Server) registerControl() {
	handle := func(pattern string, h handler) {
		s.patterns = append(s.patterns, pattern)
		s.control.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			key, err := s.config.Find(r.Header.Get("X-API-Key"))
			if want := least(pattern); err == nil && !key.Role.May(want) {
				err = fmt.Errorf("this takes a key of the role %s; this one has %s: %w", want, key.Role, isolation.ErrPermissionDenied)
			}
			if err == nil {
				r = r.WithContext(context.WithValue(asked.By(r.Context(), key.ID), roleOf{}, key.Role))
				call := telemetry.CallOf(r.Context())
				call.Set(telemetry.FieldTenant, key.Tenant)
				call.Set(telemetry.FieldKey, key.ID)
				call.Set(telemetry.FieldSandbox, r.PathValue("id"))
				r.Body = http.MaxBytesReader(w, r.Body, maxBody)
				err = h(w, r, key.Tenant)
			}
			if err != nil {
				fail(w, err)
			}
		})
	}
	handle("POST /sandboxes", s.create)
	handle("POST /v2/sandboxes", s.create)
	handle("GET /sandboxes", s.listRunning)
	handle("GET /v2/sandboxes", s.list)
	handle("GET /sandboxes/{id}", s.get)
	handle("DELETE /sandboxes/{id}", s.remove)
	handle("POST /sandboxes/{id}/timeout", s.setTimeout)
	handle("POST /sandboxes/{id}/refreshes", s.refresh)
	handle("POST /sandboxes/{id}/pause", s.pause)
	handle("POST /sandboxes/{id}/resume", s.connect)
	handle("POST /sandboxes/{id}/connect", s.connect)
	handle("POST /v2/sandboxes/{id}/connect", s.connect)
	s.registerSnapshots(handle)
	handle("GET /sandboxes/{id}/metrics", s.metrics)
	handle("GET /sandboxes/metrics", s.metricsOfMany)
	s.registerTemplates(handle)
	handle("GET /sandboxes/{id}/logs", s.logs)
	handle("GET /v2/sandboxes/{id}/logs", s.logs)
	s.control.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	handle("/", func(_ http.ResponseWriter, r *http.Request, _ string) error {
		return &isolation.UnsupportedError{Feature: fmt.Sprintf("%s %.80s of E2B's API", r.Method, r.URL.Path)}
	})
}

// decode reads a request's JSON; nothing is an empty object. A field that is not known
// is refused: what it asks for would not be done.
func decode(r *http.Request, v any) error {
	b, err := io.ReadAll(r.Body)
	if err == nil && len(bytes.TrimSpace(b)) > 0 {
		d := json.NewDecoder(bytes.NewReader(b))
		d.DisallowUnknownFields()
		err = d.Decode(v)
	}
	if err != nil {
		return fmt.Errorf("request: %w: %w", err, isolation.ErrInvalidArgument)
	}
	return nil
}

// newSandbox is what clients ask for. What is json.RawMessage is not supported.
type newSandbox struct {
	TemplateID          string            `json:"templateID"`
	Timeout             *int64            `json:"timeout"` // seconds
	Metadata            map[string]string `json:"metadata"`
	EnvVars             map[string]string `json:"envVars"`
	AllowInternetAccess *bool             `json:"allow_internet_access"` // nil: yes
	Secure              *bool             `json:"secure"`                // it is in any case
	AutoPause           bool              `json:"autoPause"`
	AutoPauseMemory     *bool             `json:"autoPauseMemory"`
	AutoResume          struct {
		Enabled bool `json:"enabled"`
	} `json:"autoResume"`
	Network      *network        `json:"network"`
	MCP          json.RawMessage `json:"mcp"`
	IAM          json.RawMessage `json:"iam"`
	VolumeMounts json.RawMessage `json:"volumeMounts"`
}

type network struct {
	AllowPublicTraffic *bool           `json:"allowPublicTraffic,omitempty"`
	AllowOut           []string        `json:"allowOut,omitempty"`
	DenyOut            []string        `json:"denyOut,omitempty"`
	MaskRequestHost    string          `json:"maskRequestHost,omitempty"`
	EgressProxy        json.RawMessage `json:"egressProxy,omitempty"`
	Rules              json.RawMessage `json:"rules,omitempty"`
	HTTPSPorts         []int           `json:"httpsPorts,omitempty"`
}

func given(m json.RawMessage) bool {
	t := string(bytes.TrimSpace(m))
	return t != "" && t != "null" && t != "[]" && t != "{}"
}

// unsupported names what is asked for and cannot be had.
func (n newSandbox) unsupported() string {
	switch {
	case n.AutoPause && n.AutoPauseMemory != nil && !*n.AutoPauseMemory:
		return "autoPauseMemory: false: a sandbox that is paused keeps its memory"
	case n.AutoResume.Enabled && !n.AutoPause:
		return "autoResume without autoPause"
	case given(n.MCP):
		return "mcp"
	case given(n.IAM):
		return "iam"
	case given(n.VolumeMounts):
		return "volumeMounts"
	case n.Network == nil:
		return ""
	case given(n.Network.EgressProxy) || given(n.Network.Rules):
		return "network.egressProxy and rules: what goes out is not changed, nor led elsewhere"
	case n.Network.MaskRequestHost != "" || len(n.Network.HTTPSPorts) > 0:
		return "network.maskRequestHost and httpsPorts"
	}
	return ""
}

// times are a session's for a timeout: nothing but that ends it.
func (s *Server) times(seconds int64) (time.Duration, error) {
	if seconds < 0 || seconds > int64(s.config.MaxTimeout/time.Second) {
		return 0, fmt.Errorf("timeout of %d seconds: want 0 to %d: %w", seconds, int64(s.config.MaxTimeout/time.Second), isolation.ErrInvalidArgument)
	}
	return max(time.Duration(seconds)*time.Second, time.Millisecond), nil
}

func (s *Server) create(w http.ResponseWriter, r *http.Request, tenant string) error {
	if s.config.Draining() {
		w.Header().Set("Retry-After", "2")
		return fmt.Errorf("the daemon is about to end; retry later: %w", isolation.ErrUnavailable)
	}
	n := newSandbox{}
	if err := decode(r, &n); err != nil {
		return err
	}
	if what := n.unsupported(); what != "" {
		return fmt.Errorf("this server does not have %s: %w", what, isolation.ErrInvalidArgument)
	}
	req, err := s.request(n)
	if err != nil {
		return err
	}
	req.Labels[labelKey] = asked.Key(r.Context())
	var sn *session.Session
	if x, xerr := s.config.Sessions.FindSnapshot(tenant, n.TemplateID); xerr == nil && x.Labels()[labelTemplate] != "" {
		sn, err = s.restore(r.Context(), tenant, x, req)
	} else {
		var img image.Image
		if img, err = s.setRoot(&req, tenant, n.TemplateID); err == nil {
			sn, err = s.createOf(r.Context(), tenant, req, img)
		}
	}
	if err != nil {
		if errors.Is(err, isolation.ErrResourceExhausted) {
			w.Header().Set("Retry-After", "1")
		}
		return err
	}
	writeJSON(w, http.StatusCreated, s.opened(sn))
	return nil
}

// request is the session that a client wants.
func (s *Server) request(n newSandbox) (session.Request, error) {
	seconds := int64(defaultTimeout)
	if n.Timeout != nil {
		seconds = *n.Timeout
	}
	life, err := s.times(seconds)
	if err != nil {
		return session.Request{}, err
	}
	req := session.Request{
		ID: newID(), Spec: isolation.Spec{Requirement: isolation.Arbitrary},
		Metadata: n.Metadata, Idle: life, Life: life, Labels: map[string]string{labelTemplate: n.TemplateID}, Source: "e2b",
	}
	for k, v := range n.EnvVars {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.ContainsRune(v, 0) {
			return req, fmt.Errorf("environment variable %.80q: want a name without '=', and no zero bytes: %w", k, isolation.ErrInvalidArgument)
		}
	}
	env, err := json.Marshal(n.EnvVars)
	if err != nil {
		return req, err
	}
	req.Labels[labelEnv] = string(env)
	if err := n.network(&req); err != nil {
		return req, err
	}
	if req.PauseAtEnd = n.AutoPause; n.AutoPause && n.AutoResume.Enabled {
		req.Labels[labelResume] = strconv.FormatInt(seconds, 10)
	}
	if name := n.Metadata[TierKey]; name != "" {
		t, err := isolation.ParseTier(name)
		if err == nil && t != isolation.TierOCI && t != isolation.TierMicroVM {
			err = fmt.Errorf("tier %s: want oci or microvm: %w", name, isolation.ErrInvalidArgument)
		}
		if err != nil {
			return req, fmt.Errorf("metadata %s: %w", TierKey, err)
		}
		// Who names the tier takes it as it is to be had here.
		req.Tier, req.AllowEmulated = &t, true
	}
	return req, nil
}

func newID() string {
	var id [10]byte
	_, _ = rand.Read(id[:]) // it never fails
	return "i" + hex.EncodeToString(id[:])
}

// setRoot has a request start from a template, and returns its image; without one it is
// the host's system.
func (s *Server) setRoot(r *session.Request, tenant, template string) (image.Image, error) {
	switch {
	case template == "":
		return image.Image{}, fmt.Errorf("no templateID: %w", isolation.ErrInvalidArgument)
	case s.config.Images == nil && template != BaseTemplate:
		return image.Image{}, fmt.Errorf("template %.80q: there are no images: %w", template, isolation.ErrNotFound)
	}
	img, own, err := s.built(r, tenant, template)
	if !own {
		err = isolation.ErrNotFound
		if s.config.Images != nil {
			img, err = s.config.Images.Get(template)
		}
		switch {
		case template == BaseTemplate && (errors.Is(err, isolation.ErrNotFound) || err == nil && !base.Of(img)):
			r.Labels[labelHome] = "/home/user"
			return image.Image{}, nil
		case err != nil:
			return img, fmt.Errorf("template %.80q is neither %q, nor built, nor a snapshot, nor an image here: %w", template, BaseTemplate, err)
		case build.Private(img):
			return img, fmt.Errorf("template %.80q: %w", template, isolation.ErrNotFound) // another tenant's
		}
	}
	if err != nil {
		return img, err
	}
	r.Spec.Root.Image = img.Digest
	if own || base.Of(img) || img.Config.Labels[build.Label] != "" {
		r.Spec.Profile = "session" // its user has sudo
	}
	r.Labels[labelHome] = "/"
	if img.Config.WorkingDir != "" {
		r.Labels[labelHome] = img.Config.WorkingDir
	}
	return img, nil
}

// sandbox is one as clients see it. Which fields are there depends on who asks.
type sandbox struct {
	TemplateID         string            `json:"templateID"`
	SandboxID          string            `json:"sandboxID"`
	ClientID           string            `json:"clientID"`
	EnvdVersion        string            `json:"envdVersion"`
	EnvdAccessToken    string            `json:"envdAccessToken,omitempty"`
	TrafficAccessToken string            `json:"trafficAccessToken,omitempty"`
	Domain             *string           `json:"domain,omitempty"`
	StartedAt          *time.Time        `json:"startedAt,omitempty"`
	EndAt              *time.Time        `json:"endAt,omitempty"`
	State              string            `json:"state,omitempty"`
	CPUCount           int               `json:"cpuCount,omitempty"`
	MemoryMB           *int64            `json:"memoryMB,omitempty"`
	DiskSizeMB         *int64            `json:"diskSizeMB,omitempty"`
	Metadata           map[string]string `json:"metadata,omitempty"`
	Internet           *bool             `json:"allowInternetAccess,omitempty"`
	Network            *network          `json:"network,omitempty"`
	Lifecycle          *lifecycle        `json:"lifecycle,omitempty"`
}

type lifecycle struct {
	OnTimeout  string `json:"onTimeout"` // kill or pause
	AutoResume bool   `json:"autoResume"`
}

func lifecycleOf(sn *session.Session) *lifecycle {
	l := &lifecycle{OnTimeout: "kill", AutoResume: sn.Labels()[labelResume] != ""}
	if sn.PausesAtEnd() {
		l.OnTimeout = "pause"
	}
	return l
}

// opened is a sandbox with what opens it.
func (s *Server) opened(sn *session.Session) sandbox {
	out := sandbox{TemplateID: sn.Labels()[labelTemplate], SandboxID: sn.ID(), EnvdVersion: envdVersion, EnvdAccessToken: s.token(sn, "envd")}
	if s.config.Domain != "" {
		out.Domain = &s.config.Domain
	}
	if sn.Labels()[labelPrivate] != "" {
		out.TrafficAccessToken = s.token(sn, "traffic")
	}
	return out
}

// listed is a sandbox with what is known of it. Memory and disk that nothing bounds
// are 0.
func listed(sn *session.Session) sandbox {
	i := sn.Info()
	mem, disk := i.Spec.Resources.MemoryBytes>>20, i.Spec.Resources.DiskBytes>>20
	out := sandbox{
		TemplateID: sn.Labels()[labelTemplate], SandboxID: i.ID, EnvdVersion: envdVersion, StartedAt: &i.Created, EndAt: &i.Expires,
		State: "running", CPUCount: runtime.NumCPU(), MemoryMB: &mem, DiskSizeMB: &disk, Metadata: i.Metadata,
	}
	if c := i.Spec.Resources.CPUs; c > 0 {
		out.CPUCount = max(1, int(c))
	}
	if i.Status == api.StatusPaused {
		out.State = "paused"
	}
	return out
}

// alive are a tenant's sandboxes that can be used, the newest first.
func (s *Server) alive(tenant string, metadata map[string]string) []*session.Session {
	all := s.config.Sessions.List(tenant, metadata)
	all = slices.DeleteFunc(all, func(sn *session.Session) bool {
		st := sn.Info().Status
		return sn.Labels()[labelTemplate] == "" || st != api.StatusRunning && st != api.StatusPaused
	})
	slices.Reverse(all)
	return all
}

func metadataOf(q url.Values) (map[string]string, error) {
	m, err := url.ParseQuery(q.Get("metadata"))
	if err != nil {
		return nil, fmt.Errorf("metadata: %w: %w", err, isolation.ErrInvalidArgument)
	}
	want := map[string]string{}
	for k := range m {
		want[k] = m.Get(k)
	}
	return want, nil
}

func (s *Server) listRunning(w http.ResponseWriter, r *http.Request, tenant string) error {
	want, err := metadataOf(r.URL.Query())
	if err != nil {
		return err
	}
	out := []sandbox{}
	for _, sn := range s.alive(tenant, want) {
		if x := listed(sn); x.State == "running" {
			out = append(out, x)
		}
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

const maxPage = 100

func (s *Server) list(w http.ResponseWriter, r *http.Request, tenant string) error {
	q := r.URL.Query()
	want, err := metadataOf(q)
	if err != nil {
		return err
	}
	for k := range q {
		if !slices.Contains([]string{"metadata", "state", "template", "limit", "nextToken", "order", "startedAfter"}, k) {
			return fmt.Errorf("sandboxes cannot be filtered by %.80q: %w", k, isolation.ErrInvalidArgument)
		}
	}
	limit := maxPage
	if v := q.Get("limit"); v != "" {
		if limit, err = strconv.Atoi(v); err != nil || limit < 1 || limit > maxPage {
			return fmt.Errorf("limit %.20q: want 1 to %d: %w", v, maxPage, isolation.ErrInvalidArgument)
		}
	}
	var after time.Time
	if v := q.Get("startedAfter"); v != "" {
		if after, err = time.Parse(time.RFC3339, v); err != nil {
			return fmt.Errorf("startedAfter: %w: %w", err, isolation.ErrInvalidArgument)
		}
	}
	var states []string
	for _, v := range q["state"] {
		states = append(states, strings.Split(v, ",")...)
	}
	all := s.alive(tenant, want)
	switch q.Get("order") {
	case "", "desc":
	case "asc":
		slices.Reverse(all)
	default:
		return fmt.Errorf("order %.20q: want asc or desc: %w", q.Get("order"), isolation.ErrInvalidArgument)
	}
	// A page goes on after the sandbox that was last on the one before.
	if v := q.Get("nextToken"); v != "" {
		created, id, _ := strings.Cut(v, "_")
		n, err := strconv.ParseInt(created, 10, 64)
		if err != nil {
			return fmt.Errorf("nextToken %.40q is none of this server's: %w", v, isolation.ErrInvalidArgument)
		}
		last := time.Unix(0, n)
		all = slices.DeleteFunc(all, func(sn *session.Session) bool {
			c := sn.Info().Created.Compare(last)
			if c == 0 {
				c = strings.Compare(sn.ID(), id)
			}
			if q.Get("order") == "asc" {
				return c <= 0
			}
			return c >= 0
		})
	}
	out, running := []sandbox{}, 0
	for _, sn := range all {
		x := listed(sn)
		if x.State == "running" {
			running++
		}
		if len(states) > 0 && !slices.Contains(states, x.State) || q.Get("template") != "" && q.Get("template") != x.TemplateID || !x.StartedAt.After(after) {
			continue
		}
		if len(out) == limit {
			l := out[limit-1]
			w.Header().Set("X-Next-Token", fmt.Sprintf("%d_%s", l.StartedAt.UnixNano(), l.SandboxID))
			break
		}
		out = append(out, x)
	}
	w.Header().Set("X-Total-Running", strconv.Itoa(running))
	writeJSON(w, http.StatusOK, out)
	return nil
}

// mine returns a tenant's sandbox that can be used.
func (s *Server) mine(r *http.Request, tenant string) (*session.Session, error) {
	id := r.PathValue("id")
	sn, err := s.config.Sessions.Get(tenant, id)
	if err == nil {
		st := sn.Info().Status
		if sn.Labels()[labelTemplate] == "" || st != api.StatusRunning && st != api.StatusPaused {
			err = isolation.ErrNotFound
		}
	}
	if err != nil {
		return nil, fmt.Errorf("sandbox %.80q: %w", id, isolation.ErrNotFound)
	}
	return sn, nil
}

func (s *Server) get(w http.ResponseWriter, r *http.Request, who string) error {
	sn, err := s.mine(r, who)
	if err != nil {
		return err
	}
	out, open := listed(sn), s.opened(sn)
	out.Domain = open.Domain
	// With it programs are run.
	if role, _ := r.Context().Value(roleOf{}).(tenant.Role); role.May(tenant.RoleUser) {
		out.EnvdAccessToken = open.EnvdAccessToken
	}
	internet := sn.Networked()
	out.Internet, out.Network, out.Lifecycle = &internet, networkOf(sn), lifecycleOf(sn)
	writeJSON(w, http.StatusOK, out)
	return nil
}

func (s *Server) remove(w http.ResponseWriter, r *http.Request, tenant string) error {
	sn, err := s.config.Sessions.Get(tenant, r.PathValue("id"))
	if err != nil || sn.Labels()[labelTemplate] == "" {
		return fmt.Errorf("sandbox %.80q: %w", r.PathValue("id"), isolation.ErrNotFound)
	}
	// It goes on when the caller does not wait for it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), time.Minute)
	defer cancel()
	if err := sn.Delete(ctx); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) setTimeout(w http.ResponseWriter, r *http.Request, tenant string) error {
	var in struct {
		Timeout *int64 `json:"timeout"`
	}
	if err := decode(r, &in); err != nil {
		return err
	}
	if in.Timeout == nil {
		return fmt.Errorf("no timeout: %w", isolation.ErrInvalidArgument)
	}
	return s.live(w, r, tenant, *in.Timeout, false)
}

func (s *Server) refresh(w http.ResponseWriter, r *http.Request, tenant string) error {
	in := struct {
		Duration int64 `json:"duration"`
	}{Duration: 60}
	if err := decode(r, &in); err != nil {
		return err
	}
	return s.live(w, r, tenant, in.Duration, true)
}

// live sets when a sandbox ends; longer: not earlier than is set.
func (s *Server) live(w http.ResponseWriter, r *http.Request, tenant string, seconds int64, longer bool) error {
	sn, err := s.mine(r, tenant)
	if err != nil {
		return err
	}
	if err := s.prolong(r.Context(), sn, seconds, longer); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) prolong(ctx context.Context, sn *session.Session, seconds int64, longer bool) error {
	life, err := s.times(seconds)
	if err != nil {
		return err
	}
	if longer && time.Until(sn.Info().Expires) > life {
		return nil
	}
	return sn.Touch(ctx, life, life)
}

func (s *Server) pause(w http.ResponseWriter, r *http.Request, tenant string) error {
	in := struct {
		Memory *bool `json:"memory"`
	}{}
	if err := decode(r, &in); err != nil {
		return err
	}
	if in.Memory != nil && !*in.Memory {
		return fmt.Errorf("a sandbox that is paused keeps its memory: %w", isolation.ErrInvalidArgument)
	}
	sn, err := s.mine(r, tenant)
	if err != nil {
		return err
	}
	if sn.Info().Status == api.StatusPaused {
		return fmt.Errorf("sandbox %s is paused already: %w", sn.ID(), isolation.ErrFailedPrecondition)
	}
	if err := sn.Pause(r.Context()); err != nil {
		return err
	}
	// Its timeout is for the time that it runs.
	if err := sn.Touch(r.Context(), 0, s.config.Keep); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// connect is for who goes on with a sandbox; one that is paused runs again.
func (s *Server) connect(w http.ResponseWriter, r *http.Request, tenant string) error {
	in := struct {
		Timeout   int64 `json:"timeout"`
		AutoPause bool  `json:"autoPause"`
		Memory    *bool `json:"memory"`
	}{Timeout: defaultTimeout}
	if err := decode(r, &in); err != nil {
		return err
	}
	if in.Memory != nil && !*in.Memory {
		return fmt.Errorf("a sandbox is not resumed without its memory: %w", isolation.ErrInvalidArgument)
	}
	sn, err := s.mine(r, tenant)
	if err != nil {
		return err
	}
	if in.AutoPause && !sn.PausesAtEnd() {
		return fmt.Errorf("autoPause is said when a sandbox is made: %w", isolation.ErrInvalidArgument)
	}
	paused := sn.Info().Status == api.StatusPaused
	// When it runs again the time counts that it is to run.
	if err := s.prolong(r.Context(), sn, in.Timeout, !paused); err != nil {
		return err
	}
	status := http.StatusOK
	if paused {
		if err := sn.Resume(r.Context()); err != nil {
			return err
		}
		status = http.StatusCreated
	}
	writeJSON(w, status, s.opened(sn))
	return nil
}

type logEntry struct {
	Timestamp time.Time         `json:"timestamp"`
	Level     string            `json:"level"`
	Message   string            `json:"message"`
	Fields    map[string]string `json:"fields"`
}

// logs tells of the programs of a sandbox: what was started, and how it ended.
func (s *Server) logs(w http.ResponseWriter, r *http.Request, tenant string) error {
	sn, err := s.mine(r, tenant)
	if err != nil {
		return err
	}
	var start time.Time
	if v := r.URL.Query().Get("start"); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return fmt.Errorf("start %.40q: want milliseconds since 1970: %w", v, isolation.ErrInvalidArgument)
		}
		start = time.UnixMilli(n)
	}
	list, err := sn.Execs(r.Context())
	if err != nil {
		return err
	}
	entries := []logEntry{}
	for _, e := range list {
		i := e.Info()
		fields := map[string]string{"pid": strconv.FormatUint(uint64(pidOf(i.ID)), 10), "command": fmt.Sprintf("%.1000q", i.Process.Args)}
		entries = append(entries, logEntry{i.Started, "info", "program started", fields})
		if i.Ended != nil {
			how := i.Unknown
			if i.Exit != nil {
				how = i.Exit.String()
			}
			entries = append(entries, logEntry{*i.Ended, "info", "program ended: " + how, fields})
		}
	}
	entries = slices.DeleteFunc(entries, func(e logEntry) bool { return e.Timestamp.Before(start) })
	slices.SortStableFunc(entries, func(a, b logEntry) int { return a.Timestamp.Compare(b.Timestamp) })
	if strings.HasPrefix(r.URL.Path, "/v2/") {
		writeJSON(w, http.StatusOK, struct {
			Logs []logEntry `json:"logs"`
		}{entries})
		return nil
	}
	type line struct {
		Timestamp time.Time `json:"timestamp"`
		Line      string    `json:"line"`
	}
	lines := []line{}
	for _, e := range entries {
		// E2B's command line reads JSON of it.
		fields := map[string]string{"level": e.Level, "logger": "process", "message": e.Message}
		maps.Copy(fields, e.Fields)
		b, err := json.Marshal(fields)
		if err != nil {
			return err
		}
		lines = append(lines, line{e.Timestamp, string(b)})
	}
	writeJSON(w, http.StatusOK, struct {
		Logs    []line     `json:"logs"`
		Entries []logEntry `json:"logEntries"`
	}{lines, entries})
	return nil
}
