package session

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/admission"
	"github.com/axocoatl/isolation/axo/internal/asked"
	"github.com/axocoatl/isolation/axo/internal/clock"
	"github.com/axocoatl/isolation/engine"
	"github.com/axocoatl/isolation/internal/failpoint"
)

// Engine makes sandboxes and finds them again; *engine.Engine is one.
type Engine interface {
	Create(context.Context, engine.Request) (isolation.Sandbox, engine.Decision, error)
	RecoverOne(ctx context.Context, engine string, r engine.Request) (isolation.Sandbox, error)
	Restore(ctx context.Context, snapshot string, r engine.Request) (isolation.Sandbox, engine.Decision, error)
	RemoveSnapshot(ctx context.Context, engine, name string) error
	Close() error
}

// Config makes a Manager.
type Config struct {
	Engine Engine
	// Dir keeps the records and outputs; it is made with mode 0700.
	Dir string
	// Keep is how much is kept of each stream of a program, at least; 0: 16 MiB.
	Keep int64
	// MaxEnded is how many ended programs of a session are known; 0: 32.
	MaxEnded int
	// Idle and Life are what a request that does not say gets; 0: 15 min and 24 h.
	// MaxIdle and MaxLife bound what it may ask for; 0: 24 h and 30 days.
	Idle, Life, MaxIdle, MaxLife time.Duration
	// Quota is what a tenant may have at once; nil: no bound. Sandboxes is how many
	// all tenants may have together; 0: no bound.
	Quota     func(tenant string) Quota
	Sandboxes int
	// Memory is what they may have together by their limits, with runs; nil: no bound.
	Memory *admission.Memory
	Logger *slog.Logger     // nil: silent
	Now    func() time.Time // nil: time.Now
	// Boot is what clock.Boot is. nil: that, or where Now is not nil nothing.
	Boot func() (id string, up time.Duration)
	// OnEvent is called for what happens to sessions, one after another for each.
	OnEvent  func(Event)
	Observer Observer // of what is done with sessions; nil: none
}

// Quota bounds what a tenant's sessions have together. Zero is no bound. Where
// memory, CPUs or disk is bounded, a session must say how much it wants.
type Quota struct {
	Sandboxes   int     `json:"sandboxes,omitempty" toml:"sandboxes"`
	Snapshots   int     `json:"snapshots,omitempty" toml:"snapshots"`
	MemoryBytes int64   `json:"memory_bytes,omitempty" toml:"memory_bytes"`
	CPUs        float64 `json:"cpus,omitempty" toml:"cpus"`
	DiskBytes   int64   `json:"disk_bytes,omitempty" toml:"disk_bytes"`
	// Rate is how many sandboxes and runs it may begin in a second, Burst how many at
	// once when it has begun none for a while; package admission holds it to them.
	Rate  float64 `json:"rate,omitempty" toml:"rate"`
	Burst int     `json:"burst,omitempty" toml:"burst"`
}

// Validate refuses what no quota can be.
func (q Quota) Validate() error {
	for _, n := range []float64{float64(q.Sandboxes), float64(q.Snapshots), float64(q.MemoryBytes), q.CPUs, float64(q.DiskBytes), q.Rate, float64(q.Burst)} {
		if !(n >= 0) || math.IsInf(n, 1) {
			return fmt.Errorf("quota %+v: want numbers that are not negative: %w", q, isolation.ErrInvalidArgument)
		}
	}
	return nil
}

// Request is a session that somebody wants. Spec.Tenant is whose code it is among
// those whom the tenant itself tells apart.
type Request struct {
	Spec            isolation.Spec  `json:"spec"`
	Tier            *isolation.Tier `json:"tier,omitempty"`
	Engine          string          `json:"engine,omitempty"`
	MinTier         *isolation.Tier `json:"min_tier,omitempty"`
	AllowEmulated   bool            `json:"allow_emulated,omitempty"`
	AllowUnenforced bool            `json:"allow_unenforced,omitempty"`
	Egress          engine.Egress   `json:"egress,omitzero"`
	// Ephemeral lets the sandbox go with the process that made it.
	Ephemeral bool `json:"ephemeral,omitempty"`
	// From is the snapshot or session that it is a copy of; it is set by Restore and
	// Fork.
	From string `json:"from,omitempty"`
	// Hold is how long nobody may hold it (Session.Hold), from the start on, before it
	// is deleted, whatever runs in it; 0: for ever.
	Hold time.Duration `json:"hold,omitempty"`

	// PauseAtEnd has it paused at the end of its time instead of deleted, and kept for
	// the longest life; see Session.Pause. One that cannot be paused is refused.
	PauseAtEnd bool `json:"pause_at_end,omitempty"`

	// Source is by which way it came, for a policy; empty: rest.
	Source string `json:"source,omitempty"`
	// Labels are what an interface to the sessions keeps with one, and its owner does
	// not see.
	Labels map[string]string `json:"labels,omitempty"`

	ID       string            `json:"-"` // empty: made
	Metadata map[string]string `json:"-"`
	Idle     time.Duration     `json:"-"`
	Life     time.Duration     `json:"-"`
}

