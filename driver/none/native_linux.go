package none

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/cgroup"
	"github.com/axocoatl/isolation/internal/failpoint"
)

// nativePlace is one sandbox of native programs.
type nativePlace struct {
	eng   *nativeEngine
	res   isolation.Resources
	brand brand
	group *cgroup.Group // nil: none
	entry Entry         // nil: none

	mu     sync.Mutex
	execs  uint64
	active map[*nativeTask]bool
	// crowded: what the group counts cannot be told apart by exec any more,
	// because background processes of an earlier one are left.
	crowded bool
	left    []*stream // of ended processes, held open by background processes
}

// members are the processes that match, wherever they are now.
func (pl *nativePlace) members(match func(brand) bool) tree {
	t := tree{match: match, pids: allPids}
	if pl.group != nil {
		t.pids = pl.group.PIDs
	}
	return t
}

func (pl *nativePlace) everything() tree {
	return pl.members(func(b brand) bool { return b != 0 && b.sandbox() == pl.brand })
}

func (pl *nativePlace) start(_ context.Context, p *process) (task, error) {
	g, err := pl.eng.cfg.resolve(p.spec)
	if err != nil {
		return nil, err
	}
	io, err := newPipes(p)
	if err != nil {
		return nil, err
	}
	t := &nativeTask{pl: pl, p: p, io: io}
	pl.join(t)
	if !t.first { // else all is zero
		t.before = pl.group.Read()
	}
	t.child, err = startChild(&pl.eng.spawner, g, p.spec, io.theirs, t.brand, pl.group.Joins())
	if err != nil {
		pl.leave(t, false)
		io.abandon(p)
		return nil, err
	}
	failpoint.Hit(failpoint.NoneStarted)
	t.hostPeak = ownPeak()
	io.closeTheirs()
	return t, nil
}

// join gives t its brand and notes whether it is alone in the group.
func (pl *nativePlace) join(t *nativeTask) {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	pl.execs++
	t.brand = pl.brand.exec(pl.execs)
	t.first = pl.execs == 1
	t.alone = !pl.crowded && len(pl.active) == 0
	for other := range pl.active {
		other.alone = false
	}
	if pl.active == nil {
		pl.active = map[*nativeTask]bool{}
	}
	pl.active[t] = true
}

func (pl *nativePlace) leave(t *nativeTask, survivors bool) {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	delete(pl.active, t)
	pl.crowded = pl.crowded || survivors
}

// linger keeps the streams that background processes hold open, and forgets
// those that have ended by now.
func (pl *nativePlace) linger(streams ...*stream) {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	pl.left = slices.DeleteFunc(append(pl.left, streams...), (*stream).isGone)
}

// kill ends all members and waits until none is left.
func (pl *nativePlace) kill(ctx context.Context) error {
	if pl.group != nil {
		return pl.group.Kill(ctx)
	}
	return pl.everything().end(ctx)
}

func (pl *nativePlace) remove(ctx context.Context) error {
	pl.mu.Lock()
	left := pl.left
	pl.left = nil
	pl.mu.Unlock()
	for _, s := range left {
		s.close()
	}
	if err := pl.group.Delete(ctx); err != nil {
		return err
	}
	failpoint.Hit(failpoint.NoneRemoved)
	if pl.entry == nil {
		return nil
	}
	return pl.entry.Done()
}

// nativeTask is one program, and what it started.
type nativeTask struct {
	pl       *nativePlace
	p        *process
	io       *pipes
	child    *child
	brand    brand
	before   cgroup.Counters
	hostPeak int64 // resident peak of the host program at the start
	first    bool  // in its sandbox
	alone    bool  // guarded by pl.mu: what the group counts is this program's

	endedAt time.Time

	mu       sync.Mutex // guards what follows
	over     bool       // the program has ended
	killDone chan struct{}
	maxCPU   time.Duration
}

func (t *nativeTask) begin() { t.io.begin(t.p) }

func (t *nativeTask) pid() int { return t.child.pid }

