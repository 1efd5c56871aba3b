package proc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/cgroup"
)

// Tracked is a sandbox whose programs are processes of this host, whoever
// started them: it finds what belongs to each by the cgroup and the brand, ends
// it, counts it, and tells how it ended. It is the common part of a Place.
type Tracked struct {
	config TrackedConfig

	mu     sync.Mutex
	execs  uint64
	active map[*trackedTask]bool
	// crowded: what the group counts cannot be told apart by exec any more,
	// because background processes of an earlier one are left.
	crowded bool
	left    []*Stream // of ended processes, held open by background processes
}

// TrackedConfig is what a sandbox is tracked by.
type TrackedConfig struct {
	Brand     Brand
	Group     *cgroup.Group // nil: none
	Resources isolation.Resources
	Drain     time.Duration
	// Start starts the program of p with these files as its descriptors 0, 1
	// and 2, and with the brand as its limit on real-time CPU.
	Start func(ctx context.Context, p *Process, files [3]*os.File, b Brand) (Child, error)
	// StartHeld is for detached sandboxes: it starts the program of p, whose output
	// is held, and calls p.Hold. Nil: Start is called.
	StartHeld func(ctx context.Context, p *Process, m Mark) (HeldChild, error)
}

// Mark is what tells a program's processes and what it uses from others', also when
// another process has to.
type Mark struct {
	Brand  Brand           `json:"brand"`
	Before cgroup.Counters `json:"before"` // what its group had counted when it started
	First  bool            `json:"first"`  // in its sandbox
	Alone  bool            `json:"alone"`  // what the group counts is this program's, if none came after it
}

// HeldChild is a Child whose program goes on without this side.
type HeldChild interface {
	Child
	// Begin starts the delivery of input and output.
	Begin()
	Resize(size isolation.TerminalSize) error
	Input() (given int64, ended bool)
	Feed(from io.Reader, skip int64)
	Forget()
}

// Child is a program that was started.
type Child interface {
	PID() int
	// Signal does nothing to a program that has ended.
	Signal(unix.Signal) error
	// Wait is called once. The error says why the status is not known.
	Wait() (ChildStatus, error)
}

// ChildStatus is how a program ended: one of Code and Signal.
type ChildStatus struct {
	Code          int
	Signal        unix.Signal
	CPU           time.Duration // with the children that it waited for
	Peak          int64         // resident bytes; -1: not known
	Read, Written int64         // bytes of block devices
	DiskHits      int64         // how often there was no room
	Wall          time.Duration // from the start to the end; 0: it has just ended
}

// NewTracked returns a sandbox without programs.
func NewTracked(c TrackedConfig) *Tracked { return &Tracked{config: c} }

// members are the processes that match, wherever they are now.
func (pl *Tracked) members(match func(Brand) bool) tree {
	t := tree{match: match, pids: AllPIDs}
	if g := pl.config.Group; g != nil {
		t.pids, t.letDie = g.PIDs, g.LetDie
	}
	return t
}

func (pl *Tracked) everything() tree {
	// The guest may have a brand, too.
	return pl.members(func(b Brand) bool { return b.SameSandbox(pl.config.Brand) && b != b.Guest() })
}

// Start implements [Place].
func (pl *Tracked) Start(ctx context.Context, p *Process) (Task, error) {
	if pl.config.StartHeld != nil {
		return pl.startHeld(ctx, p)
	}
	io, err := NewPipes(p)
	if err != nil {
		return nil, err
	}
	t := &trackedTask{pl: pl, p: p, io: io}
	pl.join(t)
	t.child, err = pl.config.Start(ctx, p, io.Theirs, t.brand)
	if err != nil {
		pl.leave(t, false)
		io.Abandon(p)
		return nil, err
	}
	io.CloseTheirs()
	return t, nil
}

func (pl *Tracked) startHeld(ctx context.Context, p *Process) (Task, error) {
	t := &trackedTask{pl: pl, p: p}
	pl.join(t)
	child, err := pl.config.StartHeld(ctx, p, Mark{t.brand, t.before, t.first, t.alone})
	if err != nil {
		pl.leave(t, false)
		return nil, err
	}
	t.child = child
	return heldTask{t, child}, nil
}

// Resume is Start for a program that an earlier host side has started.
func (pl *Tracked) Resume(p *Process, m Mark, child HeldChild) Task {
	t := &trackedTask{pl: pl, p: p, child: child, brand: m.Brand, before: m.Before, first: m.First, alone: m.Alone}
	pl.mu.Lock()
	defer pl.mu.Unlock()
	if pl.active == nil {
		pl.active = map[*trackedTask]bool{}
	}
	pl.active[t] = true
	return heldTask{t, child}
}

