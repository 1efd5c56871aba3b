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
	"sync"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/internal/clock"
	"github.com/axocoatl/isolation/engine"
	"github.com/axocoatl/isolation/internal/failpoint"
)

// Session is one sandbox that stays. It is safe for concurrent use.
type Session struct {
	m  *Manager
	id string
	// key is what its directory and its sandbox are called; see keyOf.
	key string
	// give gives back the memory that it is counted with; it may be called more than once.
	give func()
	// These never change once ready is closed.
	tenant   string
	instance string
	metadata map[string]string
	labels   map[string]string
	created  time.Time

	ready  chan struct{} // closed when it is made, or found again
	execWG sync.WaitGroup
	// copying is held for writing while the sandbox is copied: no program is started
	// meanwhile, and nobody pauses it.
	copying sync.RWMutex

	mu      sync.Mutex
	rec     record             // guarded by mu
	sb      isolation.Sandbox  // nil: there is none, or nobody knows; guarded by mu
	cancel  context.CancelFunc // ends its making; guarded by mu
	corrupt error              // its record cannot be read; guarded by mu
	unknown error              // it may live, and cannot be reached; guarded by mu
	paused  bool               // guarded by mu
	active  time.Time          // when something happened last; guarded by mu
	tried   time.Time          // when what failed was tried last; guarded by mu
	ending  chan struct{}      // closed when an attempt to delete it is over; guarded by mu
	holders int                // guarded by mu
	loose   time.Time          // when nobody held it any more; guarded by mu
	lost    chan struct{}      // closed when it is gone, if somebody holds it; guarded by mu
	gone    bool               // guarded by mu
	execs   map[string]*Exec   // guarded by mu
}

// Instance is what tells it from others of its id, before it and after it.
func (s *Session) Instance() string { return s.instance }

// ID returns the session's id.
func (s *Session) ID() string { return s.id }

// Tenant returns whose it is.
func (s *Session) Tenant() string { return s.tenant }

// Labels are those of the request that it was made by.
func (s *Session) Labels() map[string]string { return s.labels }

// Info tells what is known.
func (s *Session) Info() api.Sandbox {
	s.look()
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.m.config.Now()
	i := api.Sandbox{
		ID: s.id, Instance: s.instance, Status: s.statusLocked(), Durable: s.rec.Durable, Spec: s.rec.Request.Spec, Decision: s.rec.Decision,
		Metadata: maps.Clone(s.metadata), Created: s.created, Active: clock.Shown(s.active, now), Expires: clock.Shown(s.rec.Expires, now),
		IdleMS: s.rec.Idle.Milliseconds(), Execs: s.liveLocked(), Reason: s.rec.Reason, From: s.rec.Request.From,
		Abilities: []string{},
	}
	if i.Status == api.StatusRunning || i.Status == api.StatusPaused {
		i.Abilities = abilitiesOf(s.sb)
	}
	switch {
	case s.corrupt != nil:
		i.Reason = s.corrupt.Error()
	case s.unknown != nil:
		i.Reason = s.unknown.Error()
	}
	if i.Status == api.StatusRunning && len(i.Execs) == 0 {
		end := clock.Shown(s.active.Add(s.rec.Idle), now)
		i.IdleEnds = &end
	}
	return i
}

// abilitiesOf are the names of what can be done with a sandbox by way of a session.
func abilitiesOf(sb isolation.Sandbox) []string {
	out := []string{}
	add := func(name string, has bool) {
		if has {
			out = append(out, name)
		}
	}
	add(isolation.AbilityPause, can[isolation.Pauser](sb))
	add(isolation.AbilityFiles, can[files](sb))
	add(isolation.AbilityWatch, can[isolation.Watcher](sb))
	add(isolation.AbilityStats, can[isolation.Stats](sb))
	add(isolation.AbilityPorts, can[isolation.PortDialer](sb))
	add(isolation.AbilitySnapshot, can[isolation.Snapshotter](sb))
	add(isolation.AbilityFork, can[isolation.Forker](sb))
	return out
}

func can[T any](sb isolation.Sandbox) bool {
	_, ok := isolation.As[T](sb)
	return ok
}

// look finds out whether the sandbox has ended by itself, so that what is told is what
// the kernel has.
func (s *Session) look() {
	s.mu.Lock()
	sb, live := s.sb, s.rec.Phase == phaseLive
	s.mu.Unlock()
	if sb == nil || !live {
		return
	}
	if st, err := sb.State(s.m.ctx); err == nil && st.Status == isolation.StatusStopped {
		s.lose("it has ended by itself")
	}
}

