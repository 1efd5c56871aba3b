package oci

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/guestconn"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/driver/internal/root"
	"github.com/axocoatl/isolation/driver/oci/internal/bundle"
	"github.com/axocoatl/isolation/guest/wire"
	"github.com/axocoatl/isolation/internal/cgroup"
	"github.com/axocoatl/isolation/internal/journal"
	"github.com/axocoatl/isolation/internal/spawn"
)

// session is what a later process must know of a detached container, beside what
// every record has. What is read back is not trusted.
type session struct {
	Spec     isolation.Spec `json:"spec"`
	Name     string         `json:"name"`
	Brand    proc.Brand     `json:"brand"`
	Group    *cgroup.State  `json:"group,omitempty"`
	Rlimits  []wire.Rlimit  `json:"rlimits,omitempty"`
	Single   bool           `json:"single,omitempty"` // one user id only
	Root     *sessionRoot   `json:"root,omitempty"`
	Document string         `json:"document"` // SHA-256 of the runtime-spec document
	Guest    string         `json:"guest"`    // SHA-256 of the guest's program
	Protocol uint64         `json:"protocol"` // that the guest speaks
	// Paused is when it was paused (CLOCK_MONOTONIC, ns); 0: it is not.
	Paused int64 `json:"paused,omitempty"`
}

type sessionRoot struct {
	Digest string      `json:"digest,omitempty"`
	Config root.Config `json:"config"`
}

// socketName is the guest's listening socket in the session's directory.
const socketName = "socket"

// inDir is a name of a socket in a directory that is not longer than the 108 bytes
// of unix(7), however long the directory's is.
func inDir(dir *os.File, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
}

// listen makes the listening socket of a guest. Nobody else can connect to it.
func listen(dir string) (*os.File, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "guest")
	// The mode of the socket is that of its file, from the start.
	if err = unix.Fchmod(fd, 0o600); err == nil {
		if err = unix.Bind(fd, &unix.SockaddrUnix{Name: inDir(d, socketName)}); err == nil {
			err = unix.Listen(fd, 16)
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("listen for the guest: %w", err)
	}
	return f, nil
}

// dial connects to a guest that listens. It does not wait for it to accept.
func (c *container) dial() error {
	if c.kept == nil {
		return nil
	}
	d, err := os.Open(c.kept.Dir())
	if err != nil {
		return err
	}
	defer d.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: inDir(d, socketName)}); err != nil {
		unix.Close(fd)
		return fmt.Errorf("connect to the guest: %w%s", err, c.lastWords())
	}
	c.conn = newConn(os.NewFile(uintptr(fd), "guest"))
	c.conn.member = c.isMember
	return nil
}

// deathSignal is what the guest gets when this process ends.
func (c *container) deathSignal() syscall.Signal {
	if c.kept != nil {
		return 0
	}
	return syscall.SIGKILL
}

// guestLimits mark a guest that outlives this process, so that it is found also if
// nobody has written down its number yet.
func (c *container) guestLimits() []spawn.Rlimit {
	if c.kept == nil {
		return nil
	}
	b := uint64(c.brand.Guest())
	return []spawn.Rlimit{{Resource: unix.RLIMIT_RTTIME, Cur: b, Max: b}}
}

// keepNew writes down a container that is about to be made.
func (e *builtin) keepNew(c *container, id string) error {
	if e.keepErr != nil {
		return e.keepErr
	}
	k, err := e.keep.New(e.engine(), id)
	if errors.Is(err, os.ErrExist) {
		err = fmt.Errorf("sandbox %s is there, of an earlier process: %w", id, isolation.ErrAlreadyExists)
	}
	if err != nil {
		return err
	}
	c.kept, c.entry = k, k
	return k.AddBrand(uint64(c.brand))
}

// describeSession writes down all that it takes to find the container again.
func (e *builtin) describeSession(c *container, spec isolation.Spec, b *bundle.Bundle, limits cgroup.Limits) error {
	doc, err := json.Marshal(b.Config)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(doc)
	guest, err := e.guestDigest()
	if err != nil {
		return err
	}
	s := session{
		Spec: spec, Name: c.name, Brand: c.brand, Group: c.group.State(limits), Rlimits: c.limits, Single: c.ids.single,
		Document: hex.EncodeToString(sum[:]), Guest: guest, Protocol: wire.Version,
	}
	if c.root != nil {
		s.Root = &sessionRoot{c.root.Digest, c.root.Config}
	}
	return c.kept.SetData(s)
}