// Resumed says which number the last program had, and looks whether the kernel
// has killed anything for want of memory while nobody was there. After it
// programs may start.
func (pl *Tracked) Resumed(last Brand) {
	n := last.Number()
	oom := pl.config.Group.Read().OOM
	pl.mu.Lock()
	defer pl.mu.Unlock()
	pl.execs = n + 1 // the next is not the first, whatever there was
	for t := range pl.active {
		t.alone = t.alone && t.brand == last
		if t.before.OOM < oom && pl.config.Resources.MemoryBytes > 0 {
			go t.endRest()
		}
	}
	pl.crowded = true
	for t := range pl.active {
		if t.alone {
			pl.crowded = false
		}
	}
}

// heldTask is a program that goes on without this side. It implements [Holder].
type heldTask struct {
	*trackedTask
	child HeldChild
}

func (t heldTask) Begin()                           { t.child.Begin() }
func (t heldTask) Input() (given int64, ended bool) { return t.child.Input() }
func (t heldTask) Feed(from io.Reader, skip int64)  { t.child.Feed(from, skip) }
func (t heldTask) Forget()                          { t.child.Forget() }

// join gives t its brand, and notes what the group has counted by now and whether
// t is alone in it.
func (pl *Tracked) join(t *trackedTask) {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	pl.execs++
	t.brand = pl.config.Brand.Exec(pl.execs)
	if t.first = pl.execs == 1; !t.first { // else all is zero
		t.before = pl.config.Group.Read()
	}
	t.alone = !pl.crowded && len(pl.active) == 0
	for other := range pl.active {
		other.alone = false
	}
	if pl.active == nil {
		pl.active = map[*trackedTask]bool{}
	}
	pl.active[t] = true
}

// Occupied says that something ran before the first program: what the group has
// counted by then is not the program's.
func (pl *Tracked) Occupied() {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	pl.execs++
}

func (pl *Tracked) leave(t *trackedTask, survivors bool) {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	delete(pl.active, t)
	pl.crowded = pl.crowded || survivors
}

// linger keeps the streams that background processes hold open, and forgets
// those that have ended by now.
func (pl *Tracked) linger(streams ...*Stream) {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	pl.left = slices.DeleteFunc(append(pl.left, streams...), (*Stream).IsGone)
}

// Kill ends all members and waits until none is left.
func (pl *Tracked) Kill(ctx context.Context) error {
	if pl.config.Group != nil {
		return pl.config.Group.Kill(ctx)
	}
	return pl.everything().end(ctx)
}

// Remove implements [Place]: it closes what background processes held open and
// removes the group.
func (pl *Tracked) Remove(ctx context.Context) error {
	pl.mu.Lock()
	left := pl.left
	pl.left = nil
	pl.mu.Unlock()
	for _, s := range left {
		s.Close()
	}
	return pl.config.Group.Delete(ctx)
}

// EndOnOOM has the rest of a program ended when the kernel has killed a part of it
// for want of memory, where the kernel does not do so itself.
func (pl *Tracked) EndOnOOM() error {
	return pl.config.Group.OnOOM(func(kills int64) {
		pl.mu.Lock()
		defer pl.mu.Unlock()
		for t := range pl.active {
			if t.before.OOM < kills { // it ran at that time
				go t.endRest()
			}
		}
	})
}

// trackedTask is one program, and what it started.
type trackedTask struct {
	pl     *Tracked
	p      *Process
	io     *Pipes
	child  Child
	brand  Brand
	before cgroup.Counters // when it started
	first  bool            // in its sandbox
	alone  bool            // guarded by pl.mu: what the group counts is this program's

	endedAt time.Time

	mu       sync.Mutex // guards what follows
	over     bool       // the program has ended
	killDone chan struct{}
	maxCPU   time.Duration
}

func (t *trackedTask) Begin() { t.io.Begin(t.p) }

func (t *trackedTask) PID() int { return t.child.PID() }

func (t *trackedTask) Signal(sig isolation.Signal) error {
	if sig == isolation.SIGKILL {
		t.p.Signaled(sig)
	}
	err := t.child.Signal(unix.Signal(sig))
	if sig == isolation.SIGKILL {
		t.letDie()
	}
	if err == nil || errors.Is(err, unix.ESRCH) {
		return nil
	}
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("send %v: %w (%w)", sig, err, isolation.ErrPermissionDenied)
	}
	return fmt.Errorf("send %v: %w", sig, err)
}

// Resize implements [Resizer], for children that have a terminal.
func (t *trackedTask) Resize(_ context.Context, size isolation.TerminalSize) error {
	if c, ok := t.child.(interface {
		Resize(size isolation.TerminalSize) error
	}); ok {
		return c.Resize(size)
	}
	return Unsupported("a terminal", "another tier")
}