func (r Request) engineRequest(id, tenant string) engine.Request {
	spec := r.Spec
	// What the tenant tells apart is apart: nothing is reused from one to the other.
	spec.Tenant = tenant + "/" + r.Spec.Tenant
	return engine.Request{
		Source: cmp.Or(r.Source, "rest"), ID: id, Spec: spec, Tier: r.Tier, Engine: r.Engine, MinTier: r.MinTier,
		AllowEmulated: r.AllowEmulated, AllowUnenforced: r.AllowUnenforced, Egress: r.Egress,
	}
}

// Event is something that happened to a session.
type Event struct {
	Time    time.Time         `json:"time"`
	Kind    string            `json:"kind"` // created, exec, exited, deleted, lost, ...
	Tenant  string            `json:"tenant"`
	Key     string            `json:"key,omitempty"` // the id of the key by which it was asked for; empty: nobody's
	Session string            `json:"session"`
	Exec    string            `json:"exec,omitempty"`
	Fields  map[string]string `json:"fields,omitempty"`
}

// Manager has the sessions. It is safe for concurrent use.
type Manager struct {
	config Config
	ctx    context.Context // ends at Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	sessions map[string]*Session // by key; guarded by mu; those being made too
	// snapshots by id; guarded by mu
	snapshots map[string]*Snapshot
	closed    bool // guarded by mu
}

const (
	maxMetadata = 64
	maxText     = 4096
)