func (s *Session) statusLocked() api.Status {
	switch {
	case s.ending != nil || s.rec.Phase == phaseDeleting:
		return api.StatusDeleting
	case s.corrupt != nil || s.unknown != nil:
		return api.StatusUnknown
	case s.rec.Phase == phaseCreating:
		return api.StatusCreating
	case s.rec.Phase == phaseLost:
		return api.StatusLost
	case s.paused:
		return api.StatusPaused
	}
	return api.StatusRunning
}

func (s *Session) liveLocked() []string {
	out := []string{}
	for id, e := range s.execs {
		if e.live() {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// resources is what it takes of its tenant's quota; none: it is lost.
func (s *Session) resources() (r isolation.Resources, counts bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rec.Request.Spec.Resources, s.rec.Phase != phaseLost
}

func (s *Session) durable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Of a record that cannot be read nobody knows, and what may be somebody's is kept.
	return s.rec.Durable || s.corrupt != nil
}

// create makes the sandbox, by build. After an error nothing is left.
func (s *Session) create(ctx context.Context, op OperationName, build func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	s.cancel = cancel
	s.mu.Unlock()
	return s.do(ctx, op, func(ctx context.Context) error { return s.made(ctx, build(ctx)) })
}

// made ends the making of the sandbox, which may have failed.
func (s *Session) made(ctx context.Context, err error) error {
	s.mu.Lock()
	s.cancel, s.active = nil, s.m.config.Now()
	s.gone = err != nil
	s.mu.Unlock()
	if err != nil {
		if rerr := os.RemoveAll(s.dir()); rerr != nil {
			err = errors.Join(err, rerr)
		}
		s.m.forget(s)
	}
	close(s.ready)
	if err == nil {
		i := s.Info()
		s.m.event(ctx, s, "created", "", "tier", i.Decision.Got.String(), "engine", i.Decision.Engine)
	}
	return err
}

// made is a sandbox that was made, and how it was chosen.
type made struct {
	sandbox  isolation.Sandbox
	decision engine.Decision
}

// fresh makes a sandbox as the session's request says.
func (s *Session) fresh(ctx context.Context) (made, error) {
	r := s.rec.Request.engineRequest(s.key, s.tenant)
	r.Spec.Detached = s.rec.Durable
	sb, d, err := s.m.config.Engine.Create(ctx, r)
	if err != nil || !s.rec.Request.PauseAtEnd {
		return made{sb, d}, err
	}
	if _, ok := isolation.As[isolation.Pauser](sb); !ok {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = &isolation.UnsupportedError{Feature: "to be paused, on the engine " + d.Engine, Need: pauseNeeds}
		return made{}, &isolation.Error{Op: "create", ID: s.id, Outcome: isolation.NotStarted, Err: errors.Join(err, sb.Delete(undo))}
	}
	return made{sb, d}, nil
}

// build writes down what is to be made, has it made, and writes down that it is
// there, with the programs that run in it.
func (s *Session) build(ctx context.Context, programs []program, make func(context.Context) (made, error)) error {
	fail := func(err error) error {
		return &isolation.Error{Op: "create", ID: s.id, Outcome: isolation.NotStarted, Err: err}
	}
	if err := s.record(); err != nil {
		return fail(err)
	}
	failpoint.Hit(failpoint.SessionRecorded)
	m, err := make(ctx)
	if err != nil {
		return err // it says all of this itself
	}
	failpoint.Hit(failpoint.SessionMade)
	if err := s.live(ctx, m, programs); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return fail(errors.Join(err, m.sandbox.Delete(undo)))
	}
	failpoint.Hit(failpoint.SessionLive)
	return nil
}

// record writes down that the session is being made.
func (s *Session) record() error {
	if err := os.MkdirAll(filepath.Join(s.dir(), execsDir), 0o700); err != nil {
		return err
	}
	return s.save(s.rec)
}

// live writes down that the sandbox is there, and goes on with its programs.
func (s *Session) live(ctx context.Context, m made, programs []program) error {
	if err := s.writePrograms(programs); err != nil {
		return err
	}
	s.mu.Lock()
	s.rec.Phase, s.rec.Decision, s.rec.Sandbox = phaseLive, m.decision, engine.RecoveryID(m.sandbox)
	err := s.save(s.rec)
	s.mu.Unlock()
	if err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.sb = m.sandbox
	s.mu.Unlock()
	if len(programs) > 0 {
		s.loadExecs(m.sandbox)
	}
	return nil
}

// use returns the sandbox for something that is done in it, which counts as
// activity.
func (s *Session) use(ctx context.Context) (isolation.Sandbox, error) {
	select {
	case <-s.ready:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	s.look()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return nil, fmt.Errorf("session %s: %w", s.id, isolation.ErrNotFound)
	}
	switch s.statusLocked() {
	case api.StatusRunning, api.StatusPaused:
		s.active = s.m.config.Now()
		return s.sb, nil
	case api.StatusUnknown:
		return nil, fmt.Errorf("session %s cannot be reached: %w: %w", s.id, errors.Join(s.corrupt, s.unknown), isolation.ErrUnavailable)
	case api.StatusLost:
		return nil, fmt.Errorf("session %s is lost: %s: %w", s.id, s.rec.Reason, isolation.ErrFailedPrecondition)
	}
	return nil, fmt.Errorf("session %s is being deleted: %w", s.id, isolation.ErrNotFound)
}

// Hold keeps a session that its maker wants gone when nobody holds it (Request.Hold),
// until release is called. gone is closed when it is deleted.
func (s *Session) Hold(ctx context.Context) (gone <-chan struct{}, release func(), err error) {
	if _, err := s.use(ctx); err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost == nil {
		s.lost = make(chan struct{})
	}
	s.holders++
	return s.lost, sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.holders--
		s.loose = s.m.config.Now()
	}), nil
}