func (t *trackedTask) isAlone() bool {
	t.pl.mu.Lock()
	defer t.pl.mu.Unlock()
	return t.alone
}

func (t *trackedTask) members() tree {
	return t.pl.members(func(b Brand) bool { return b == t.brand })
}

// letDie has the program die of SIGKILL where its sandbox stands still.
func (t *trackedTask) letDie() { t.pl.config.Group.LetDie(t.child.PID()) }

// Stopped is called when the group stands still, while no program is being started. One
// that was being killed may stand still with it.
func (pl *Tracked) Stopped() {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	for t := range pl.active {
		if t.p.Caused() {
			t.letDie()
		}
	}
}

// killTimeout bounds the kill of one program's tree; Delete tries again.
const killTimeout = 5 * time.Second

func (t *trackedTask) Kill() {
	t.mu.Lock()
	if t.over {
		t.mu.Unlock()
		return
	}
	done := make(chan struct{})
	t.killDone = done
	t.mu.Unlock()
	// The program itself first: one that sees its child die would exit by
	// itself and seem to have ended before the kill.
	_ = t.child.Signal(unix.SIGKILL)
	t.letDie()
	go func() {
		defer close(done)
		// Its own processes only, not all of the group: another program may
		// be starting there. What it leaves is counted, and ended by Delete.
		ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
		defer cancel()
		_ = t.members().end(ctx)
	}()
}

func (t *trackedTask) endRest() {
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	_ = t.members().end(ctx) // what it leaves is counted, and ended by Delete
}

func (t *trackedTask) CPU() time.Duration {
	var used time.Duration
	if now := t.pl.config.Group.Read(); now.HasCPU && t.isAlone() {
		used = now.CPU - t.before.CPU
	} else {
		used = t.members().cpu()
	}
	// A member that ends takes its time with it: what was seen stays.
	t.mu.Lock()
	defer t.mu.Unlock()
	t.maxCPU = max(t.maxCPU, used)
	return t.maxCPU
}

func (t *trackedTask) Wait() Status {
	cs, err := t.child.Wait()
	t.endedAt = time.Now()
	if t.io != nil {
		t.io.CloseStdin()
	}
	if ended := t.p.began.Add(cs.Wall); cs.Wall > 0 && ended.Before(t.endedAt) {
		t.endedAt = ended
	}
	t.mu.Lock()
	t.over = true
	killDone := t.killDone
	t.mu.Unlock()
	if killDone != nil {
		<-killDone
	}
	if err != nil {
		return Status{Lost: true, Ended: t.endedAt, Peak: -1, Detail: err.Error()}
	}
	var hits []isolation.LimitHit
	if cs.DiskHits > 0 {
		hits = append(hits, isolation.LimitHit{Limit: isolation.LimitDisk, Count: cs.DiskHits, Value: t.pl.config.Resources.DiskBytes})
	}
	return Status{
		Hits: hits, Code: cs.Code, Signal: isolation.Signal(cs.Signal),
		Forced: cs.Signal == unix.SIGKILL && killDone != nil,
		CPU:    cs.CPU, Peak: cs.Peak, Read: cs.Read, Written: cs.Written, Ended: t.endedAt,
	}
}

func (t *trackedTask) Settle(st *Status) {
	now := t.pl.config.Group.Read()
	alone := t.isAlone()
	t.mu.Lock() // the watcher may be at it once more
	st.CPU = max(st.CPU, t.maxCPU)
	t.mu.Unlock()
	if alone && now.HasCPU {
		st.CPU = max(st.CPU, now.CPU-t.before.CPU)
	}
	if alone && t.first && now.Peak > 0 {
		st.Peak = now.Peak
	}
	if n := now.OOM - t.before.OOM; n > 0 {
		st.OOM = n
		st.Hits = append(st.Hits, isolation.LimitHit{Limit: isolation.LimitMemory, Count: n, Value: t.pl.config.Resources.MemoryBytes})
	}
	if n := now.Pids - t.before.Pids; n > 0 {
		st.Hits = append(st.Hits, isolation.LimitHit{Limit: isolation.LimitPids, Count: n, Value: t.pl.config.Resources.Pids})
	}
	st.Survivors = t.survivors()
	t.pl.leave(t, st.Survivors > 0)
	if !t.p.Out.IsGone() || !t.p.Err.IsGone() {
		t.pl.linger(t.p.Out, t.p.Err)
	}
}

// survivors counts the members that are left. Those that are about to go get
// the time of the drain; when none is there it costs no wait.
func (t *trackedTask) survivors() int {
	end := t.endedAt.Add(t.pl.config.Drain)
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		left, err := t.members().live()
		if err != nil || len(left) == 0 || time.Now().After(end) {
			return len(left)
		}
		time.Sleep(wait)
	}
}