// Open finds the sessions that are there, and goes on with them. It returns when
// it is known of each what it is.
func Open(ctx context.Context, c Config) (*Manager, error) {
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{{&c.Idle, 15 * time.Minute}, {&c.Life, 24 * time.Hour}, {&c.MaxIdle, 24 * time.Hour}, {&c.MaxLife, 30 * 24 * time.Hour}} {
		if *d.v < 0 {
			return nil, fmt.Errorf("sessions: a negative time: %w", isolation.ErrInvalidArgument)
		}
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	c.Idle, c.Life = min(c.Idle, c.MaxIdle), min(c.Life, c.MaxLife)
	if c.Keep == 0 {
		c.Keep = 16 << 20
	}
	if c.MaxEnded == 0 {
		c.MaxEnded = 32
	}
	if c.Quota == nil {
		c.Quota = func(string) Quota { return Quota{} }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
		if c.Boot == nil {
			c.Boot = clock.Boot
		}
	}
	if c.OnEvent == nil {
		c.OnEvent = func(Event) {}
	}
	if c.Observer == nil {
		c.Observer = unobserved{}
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("sessions: %w", err)
	}
	m := &Manager{config: c, sessions: map[string]*Session{}, snapshots: map[string]*Snapshot{}}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	if err := errors.Join(m.recoverSnapshots(ctx), m.recoverAll(ctx)); err != nil {
		m.cancel()
		return nil, err
	}
	m.wg.Go(m.reap)
	return m, nil
}

// Create makes a session of a tenant's. When ctx ends before it is there, nothing
// is left of it.
func (m *Manager) Create(ctx context.Context, tenant string, r Request) (*Session, error) {
	s, err := m.reserve(ctx, tenant, r)
	if err != nil {
		return nil, &isolation.Error{Op: "create", ID: r.ID, Outcome: isolation.NotStarted, Err: err}
	}
	if err := s.create(ctx, OpCreate, func(ctx context.Context) error { return s.build(ctx, nil, s.fresh) }); err != nil {
		return nil, err
	}
	return s, nil
}

// reserve checks a request and takes the id, the quota and the memory.
func (m *Manager) reserve(ctx context.Context, tenant string, r Request) (_ *Session, err error) {
	if r.ID == "" {
		r.ID = newID("sbx-")
	}
	if err := isolation.ValidateID(r.ID); err != nil {
		return nil, err
	}
	if err := r.Spec.Validate(); err != nil {
		return nil, err
	}
	if len(r.Metadata) > maxMetadata {
		return nil, fmt.Errorf("%d entries of metadata, at most %d are taken: %w", len(r.Metadata), maxMetadata, isolation.ErrInvalidArgument)
	}
	for k, v := range r.Metadata {
		if k == "" || len(k) > maxText || len(v) > maxText {
			return nil, fmt.Errorf("metadata %.80q: want 1 to %d bytes in a key and at most as many in a value: %w", k, maxText, isolation.ErrInvalidArgument)
		}
	}
	c := m.config
	for _, d := range []struct {
		name      string
		v         *time.Duration
		def, most time.Duration
	}{{"idle time", &r.Idle, c.Idle, c.MaxIdle}, {"life", &r.Life, c.Life, c.MaxLife}} {
		if *d.v == 0 {
			*d.v = d.def
		}
		if *d.v < 0 || *d.v > d.most {
			return nil, fmt.Errorf("%s %v: want more than 0 and at most %v: %w", d.name, *d.v, d.most, isolation.ErrInvalidArgument)
		}
	}
	if r.Hold < 0 {
		return nil, fmt.Errorf("hold %v: want 0 or more: %w", r.Hold, isolation.ErrInvalidArgument)
	}
	give, err := m.config.Memory.Take(ctx, tenant, r.Spec.Resources.MemoryBytes)
	if err != nil {
		m.config.Observer.Refused(tenant, admission.ReasonOf(err))
		return nil, err
	}
	defer func() {
		if err != nil {
			give()
		}
	}()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, errClosed
	}
	key := keyOf(tenant, r.ID)
	if m.sessions[key] != nil {
		return nil, fmt.Errorf("session %s is there already: %w", r.ID, isolation.ErrAlreadyExists)
	}
	if err := m.admitLocked(tenant, r.Spec.Resources); err != nil {
		return nil, err
	}
	now := c.Now()
	s := &Session{
		m: m, id: r.ID, key: key, tenant: tenant, instance: newID(""), metadata: maps.Clone(r.Metadata), labels: r.Labels, created: now,
		rec: record{
			Version: recordVersion, ID: r.ID, Tenant: tenant, Phase: phaseCreating, Request: r, Durable: !r.Ephemeral,
			Metadata: maps.Clone(r.Metadata), Created: now, Idle: r.Idle, Expires: now.Add(r.Life),
		},
		active: now, loose: now, ready: make(chan struct{}), execs: map[string]*Exec{}, give: give,
	}
	s.rec.Instance = s.instance
	m.sessions[key] = s
	return s, nil
}

var errClosed = fmt.Errorf("the session manager is closed: %w", isolation.ErrUnavailable)

// admitLocked refuses what would be more than the tenant's quota.
func (m *Manager) admitLocked(tenant string, want isolation.Resources) error {
	q := m.config.Quota(tenant)
	var have Quota
	all := 0
	for _, s := range m.sessions {
		r, counts := s.resources()
		if counts {
			all++
		}
		if counts && s.tenant == tenant {
			have.Sandboxes++
			have.MemoryBytes += r.MemoryBytes
			have.CPUs += r.CPUs
			have.DiskBytes += r.DiskBytes
		}
	}
	if q.Sandboxes > 0 && have.Sandboxes+1 > q.Sandboxes {
		m.config.Observer.Refused(tenant, admission.ReasonQuota)
		return fmt.Errorf("the tenant has %d sandboxes of %d; delete one, or retry later: %w", have.Sandboxes, q.Sandboxes, isolation.ErrResourceExhausted)
	}
	if n := m.config.Sandboxes; n > 0 && all+1 > n {
		m.config.Observer.Refused(tenant, admission.ReasonHost)
		return fmt.Errorf("there are %d sandboxes of all tenants, no more are taken; retry later: %w", all, isolation.ErrUnavailable)
	}
	for _, d := range []struct {
		name             string
		have, want, most float64
	}{
		{"bytes of memory", float64(have.MemoryBytes), float64(want.MemoryBytes), float64(q.MemoryBytes)},
		{"CPUs", have.CPUs, want.CPUs, q.CPUs},
		{"bytes of disk", float64(have.DiskBytes), float64(want.DiskBytes), float64(q.DiskBytes)},
	} {
		switch {
		case d.most == 0:
		case d.want == 0:
			return fmt.Errorf("the tenant has a quota of %v %s, so a sandbox must say how many it wants: %w", d.most, d.name, isolation.ErrInvalidArgument)
		case d.have+d.want > d.most:
			m.config.Observer.Refused(tenant, admission.ReasonQuota)
			return fmt.Errorf("the tenant has %v %s of %v and wants %v more: %w", d.have, d.name, d.most, d.want, isolation.ErrResourceExhausted)
		}
	}
	return nil
}