// Touch counts as activity. Times that are not 0 are set anew: how long nothing
// may happen, and how long it lives from now on.
func (s *Session) Touch(ctx context.Context, idle, life time.Duration) error {
	c := s.m.config
	if idle < 0 || idle > c.MaxIdle || life < 0 || life > c.MaxLife {
		return fmt.Errorf("idle time %v, life %v: want at most %v and %v: %w", idle, life, c.MaxIdle, c.MaxLife, isolation.ErrInvalidArgument)
	}
	if _, err := s.use(ctx); err != nil {
		return err
	}
	if idle == 0 && life == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.rec
	if idle > 0 {
		next.Idle = idle
	}
	if life > 0 {
		next.Expires = c.Now().Add(life)
	}
	if err := s.save(next); err != nil {
		return err
	}
	s.rec = next
	return nil
}

// Pause stops its programs; see [isolation.Pauser].
func (s *Session) Pause(ctx context.Context) error {
	return s.do(ctx, OpPause, func(ctx context.Context) error {
		return s.freeze(ctx, true, func(p isolation.Pauser) error { return p.Pause(ctx) })
	})
}

// pauseAtEnd pauses it, and keeps it for the longest life.
func (s *Session) pauseAtEnd(ctx context.Context) error {
	// Not after it: it would be past its time for a moment, and paused, and so deleted.
	if err := s.Touch(ctx, 0, s.m.config.MaxLife); err != nil {
		return err
	}
	return s.Pause(ctx)
}

// PausesAtEnd is what its request said; see Request.PauseAtEnd.
func (s *Session) PausesAtEnd() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rec.Request.PauseAtEnd
}

// running reports whether it can be paused.
func (s *Session) running() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.statusLocked() == api.StatusRunning
}

// Resume lets them go on.
func (s *Session) Resume(ctx context.Context) error {
	return s.do(ctx, OpResume, func(ctx context.Context) error {
		return s.freeze(ctx, false, func(p isolation.Pauser) error { return p.Resume(ctx) })
	})
}

// pauseNeeds is of a sandbox that cannot be paused.
const pauseNeeds = "a container whose control groups can be frozen (axo doctor says why if not), or a virtual machine"

func (s *Session) freeze(ctx context.Context, paused bool, do func(isolation.Pauser) error) error {
	s.copying.RLock()
	defer s.copying.RUnlock()
	p, err := ability[isolation.Pauser](ctx, s, "to be paused")
	if u := (*isolation.UnsupportedError)(nil); errors.As(err, &u) {
		u.Need = pauseNeeds
	}
	if err != nil {
		return err
	}
	if err := do(p); err != nil {
		return err
	}
	if paused {
		failpoint.Hit(failpoint.SessionPaused)
	} else {
		failpoint.Hit(failpoint.SessionResumed)
	}
	s.mu.Lock()
	s.paused, s.active = paused, s.m.config.Now()
	still := s.rec.Still
	s.mu.Unlock()
	if still { // a copy's pause that did not end by itself
		if err := s.setStill(false); err != nil {
			return err
		}
	}
	kind := "resumed"
	if paused {
		kind = "paused"
	}
	s.m.event(ctx, s, kind, "")
	return nil
}

