package session

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/admission"
	"github.com/axocoatl/isolation/internal/failpoint"
)

// Snapshot is a sandbox on disk, of which others are made. It is safe for
// concurrent use.
type Snapshot struct {
	m *Manager
	// turn is held by who takes it or removes it.
	turn chan struct{}

	rec  snapshotRecord // guarded by Manager.mu
	gone bool           // guarded by Manager.mu
}

// snapshotRecord is a snapshot on disk: DIR/.snapshots/ID.json. What the sandbox
// had is the driver's, under the same id.
type snapshotRecord struct {
	Version  int       `json:"version"`
	ID       string    `json:"id"`
	Tenant   string    `json:"tenant"`
	Name     string    `json:"name"`
	Phase    string    `json:"phase"`
	Session  string    `json:"session"` // of which it is
	Source   record    `json:"source"`
	Programs []program `json:"programs,omitempty"`
	Created  time.Time `json:"created"`
}

// program is one that runs in a copy of its sandbox.
type program struct {
	ID     string            `json:"id"`
	Record execRecord        `json:"record"`
	From   isolation.Offsets `json:"from"` // what comes from here on is the copy's own
}

const (
	// snapshotsDir is no id of a session.
	snapshotsDir = ".snapshots"

	phaseTaking = "taking"
	phaseKept   = "kept"
)

func (m *Manager) snapshotFile(id string) string {
	return filepath.Join(m.config.Dir, snapshotsDir, id+".json")
}

// Labels are those of the session that it was taken of.
func (x *Snapshot) Labels() map[string]string { return x.rec.Source.Request.Labels }

// Info tells what is known.
func (x *Snapshot) Info() api.Snapshot {
	x.m.mu.Lock()
	rec := x.rec
	x.m.mu.Unlock()
	i := api.Snapshot{
		ID: rec.ID, Name: rec.Name, Sandbox: rec.Session, Created: rec.Created, Durable: rec.Source.Durable,
		Tier: rec.Source.Decision.Got, Engine: rec.Source.Decision.Engine, Spec: rec.Source.Request.Spec, Programs: []string{},
	}
	switch rec.Phase {
	case phaseTaking:
		i.Status = api.SnapshotTaking
	case phaseKept:
		i.Status = api.SnapshotReady
	default:
		i.Status = api.SnapshotDeleting
	}
	for _, p := range rec.Programs {
		i.Programs = append(i.Programs, p.ID)
	}
	return i
}

// Snapshot writes the sandbox whole, with what runs in it, under a name of the
// tenant's; "": its id. The sandbox goes on as it was. After an error nothing is
// left.
func (s *Session) Snapshot(ctx context.Context, name string) (x *Snapshot, err error) {
	err = s.do(ctx, OpSnapshot, func(ctx context.Context) error {
		x, err = s.snapshot(ctx, name)
		return err
	})
	return x, err
}

func (s *Session) snapshot(ctx context.Context, name string) (*Snapshot, error) {
	taker, err := ability[isolation.Snapshotter](ctx, s, "a snapshot")
	if err != nil {
		return nil, err
	}
	s.copying.Lock()
	defer s.copying.Unlock()
	x, err := s.m.reserveSnapshot(s, name)
	if err != nil {
		return nil, &isolation.Error{Op: "snapshot", ID: s.id, Err: err}
	}
	defer x.release()
	if err := s.take(ctx, x, taker); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return nil, errors.Join(err, x.remove(undo))
	}
	s.m.event(ctx, s, "snapshot", "", "snapshot", x.rec.ID, "name", x.rec.Name)
	return x, nil
}

func (s *Session) take(ctx context.Context, x *Snapshot, taker isolation.Snapshotter) error {
	fail := func(err error) error { return &isolation.Error{Op: "snapshot", ID: s.id, Err: err} }
	if err := os.MkdirAll(filepath.Join(s.m.config.Dir, snapshotsDir), 0o700); err != nil {
		return fail(err)
	}
	if err := save(s.m.snapshotFile(x.rec.ID), x.rec); err != nil {
		return fail(err)
	}
	failpoint.Hit(failpoint.SnapshotRecorded)
	st, err := s.still(ctx)
	if err != nil {
		return fail(err)
	}
	err = taker.Snapshot(ctx, x.rec.ID)
	programs := st.programs()
	if err = errors.Join(err, st.goOn(ctx)); err != nil {
		return err
	}
	failpoint.Hit(failpoint.SnapshotTaken)
	rec := x.rec
	rec.Phase, rec.Programs = phaseKept, programs
	if err := save(s.m.snapshotFile(rec.ID), rec); err != nil {
		return fail(err)
	}
	s.m.mu.Lock()
	x.rec = rec
	s.m.mu.Unlock()
	failpoint.Hit(failpoint.SnapshotKept)
	return nil
}