// guestDigest is the SHA-256 of the guest's program.
func (e *builtin) guestDigest() (string, error) {
	e.guestSum.Do(func() {
		b := embeddedGuest
		if e.guest.path != "" {
			b, e.sumErr = os.ReadFile(e.guest.path)
		}
		sum := sha256.Sum256(b)
		e.guestHex = hex.EncodeToString(sum[:])
	})
	return e.guestHex, e.sumErr
}

// engine is the name of the engine that this is part of.
func (e *builtin) engine() string { return cmp.Or(e.cfg.Engine, "builtin") }

// sessions reports whether sandboxes can outlive this process.
func (e *builtin) sessions() bool { return e.keep != nil }

func (e *builtin) openKeep() {
	if e.cfg.SessionDir != "" {
		e.keep, e.keepErr = journal.OpenKeep(e.cfg.SessionDir)
	}
}

// Recoverable implements [proc.Recoverer].
func (e *builtin) Recoverable(context.Context) ([]isolation.Recoverable, error) {
	if e.keepErr != nil {
		return nil, e.keepErr
	}
	list, err := e.keep.List(e.engine())
	var out []isolation.Recoverable
	for _, x := range list {
		out = append(out, isolation.Recoverable{ID: x.ID, Created: x.Created, Holder: x.Holder, Err: keptError(x.Err)})
	}
	return out, err
}

// keptError gives an error of the journal its class.
func keptError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrNotExist), errors.Is(err, journal.ErrGone):
		return fmt.Errorf("%w (%w)", err, isolation.ErrNotFound)
	case errors.Is(err, journal.ErrHeld), errors.Is(err, journal.ErrUnreadable):
		return fmt.Errorf("%w (%w)", err, isolation.ErrFailedPrecondition)
	}
	return err
}

// helloTimeout bounds the wait for a guest that is there.
const helloTimeout = 10 * time.Second

// Recover implements [proc.Recoverer].
func (e *builtin) Recover(ctx context.Context, id string) (proc.Recovered, error) {
	return e.recover(ctx, id, nil)
}

// Recover implements [proc.Recoverer].
func (h *hosted) Recover(ctx context.Context, id string) (proc.Recovered, error) {
	return h.recover(ctx, id, h)
}

func (e *builtin) recover(ctx context.Context, id string, h *hosted) (_ proc.Recovered, err error) {
	if e.keepErr != nil {
		return proc.Recovered{}, e.keepErr
	}
	k, err := e.keep.Adopt(e.engine(), id)
	if err != nil {
		return proc.Recovered{}, keptError(err)
	}
	c := &container{eng: e, kept: k, entry: k}
	defer func() {
		if err != nil {
			c.Leave()
		}
	}()
	var s session
	if err := c.reopen(&s, h); err != nil {
		if errors.Is(err, journal.ErrGone) {
			err = errors.Join(err, k.Remove())
		}
		return proc.Recovered{}, keptError(err)
	}
	c.Tracked = proc.NewTracked(c.tracked(s.Spec.Resources))
	if s.Spec.Resources.MemoryBytes > 0 {
		if err := c.EndOnOOM(); err != nil {
			return proc.Recovered{}, fmt.Errorf("wait for the end of memory: %w", err)
		}
	}
	if err := c.dial(); err != nil {
		return proc.Recovered{}, c.silent(ctx, err)
	}
	soon, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	hello, err := c.conn.hello(soon)
	if err != nil {
		return proc.Recovered{}, c.silent(ctx, err)
	}
	c.notes = hello.Notes
	if err := c.conn.begin(hello); err != nil {
		return proc.Recovered{}, c.silent(ctx, err)
	}
	c.pausedAt = s.Paused
	left, err := c.processesLeft(soon, hello)
	if err != nil {
		return proc.Recovered{}, c.silent(ctx, err)
	}
	return proc.Recovered{Place: c.place(), Spec: s.Spec, Created: k.Created(), Left: left, Paused: s.Paused != 0}, nil
}