// Get returns a tenant's session. Another's is NotFound.
func (m *Manager) Get(tenant, id string) (*Session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.sessions[keyOf(tenant, id)]
	if s == nil {
		return nil, fmt.Errorf("session %.80q: %w", id, isolation.ErrNotFound)
	}
	return s, nil
}

// Longest are the longest idle time and life that a request may have.
func (m *Manager) Longest() (idle, life time.Duration) { return m.config.MaxIdle, m.config.MaxLife }

// WithID returns the sessions of all tenants that have the id: for an interface whose
// callers do not say whose it is, and show otherwise that they may use it.
func (m *Manager) WithID(id string) []*Session {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*Session
	for _, s := range m.sessions {
		if s.id == id {
			out = append(out, s)
		}
	}
	return out
}

// All returns the sessions of all tenants, in no order; see WithID.
func (m *Manager) All() []*Session {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.sessions))
}

// Tenants are those who have a session or a snapshot, in order.
func (m *Manager) Tenants() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := map[string]bool{}
	for _, s := range m.sessions {
		all[s.tenant] = true
	}
	for _, x := range m.snapshots {
		all[x.rec.Tenant] = true
	}
	return slices.Sorted(maps.Keys(all))
}

// Owns reports whether a sandbox, by the id that its driver has it by, is a session's.
func (m *Manager) Owns(id string) bool {
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.sessions))
	m.mu.Unlock()
	return slices.ContainsFunc(all, func(s *Session) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		// Of a record that cannot be read nobody knows which is its.
		return s.corrupt != nil || s.sandboxID(s.rec) == id
	})
}

// Named returns whose a sandbox is, and which session of his, by the id that its driver
// has it by.
func (m *Manager) Named(id string) (tenant, session string, ok bool) {
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.sessions))
	m.mu.Unlock()
	for _, s := range all {
		s.mu.Lock()
		is := s.corrupt == nil && s.sandboxID(s.rec) == id
		s.mu.Unlock()
		if is {
			return s.tenant, s.id, true
		}
	}
	return "", "", false
}

// List returns a tenant's sessions that have all of the metadata, the oldest
// first.
func (m *Manager) List(tenant string, metadata map[string]string) []*Session {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*Session
next:
	for _, s := range m.sessions {
		if s.tenant != tenant {
			continue
		}
		for k, v := range metadata {
			if have, ok := s.metadata[k]; !ok || have != v {
				continue next
			}
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *Session) int {
		if c := a.created.Compare(b.created); c != 0 {
			return c
		}
		return strings.Compare(a.id, b.id)
	})
	return out
}

// forget takes a session off the list.
func (m *Manager) forget(s *Session) {
	s.give()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sessions[s.key] == s {
		delete(m.sessions, s.key)
	}
}

// Close lets go of the sessions: those whose sandboxes outlive this process go on
// without it, the others are deleted. It closes the engine.
func (m *Manager) Close(ctx context.Context) error {
	m.mu.Lock()
	m.closed = true
	all := slices.Collect(maps.Values(m.sessions))
	m.mu.Unlock()
	m.cancel()
	var errs []error
	for _, s := range all {
		if !s.durable() {
			errs = append(errs, s.Delete(ctx))
		}
	}
	m.wg.Wait()
	errs = append(errs, m.config.Engine.Close())
	// Not before: to a program that goes on it would be the end of its input.
	for _, s := range all {
		s.closeInputs()
	}
	return errors.Join(errs...)
}