// stillness is a session whose programs stand still while it is copied.
type stillness struct {
	s      *Session
	live   []*Exec
	pauser isolation.Pauser // nil: they need not go on again
}

// still stops the programs of a session while it is copied, so that it can be told
// afterwards how much of their output was its own. Whoever comes after a crash finds
// by the record that they are to go on.
func (s *Session) still(ctx context.Context) (*stillness, error) {
	s.mu.Lock()
	sb, paused := s.sb, s.paused
	st := &stillness{s: s}
	for _, e := range s.execs {
		if e.live() {
			st.live = append(st.live, e)
		}
	}
	s.mu.Unlock()
	p, ok := isolation.As[isolation.Pauser](sb)
	if len(st.live) == 0 || paused || !ok {
		return st, nil
	}
	if err := s.setStill(true); err != nil {
		return nil, err
	}
	if err := p.Pause(ctx); err != nil {
		return nil, errors.Join(err, s.setStill(false))
	}
	st.pauser = p
	return st, nil
}

func (s *Session) setStill(still bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.rec
	next.Still = still
	if err := s.save(next); err != nil {
		return err
	}
	s.rec = next
	return nil
}

// programs are those that run in a copy that was just made. What has come of their
// output by now is the session's: the copy holds all that it has not acknowledged.
func (st *stillness) programs() (list []program) {
	slices.SortFunc(st.live, func(a, b *Exec) int { return strings.Compare(a.id, b.id) })
	for _, e := range st.live {
		p := program{ID: e.id}
		e.mu.Lock()
		p.Record = e.rec
		e.mu.Unlock()
		if p.Record.Ended != nil {
			continue
		}
		_, p.From.Stdout = e.stdout.bounds()
		_, p.From.Stderr = e.stderr.bounds()
		list = append(list, p)
	}
	return list
}

// goOn lets the programs go on.
func (st *stillness) goOn(ctx context.Context) error {
	if st.pauser == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if err := st.pauser.Resume(ctx); err != nil {
		return err
	}
	return st.s.setStill(false)
}

// reserveSnapshot takes the name. Its turn is the caller's.
func (m *Manager) reserveSnapshot(s *Session, name string) (*Snapshot, error) {
	id := newID("snap-")
	if name == "" {
		name = id
	}
	if err := isolation.ValidateID(name); err != nil {
		return nil, fmt.Errorf("name: %w", err)
	}
	s.mu.Lock()
	source := s.rec
	s.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, errClosed
	}
	have := 0
	for _, x := range m.snapshots {
		if x.rec.Tenant != s.tenant {
			continue
		}
		have++
		if x.rec.Name == name || x.rec.ID == name {
			return nil, fmt.Errorf("snapshot %s is there already: %w", name, isolation.ErrAlreadyExists)
		}
	}
	if q := m.config.Quota(s.tenant); q.Snapshots > 0 && have+1 > q.Snapshots {
		m.config.Observer.Refused(s.tenant, admission.ReasonQuota)
		return nil, fmt.Errorf("the tenant has %d snapshots of %d; remove one: %w", have, q.Snapshots, isolation.ErrResourceExhausted)
	}
	x := m.newSnapshot(snapshotRecord{
		Version: recordVersion, ID: id, Tenant: s.tenant, Name: name, Phase: phaseTaking, Session: s.id, Source: source, Created: m.config.Now(),
	})
	x.turn <- struct{}{}
	m.snapshots[id] = x
	return x, nil
}

func (m *Manager) newSnapshot(rec snapshotRecord) *Snapshot {
	return &Snapshot{m: m, rec: rec, turn: make(chan struct{}, 1)}
}

func (x *Snapshot) release() { <-x.turn }

// FindSnapshot returns a tenant's snapshot by its name or id. Another's is
// NotFound.
func (m *Manager) FindSnapshot(tenant, name string) (*Snapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, x := range m.snapshots {
		if x.rec.Tenant == tenant && (x.rec.Name == name || x.rec.ID == name) {
			return x, nil
		}
	}
	return nil, fmt.Errorf("snapshot %.80q: %w", name, isolation.ErrNotFound)
}

// Snapshots returns a tenant's snapshots, the oldest first.
func (m *Manager) Snapshots(tenant string) []*Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*Snapshot
	for _, x := range m.snapshots {
		if x.rec.Tenant == tenant {
			out = append(out, x)
		}
	}
	slices.SortFunc(out, func(a, b *Snapshot) int {
		if c := a.rec.Created.Compare(b.rec.Created); c != 0 {
			return c
		}
		return strings.Compare(a.rec.ID, b.rec.ID)
	})
	return out
}