// Files returns the sandbox's files.
func (s *Session) Files(ctx context.Context) (interface {
	isolation.Files
	isolation.Directories
}, error) {
	f, err := ability[allFiles](ctx, s, "files")
	if err != nil {
		return nil, err
	}
	return counted{f, s.m.config.Observer}, nil
}

// FilesAs returns them as another user than the sandbox's own can reach them.
func (s *Session) FilesAs(ctx context.Context, user string) (isolation.UserFilesystem, error) {
	u, err := ability[isolation.UserFiles](ctx, s, "files as another user")
	if err != nil {
		return nil, err
	}
	f, err := u.FilesAs(user)
	if err != nil {
		return nil, err
	}
	return countedOf{counted{f, s.m.config.Observer}, f}, nil
}

// Watcher returns what tells of changes to the sandbox's files.
func (s *Session) Watcher(ctx context.Context) (isolation.Watcher, error) {
	return ability[isolation.Watcher](ctx, s, "to tell changes of files")
}

// Stats tells what the sandbox uses.
func (s *Session) Stats(ctx context.Context) (isolation.Usage, error) {
	st, err := ability[isolation.Stats](ctx, s, "statistics")
	if err != nil {
		return isolation.Usage{}, err
	}
	return st.Stats(ctx)
}

type files interface {
	isolation.Files
	isolation.Directories
}

func ability[T any](ctx context.Context, s *Session, what string) (T, error) {
	var none T
	sb, err := s.use(ctx)
	if err != nil {
		return none, err
	}
	a, ok := isolation.As[T](sb)
	if !ok {
		return none, &isolation.UnsupportedError{Feature: what + ", on the engine " + s.Info().Decision.Engine}
	}
	return a, nil
}

// Delete ends all programs and removes the session. It is legal in every state
// and may be called again, also when it failed.
func (s *Session) Delete(ctx context.Context) error { return s.end(ctx, "deleted") }