// reap ends sessions whose time has come, and tries again what did not work.
func (m *Manager) reap() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-tick.C:
			m.Reap()
		}
	}
}

// Reap deletes the sessions that are past their time, in the background. It is
// called every second.
func (m *Manager) Reap() {
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.sessions))
	m.mu.Unlock()
	now := m.config.Now()
	for _, s := range all {
		why := s.due(now)
		if why == "" {
			continue
		}
		m.wg.Go(func() {
			ctx, cancel := context.WithTimeout(m.ctx, time.Minute)
			defer cancel()
			if s.PausesAtEnd() && s.running() {
				err := s.pauseAtEnd(ctx)
				if err == nil || m.ctx.Err() != nil {
					return
				}
				s.log().Error("pause sandbox at the end of its time; it is deleted", "error", err)
			}
			if err := s.end(ctx, why); err != nil && m.ctx.Err() == nil {
				s.log().Error("delete sandbox", "reason", why, "error", err)
			}
		})
	}
}

// moment is now, as it can be written down.
func (m *Manager) moment() clock.Moment { return clock.At(m.config.Now(), m.config.Boot) }

// log is for what happens to the session.
func (s *Session) log() *slog.Logger {
	return s.m.config.Logger.With("tenant", s.tenant, "sandbox", s.id)
}

func (m *Manager) event(ctx context.Context, s *Session, kind, exec string, fields ...string) {
	e := Event{Time: m.config.Now(), Kind: kind, Tenant: s.tenant, Key: asked.Key(ctx), Session: s.id, Exec: exec}
	for i := 0; i+1 < len(fields); i += 2 {
		if e.Fields == nil {
			e.Fields = map[string]string{}
		}
		e.Fields[fields[i]] = fields[i+1]
	}
	m.config.OnEvent(e)
}

// keyOf is what a session has its directory by, and the driver its sandbox: ids are
// a tenant's own, so that none finds out, or takes, what another has.
func keyOf(tenant, id string) string {
	h := sha256.Sum256([]byte(tenant + "/" + id)) // no tenant's name has a slash
	return id[:min(len(id), 40)] + "." + hex.EncodeToString(h[:10])
}

func newID(prefix string) string {
	var b [10]byte
	_, _ = rand.Read(b[:]) // it never fails
	return prefix + hex.EncodeToString(b[:])
}

// recoverAll finds the sessions of the processes before this one.
func (m *Manager) recoverAll(ctx context.Context) error {
	list, err := os.ReadDir(m.config.Dir)
	if err != nil {
		return fmt.Errorf("sessions: %w", err)
	}
	var wg sync.WaitGroup
	limit := make(chan struct{}, 16)
	for _, f := range list {
		if !f.IsDir() || isolation.ValidateID(f.Name()) != nil {
			continue
		}
		now := m.config.Now()
		s := &Session{m: m, give: func() {}, id: f.Name(), key: f.Name(), ready: make(chan struct{}), execs: map[string]*Exec{}, active: now, loose: now}
		if err := load(filepath.Join(s.dir(), sessionFile), &s.rec); errors.Is(err, os.ErrNotExist) {
			// It was killed before anything else was there.
			if err := os.RemoveAll(s.dir()); err != nil {
				s.log().Error("remove half a sandbox's record", "error", err)
			}
			continue
		} else if err == nil {
			err = s.rec.check(s.key)
			s.tenant, s.instance, s.metadata, s.created = s.rec.Tenant, s.rec.Instance, s.rec.Metadata, s.rec.Created
			s.labels = s.rec.Request.Labels
			s.rec.Expires = s.rec.ends(m.moment())
			if err == nil && s.rec.Phase != phaseLost {
				s.give = m.config.Memory.Adopt(s.tenant, s.rec.Request.Spec.Resources.MemoryBytes)
			}
			if s.corrupt = err; keyOf(s.tenant, s.rec.ID) == s.key {
				s.id = s.rec.ID
			}
		} else {
			s.corrupt = err
		}
		m.mu.Lock()
		m.sessions[s.key] = s
		m.mu.Unlock()
		limit <- struct{}{}
		wg.Go(func() {
			defer func() { <-limit }()
			s.recover(ctx)
		})
	}
	wg.Wait()
	failpoint.Hit(failpoint.Recovered)
	return context.Cause(ctx)
}