func (t *nativeTask) signal(sig isolation.Signal) error {
	if sig == isolation.SIGKILL {
		// It competes with the driver's own causes: the first one counts.
		t.p.cause.CompareAndSwap(nil, &cause{reason: isolation.ReasonSignaled, signal: sig})
	}
	err := t.child.signal(unix.Signal(sig))
	if err == nil || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return classify(fmt.Errorf("send %v: %w", sig, err))
}

func (t *nativeTask) isAlone() bool {
	t.pl.mu.Lock()
	defer t.pl.mu.Unlock()
	return t.alone
}

func (t *nativeTask) members() tree {
	return t.pl.members(func(b brand) bool { return b == t.brand })
}

// killTimeout bounds the kill of one program's tree; Delete tries again.
const killTimeout = 5 * time.Second

func (t *nativeTask) kill() {
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
	_ = t.child.signal(unix.SIGKILL)
	go func() {
		defer close(done)
		// Its own processes only, not all of the group: another program may
		// be starting there. What it leaves is counted, and ended by Delete.
		ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
		defer cancel()
		_ = t.members().end(ctx)
	}()
}

func (t *nativeTask) cpu() time.Duration {
	var used time.Duration
	if now := t.pl.group.Read(); now.HasCPU && t.isAlone() {
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

func (t *nativeTask) wait() status {
	ws, ru, err := t.child.wait()
	t.endedAt = time.Now()
	failpoint.Hit(failpoint.NoneEnded)
	t.io.closeStdin()
	t.mu.Lock()
	t.over = true
	killDone := t.killDone
	t.mu.Unlock()
	if killDone != nil {
		<-killDone
	}
	if err != nil {
		// Its end was seen and its status was not: somebody else in the host
		// program reaps children that are not theirs.
		return status{lost: true, ended: t.endedAt, peak: -1, detail: "its exit status was taken by another waiter: " + err.Error()}
	}
	st := status{
		cpu:  time.Duration(ru.Utime.Nano() + ru.Stime.Nano()),
		read: ru.Inblock * 512, written: ru.Oublock * 512, // getrusage(2)
		ended: t.endedAt, peak: -1,
	}
	// An exec out of this program starts from the host program's peak, so
	// that only a larger one is the program's own.
	if rss := ru.Maxrss << 10; rss > t.hostPeak {
		st.peak = rss
	}
	if ws.Signaled() {
		st.signal = isolation.Signal(ws.Signal())
		st.forced = ws.Signal() == unix.SIGKILL && killDone != nil
	} else {
		st.code = ws.ExitStatus()
	}
	return st
}

func (t *nativeTask) settle(st *status) {
	now := t.pl.group.Read()
	alone := t.isAlone()
	t.mu.Lock() // the watcher may be at it once more
	st.cpu = max(st.cpu, t.maxCPU)
	t.mu.Unlock()
	if alone && now.HasCPU {
		st.cpu = max(st.cpu, now.CPU-t.before.CPU)
	}
	if alone && t.first && now.Peak > 0 {
		st.peak = now.Peak
	}
	if n := now.OOM - t.before.OOM; n > 0 {
		st.oom = n
		st.hits = append(st.hits, isolation.LimitHit{Limit: isolation.LimitMemory, Count: n, Value: t.pl.res.MemoryBytes})
	}
	if n := now.Pids - t.before.Pids; n > 0 {
		st.hits = append(st.hits, isolation.LimitHit{Limit: isolation.LimitPids, Count: n, Value: t.pl.res.Pids})
	}
	st.survivors = t.survivors()
	t.pl.leave(t, st.survivors > 0)
	if !t.p.out.isGone() || !t.p.err.isGone() {
		t.pl.linger(t.p.out, t.p.err)
	}
}

// survivors counts the members that are left. Those that are about to go get
// the time of the drain; when none is there it costs no wait.
func (t *nativeTask) survivors() int {
	end := t.endedAt.Add(t.pl.eng.cfg.Drain)
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		left, err := t.members().live()
		if err != nil || len(left) == 0 || time.Now().After(end) {
			return len(left)
		}
		time.Sleep(wait)
	}
}

// ownPeak is the resident peak of the host program.
func ownPeak() int64 {
	var ru unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &ru) != nil {
		return math.MaxInt64
	}
	return ru.Maxrss << 10
}