func (s *Session) end(ctx context.Context, why string) error {
	s.mu.Lock()
	if s.cancel != nil {
		s.cancel()
	}
	s.mu.Unlock()
	select {
	case <-s.ready:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for {
		s.mu.Lock()
		if s.gone {
			s.mu.Unlock()
			return nil
		}
		other := s.ending
		if other == nil {
			s.ending = make(chan struct{})
			s.tried = s.m.config.Now()
		}
		s.mu.Unlock()
		if other == nil {
			break
		}
		select {
		case <-other:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	err := s.do(ctx, OpDelete, func(ctx context.Context) error { return s.remove(ctx, why) })
	s.mu.Lock()
	close(s.ending)
	s.ending = nil
	s.gone = err == nil
	if s.gone && s.lost != nil {
		close(s.lost)
		s.lost = nil
	}
	s.mu.Unlock()
	if err != nil {
		return &isolation.Error{Op: "delete", ID: s.id, Err: err}
	}
	s.m.forget(s)
	s.m.event(ctx, s, "deleted", "", "reason", why)
	return nil
}

func (s *Session) remove(ctx context.Context, why string) error {
	s.mu.Lock()
	lost := s.rec.Phase == phaseLost
	s.rec.Phase = phaseDeleting
	rec, sb := s.rec, s.sb
	if s.corrupt == nil {
		// On a full disk a session can still be deleted. Should this process end
		// before it is, the next one finds it live.
		if err := s.save(rec); err != nil {
			s.log().Warn("write that a session is being deleted", "error", err)
		}
	}
	s.mu.Unlock()
	failpoint.Hit(failpoint.SessionDeleting)
	var err error
	if sb == nil && !lost {
		if sb, err = s.find(ctx, rec); err != nil {
			return err
		}
	}
	if sb != nil {
		if err := sb.Delete(ctx); err != nil {
			return err
		}
	}
	failpoint.Hit(failpoint.SessionUnmade)
	done := make(chan struct{})
	go func() {
		s.execWG.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	s.mu.Lock()
	for _, e := range s.execs {
		e.removeLogs()
	}
	s.mu.Unlock()
	// The record goes last: what is left before is found by it.
	if err := os.RemoveAll(filepath.Join(s.dir(), execsDir)); err != nil {
		return err
	}
	return os.RemoveAll(s.dir())
}

// find returns the sandbox of a session that this process does not have, or nil
// if there is none any more.
func (s *Session) find(ctx context.Context, rec record) (isolation.Sandbox, error) {
	sb, err := s.m.config.Engine.RecoverOne(ctx, rec.Decision.Engine, rec.Request.engineRequest(s.sandboxID(rec), s.tenant))
	var unsupported *isolation.UnsupportedError
	if errors.Is(err, isolation.ErrNotFound) || errors.As(err, &unsupported) {
		return nil, nil
	}
	return sb, err
}

// due says why a session should be ended now, if it should.
func (s *Session) due(now time.Time) string {
	s.look()
	s.mu.Lock()
	defer s.mu.Unlock()
	const again = 10 * time.Second
	select {
	case <-s.ready:
	default:
		return ""
	}
	switch {
	case s.gone || s.ending != nil:
		return ""
	case s.rec.Phase == phaseDeleting:
		if now.Sub(s.tried) > again {
			return "deleted"
		}
		return ""
	case s.corrupt != nil:
		return "" // only a person can say what it is
	case now.After(s.rec.Expires):
		return "end of life"
	case s.rec.Request.Hold > 0 && s.holders == 0 && now.Sub(s.loose) > s.rec.Request.Hold:
		return "nobody holds it"
	case s.unknown != nil:
		if now.Sub(s.tried) > again {
			s.tried = now
			s.m.wg.Go(func() { s.revive(s.m.ctx) })
		}
		return ""
	case s.rec.Phase == phaseLive && !s.paused && len(s.liveLocked()) == 0 && now.Sub(s.active) > s.rec.Idle:
		return "idle"
	}
	return ""
}

// recover goes on with a session of a process before this one.
func (s *Session) recover(ctx context.Context) {
	defer close(s.ready)
	if s.corrupt != nil {
		s.log().Error("session cannot be read; it can be looked at, and deleted", "error", s.corrupt)
		return
	}
	switch s.rec.Phase {
	case phaseCreating, phaseDeleting:
		// Nobody was told that it is there, or its owner wants it gone.
		if err := s.remove(ctx, "unfinished"); err != nil {
			s.log().Warn("remove what is left of a session; tried again later", "error", err)
			s.tried = s.m.config.Now()
			return
		}
		s.gone = true
		s.m.forget(s)
	case phaseLost:
		s.loadExecs(nil)
	case phaseLive:
		s.revive(ctx)
	}
}

// revive looks for the sandbox of a live session.
func (s *Session) revive(ctx context.Context) {
	s.mu.Lock()
	rec := s.rec
	s.mu.Unlock()
	sb, err := s.m.config.Engine.RecoverOne(ctx, rec.Decision.Engine, rec.Request.engineRequest(s.sandboxID(rec), s.tenant))
	var unsupported *isolation.UnsupportedError
	switch {
	case errors.Is(err, isolation.ErrNotFound) || errors.As(err, &unsupported):
		reason := "its sandbox is gone"
		if !s.durable() {
			reason = "its sandbox went with the process that made it"
		}
		s.lose(reason + ": " + strings.TrimSpace(err.Error()))
		return
	case err != nil:
		s.mu.Lock()
		s.unknown, s.tried = err, s.m.config.Now()
		s.mu.Unlock()
		s.log().Error("session cannot be reached; tried again later", "error", err)
		return
	}
	paused := false
	if st, err := sb.State(ctx); err == nil {
		paused = st.Status == isolation.StatusPaused
	}
	if rec.Still {
		// Who copied it was killed: nobody has asked that it stands still.
		if p, ok := isolation.As[isolation.Pauser](sb); ok && paused {
			if err := p.Resume(ctx); err != nil {
				s.log().Error("session was being copied, and does not go on", "error", err)
			} else {
				paused = false
			}
		}
		if err := s.setStill(paused); err != nil {
			s.log().Error("write that a session goes on", "error", err)
		}
	}
	s.mu.Lock()
	s.sb, s.unknown, s.paused = sb, nil, paused
	s.mu.Unlock()
	s.loadExecs(sb)
	s.m.event(ctx, s, "recovered", "")
}

// lose writes down that a live session's sandbox is gone.
func (s *Session) lose(reason string) {
	s.mu.Lock()
	// One that is let go of, or deleted, looks as if it had ended.
	if s.rec.Phase != phaseLive || s.ending != nil || s.gone || s.m.ctx.Err() != nil {
		s.mu.Unlock()
		return
	}
	s.rec.Phase, s.rec.Reason, s.unknown, s.paused = phaseLost, reason, nil, false
	if err := s.save(s.rec); err != nil {
		s.log().Error("write that a session is lost", "error", err)
	}
	s.mu.Unlock()
	s.give()
	s.loadExecs(nil)
	s.m.event(s.m.ctx, s, "lost", "", "reason", reason)
}