// Delete removes the snapshot. Sandboxes that were made of it go on. It may be
// called again, also when it failed.
func (x *Snapshot) Delete(ctx context.Context) error {
	select {
	case x.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer x.release()
	if err := x.remove(ctx); err != nil {
		return &isolation.Error{Op: "remove snapshot", ID: x.rec.ID, Err: err}
	}
	return nil
}

// remove is for who has the turn.
func (x *Snapshot) remove(ctx context.Context) error {
	m := x.m
	m.mu.Lock()
	gone := x.gone
	x.rec.Phase = phaseDeleting
	rec := x.rec
	m.mu.Unlock()
	if gone {
		return nil
	}
	// On a full disk it can still be removed.
	if err := save(m.snapshotFile(rec.ID), rec); err != nil {
		m.config.Logger.Warn("write that a snapshot is being removed", "tenant", rec.Tenant, "snapshot", rec.ID, "error", err)
	}
	failpoint.Hit(failpoint.SnapshotDeleting)
	if err := m.config.Engine.RemoveSnapshot(ctx, rec.Source.Decision.Engine, rec.ID); err != nil && !errors.Is(err, isolation.ErrNotFound) {
		return err
	}
	if err := os.Remove(m.snapshotFile(rec.ID)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	m.mu.Lock()
	x.gone = true
	delete(m.snapshots, rec.ID)
	m.mu.Unlock()
	return nil
}

// recoverSnapshots finds the snapshots of the processes before this one. Of what
// was not acknowledged, or was to go, nothing is left.
func (m *Manager) recoverSnapshots(ctx context.Context) error {
	list, err := os.ReadDir(filepath.Join(m.config.Dir, snapshotsDir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("snapshots: %w", err)
	}
	for _, f := range list {
		id, ok := strings.CutSuffix(f.Name(), ".json")
		if !ok || isolation.ValidateID(id) != nil {
			continue
		}
		var rec snapshotRecord
		err := load(m.snapshotFile(id), &rec)
		switch {
		case err != nil:
		case rec.Version != recordVersion:
			err = fmt.Errorf("the record has version %d, this program knows %d", rec.Version, recordVersion)
		case rec.ID != id:
			err = fmt.Errorf("the record is of another snapshot, %.80q", rec.ID)
		}
		if err != nil {
			// Only a person can say what it is.
			m.config.Logger.Error("snapshot cannot be read; it is left alone", "snapshot", id, "error", err)
			continue
		}
		x := m.newSnapshot(rec)
		m.mu.Lock()
		m.snapshots[id] = x
		m.mu.Unlock()
		if rec.Phase == phaseKept {
			continue
		}
		if err := x.Delete(ctx); err != nil {
			m.config.Logger.Warn("remove what is left of a snapshot; its owner can do it, or the next start", "tenant", rec.Tenant, "snapshot", id, "error", err)
		}
	}
	return nil
}

// Restore makes a session of a tenant's snapshot. Of the request its ID, Metadata,
// Labels, Idle and Life count: the rest is as it was. What ran in the sandbox then goes
// on, under the same ids.
func (m *Manager) Restore(ctx context.Context, tenant, snapshot string, r Request) (*Session, error) {
	x, err := m.FindSnapshot(tenant, snapshot)
	if err != nil {
		return nil, &isolation.Error{Op: "restore", ID: r.ID, Outcome: isolation.NotStarted, Err: err}
	}
	m.mu.Lock()
	rec := x.rec
	m.mu.Unlock()
	fail := func(err error) (*Session, error) {
		return nil, &isolation.Error{Op: "restore", ID: r.ID, Outcome: isolation.NotStarted, Err: err}
	}
	if rec.Phase != phaseKept {
		return fail(fmt.Errorf("snapshot %s is being taken or removed: %w", rec.Name, isolation.ErrFailedPrecondition))
	}
	s, err := m.reserve(ctx, tenant, rec.Source.Request.copyAs(r, rec.ID))
	if err != nil {
		return fail(err)
	}
	s.rec.Decision = rec.Source.Decision
	if err := s.create(ctx, OpRestore, func(ctx context.Context) error {
		return s.build(ctx, rec.Programs, func(ctx context.Context) (made, error) {
			er := s.rec.Request.engineRequest(s.key, s.tenant)
			er.Spec.Detached = s.rec.Durable
			er.Tier, er.Engine = &rec.Source.Decision.Got, rec.Source.Decision.Engine
			sb, d, err := m.config.Engine.Restore(ctx, rec.ID, er)
			return made{sb, d}, err
		})
	}); err != nil {
		return nil, err
	}
	m.event(ctx, s, "restored", "", "snapshot", rec.ID, "name", rec.Name)
	return s, nil
}

// copyAs is the request of a copy: what the copy has of its own is own's. It may reach
// what its origin may, unless own says something else.
func (r Request) copyAs(own Request, from string) Request {
	r.ID, r.Metadata, r.Labels, r.Idle, r.Life, r.From = own.ID, maps.Clone(own.Metadata), maps.Clone(own.Labels), own.Idle, own.Life, from
	r.PauseAtEnd = own.PauseAtEnd
	if !own.Egress.IsZero() {
		r.Egress = own.Egress
	}
	return r
}