// Discard implements [proc.Discarder].
func (e *builtin) Discard(_ context.Context, id string) error {
	if e.keepErr != nil {
		return e.keepErr
	}
	return keptError(e.keep.Discard(e.engine(), id))
}

// silent says why a guest does not answer: one that is on its way out is gone, and
// what is left of it is removed.
func (c *container) silent(ctx context.Context, why error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	soon, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if awaitEnd(soon, c.pid, c.pidfd) != nil {
		return fmt.Errorf("the guest does not answer: %w (%w)", why, isolation.ErrUnavailable)
	}
	if err := c.kept.Remove(); err != nil {
		return err
	}
	return keptError(fmt.Errorf("%w: its first process has ended", journal.ErrGone))
}

// reopen finds what there is of a container outside of it.
func (c *container) reopen(s *session, h *hosted) error {
	if err := c.kept.Data(s); err != nil {
		return err
	}
	bad := func(what string) error { return fmt.Errorf("%w: %s", journal.ErrUnreadable, what) }
	if s.Protocol != wire.Version {
		return fmt.Errorf("its guest speaks version %d of the protocol, and this program %d: it can be recovered by the program that made it (%w)",
			s.Protocol, wire.Version, isolation.ErrFailedPrecondition)
	}
	if err := s.Spec.Validate(); err != nil {
		return bad(err.Error())
	}
	if !s.Spec.Detached || s.Brand>>62 != 1 || s.Brand.Sandbox() != s.Brand || !strings.HasSuffix(s.Name, s.Brand.Name()) || filepath.Base(s.Name) != s.Name {
		return bad("it is not of a detached container")
	}
	var err error
	if c.group, err = cgroup.Reopen(s.Group); err != nil {
		return bad(err.Error())
	}
	if c.group != nil && c.group.Name() != s.Name {
		return bad("its control group is another's")
	}
	c.req, c.name, c.brand, c.limits = s.Spec.Requirement, s.Name, s.Brand, s.Rlimits
	c.ids = &idMap{single: s.Single} // the range is the guest's
	if s.Root != nil {
		c.root = &root.FS{Digest: s.Root.Digest, Config: s.Root.Config}
	}
	pid, _ := c.kept.Main()
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("%w: its first process has ended", journal.ErrGone)
	}
	c.pid, c.pidfd = pid, os.NewFile(uintptr(fd), "pidfd")
	if proc.BrandOf(pid) != c.brand.Guest() {
		return bad(fmt.Sprintf("process %d is not its first one", pid))
	}
	if h != nil {
		c.runtime = &runtimeContainer{h: h, c: c}
	}
	return nil
}

// Leave implements [proc.Leaver].
func (c *container) Leave() {
	if c.conn != nil {
		c.conn.f.Close()
		if c.conn.rest != nil {
			<-c.conn.gone
		}
	}
	if c.pidfd != nil {
		c.pidfd.Close()
	}
	if c.stderr != nil {
		c.stderr.Close()
	}
	c.group.Close()
	if c.ids != nil {
		c.ids.release() // of this process: the guest has it still
	}
	if c.root != nil && c.root.Lease != nil {
		c.root.Lease.Close() // likewise
	}
	c.kept.Release()
}

// killKept kills the programs of a container that outlives this process, and waits
// for the guest to tell how they ended; a guest that does not goes with them.
func (c *container) killKept(ctx context.Context) error {
	err := c.Tracked.Kill(ctx)
	for begin, wait := time.Now(), time.Millisecond/4; c.held.Load() > 0; wait = min(2*wait, 10*time.Millisecond) {
		if ctx.Err() != nil || time.Since(begin) > idlePatience {
			c.killed.Store(true)
			c.killGuest()
			break
		}
		time.Sleep(wait)
	}
	return err
}

// note is what is written down of a program.
type note struct {
	Limits   isolation.Limits `json:"limits,omitzero"`
	Terminal bool             `json:"terminal,omitempty"`
	// Began is when (CLOCK_MONOTONIC, ns, which no clock that is set moves), later by what
	// the container was paused since.
	Began int64     `json:"began"`
	Mark  proc.Mark `json:"mark"`
}

