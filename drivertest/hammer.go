package drivertest

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
)

var hammerChecks = []check{{"hammer", checkHammer}}

// hammerTime is how long checkHammer goes on.
const hammerTime = 2 * time.Second

// checkHammer does random things to a few sandboxes from many goroutines. What
// each may give is known; what happens between them is the driver's affair.
func checkHammer(t testing.TB, s *suite) {
	h := &hammer{s: s, t: t, ids: make([]string, 6), sandboxes: map[string]isolation.Sandbox{}}
	for i := range h.ids {
		h.ids[i] = s.id()
	}
	d := hammerTime
	if testing.Short() {
		d /= 4
	}
	end := time.Now().Add(d)
	var wg sync.WaitGroup
	s.patient().within(t, "the hammer", func() {
		for seed := range uint64(16) {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(1, seed))
				for time.Now().Before(end) {
					h.one(rnd)
				}
			})
		}
		wg.Wait()
	})
	for _, sb := range h.all() {
		s.delete(t, sb)
	}
	for _, id := range h.ids {
		spec, _ := s.command(t, job{program: Exit0})
		sb, err := s.d.Create(s.ctx(t), id, spec)
		if err != nil {
			t.Errorf("after all was deleted: Create: %v", err)
			continue
		}
		s.delete(t, sb)
	}
}

// patient is the suite for what takes the time of many operations.
func (s *suite) patient() *suite {
	p := *s
	p.c.Patience *= 3
	return &p
}

type hammer struct {
	s         *suite
	t         testing.TB
	ids       []string
	mu        sync.Mutex
	sandboxes map[string]isolation.Sandbox // guarded by mu; the newest of each id, deleted or not
}

func (h *hammer) all() []isolation.Sandbox {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []isolation.Sandbox
	for _, sb := range h.sandboxes {
		out = append(out, sb)
	}
	return out
}

// allowed fails unless err is nil, of one of the classes, or of a ctx that the
// hammer ended.
func (h *hammer) allowed(what string, err error, classes ...error) bool {
	if err == nil {
		return true
	}
	for _, c := range classes {
		if errors.Is(err, c) {
			return false
		}
	}
	h.t.Errorf("%s: %v, want none or one of %v", what, err, classes)
	return false
}

func (h *hammer) one(rnd *rand.Rand) {
	ctx, cancel := context.WithTimeout(context.Background(), h.s.c.Patience)
	defer cancel()
	id := h.ids[rnd.IntN(len(h.ids))]
	h.mu.Lock()
	sb := h.sandboxes[id]
	h.mu.Unlock()
	switch op := rnd.IntN(10); {
	case sb == nil || op == 0:
		spec, _, _ := h.s.c.Command(Exit0)
		made, err := h.s.d.Create(ctx, id, spec)
		if h.allowed("Create", err, isolation.ErrAlreadyExists) {
			h.mu.Lock()
			h.sandboxes[id] = made
			h.mu.Unlock()
		}
	case op == 1:
		h.allowed("Delete", sb.Delete(ctx))
	case op == 2:
		short, cancel := context.WithTimeout(ctx, time.Duration(rnd.IntN(1000))*time.Microsecond)
		defer cancel()
		h.allowed("Delete with a short ctx", sb.Delete(short), context.DeadlineExceeded)
	case op == 3:
		st, err := sb.State(ctx)
		if h.allowed("State", err, isolation.ErrNotFound) && st.ID != id {
			h.t.Errorf("State of %s is of %s", id, st.ID)
		}
	case op == 4:
		short, cancel := context.WithCancel(ctx)
		cancel()
		_, ps, _ := h.s.c.Command(Exit0)
		if _, err := sb.Exec(short, ps, isolation.Stdio{}); err == nil {
			h.t.Error("Exec with a canceled ctx: no error")
		}
	default:
		h.run(ctx, rnd, sb)
	}
}

func (h *hammer) run(ctx context.Context, rnd *rand.Rand, sb isolation.Sandbox) {
	text := strings.Repeat("x", rnd.IntN(10_000))
	out := newCapture()
	stdio := isolation.Stdio{Stdin: strings.NewReader(text), Stdout: out}
	kind := rnd.IntN(3)
	p, args := Echo, []string(nil)
	if kind == 0 {
		p, args = Sleep, []string{"60"}
	}
	spec, ps, _ := h.s.c.Command(p, args...)
	if own, _, _ := h.s.c.Command(Exit0); !sameSandbox(spec, own) {
		// Where a sandbox is for one program, as with WASM modules, these are
		// for Exit0.
		_, ps, _ = h.s.c.Command(Exit0)
		p, text = Exit0, ""
	}
	proc, err := sb.Exec(ctx, ps, stdio)
	if !h.allowed("Exec", err, isolation.ErrNotFound) {
		return
	}
	if p == Sleep {
		h.allowed("Kill", proc.Kill(ctx, isolation.SIGKILL))
	}
	e, err := proc.Wait(ctx)
	out.noMore()
	if !h.allowed("Wait", err) || e.Reason == isolation.ReasonCanceled {
		return
	}
	switch {
	case p == Sleep && e.Reason != isolation.ReasonSignaled:
		h.t.Errorf("one that was killed: %v", e)
	case p != Sleep && (!e.Success() || out.String() != text || e.Stdout != (isolation.Output{Bytes: int64(len(text))})):
		h.t.Errorf("%s: %v, %d of %d bytes came: %+v", p, e, len(out.bytes()), len(text), e.Stdout)
	}
}