func monotonic() int64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return 0
	}
	return ts.Nano()
}

// processesLeft attaches to the programs that the guest knows. One that nobody has
// written down, or so that nobody can read it, has no limits that could be held:
// it is ended. One that the guest does not know was never started, or is forgotten.
func (c *container) processesLeft(ctx context.Context, hello *wire.HelloMessage) ([]proc.Left, error) {
	notes := map[string]note{}
	err := c.kept.Notes(func(name string, b []byte, err error) {
		var n note
		if err == nil && isolation.ValidateID(name) == nil && json.Unmarshal(b, &n) == nil && n.Mark.Brand.SameSandbox(c.brand) {
			notes[name] = n
		} else {
			c.eng.cfg.Logger.Warn("a program's record cannot be read", "sandbox", c.name, "program", name, "error", err)
			notes[name] = note{}
		}
	})
	if err != nil {
		return nil, err
	}
	var left []proc.Left
	var last proc.Brand
	marks := map[string]uint64{}
	for _, st := range hello.Processes {
		r, err := c.conn.rest.Attach(ctx, &wire.AttachMessage{ID: st.ID, Held: true})
		if err != nil {
			return nil, fmt.Errorf("attach to %s: %w", st.ID, err)
		}
		n, known := notes[st.ID]
		delete(notes, st.ID)
		if !known || n.Mark.Brand == 0 {
			c.discard(st.ID, r)
			continue
		}
		last = max(last, n.Mark.Brand)
		marks[st.ID] = n.Mark.Brand.Number()
		left = append(left, c.left(st, n, r))
	}
	for id := range notes {
		if err := c.kept.Unnote(id); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(left, func(a, b proc.Left) int {
		if a.Ended != b.Ended {
			return map[bool]int{true: -1, false: 1}[a.Ended]
		}
		return cmp.Compare(marks[a.ID], marks[b.ID])
	})
	c.resumeAt = last
	return left, nil
}

func (c *container) left(st wire.ProcessState, n note, r *guestconn.Process) proc.Left {
	return proc.Left{
		ID: st.ID, Ended: st.Ended,
		Spec:  isolation.ProcessSpec{ExecID: st.ID, Limits: n.Limits, Terminal: n.Terminal},
		Began: time.Now().Add(c.stood() - time.Duration(monotonic()-n.Began)),
		Resume: func(p *proc.Process) proc.Task {
			ch := c.newHeld(p, r)
			ch.found, ch.ended = true, st.Ended
			stdout, stderr := r.From()
			p.Hold(proc.Outputs{
				Stdout: r.Stdout, Stderr: r.Stderr, Recovered: true,
				From: [2]int64{stdout, stderr}, Until: [2]int64{int64(st.Stdout), int64(st.Stderr)},
			})
			return c.Resume(p, n.Mark, ch)
		},
	}
}

// discard ends a program that nobody may have.
func (c *container) discard(id string, r *guestconn.Process) {
	c.eng.cfg.Logger.Warn("a program that nobody has written down is ended", "sandbox", c.name, "program", id)
	if f := c.conn.pidfd(r.Stream()); f != nil {
		f.Close()
	}
	go func() {
		_ = r.Kill()
		_, _ = r.Stdout.Close(), r.Stderr.Close()
		<-r.Done()
		r.Forget()
		_ = c.kept.Unnote(id) // if not, the next one does
	}()
}

// Resumed implements [proc.Leaver]. Between what the kernel has and what is written down
// its last host may have ended: what is written down is what was acknowledged.
func (c *container) Resumed() {
	c.Tracked.Resumed(c.resumeAt)
	var err error
	switch freezing := c.group.Freezing(); {
	case c.pausedAt != 0:
		err = c.freeze(context.Background())
	case freezing:
		err = c.group.Thaw()
	}
	if err != nil {
		c.eng.cfg.Logger.Warn("a container is not as it was", "sandbox", c.name, "paused", c.pausedAt != 0, "error", err)
	}
}
