package drivertest

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
)

var execChecks = []check{
	{"many in one sandbox", checkManyInOne},
	{"many sandboxes", checkManySandboxes},
	{"canceled before", checkExecCanceled},
	{"ctx ends after", checkExecCtx},
	{"wait ctx", checkWaitCtx},
	{"many waiters", checkManyWaiters},
	{"delete during exec", checkDeleteDuringExec},
	{"survivors", checkSurvivors},
	{"tenants", checkTenants},
	{"usage", checkUsage},
}

// echoed runs Echo in sb with something of its own and checks what comes back.
func (s *suite) echoed(t testing.TB, sb isolation.Sandbox, text string) {
	_, ps := s.command(t, job{program: Echo})
	var out bytes.Buffer
	p, err := sb.Exec(s.ctx(t), ps, isolation.Stdio{Stdin: strings.NewReader(text), Stdout: &out})
	if err != nil {
		t.Errorf("Exec: %v", err)
		return
	}
	e, err := p.Wait(s.ctx(t))
	if err != nil || !e.Success() || out.String() != text {
		t.Errorf("%v, %v, output %.80q, want %.80q", e, err, out.String(), text)
	}
}

func checkManyInOne(t testing.TB, s *suite) {
	spec, _ := s.command(t, job{program: Echo})
	sb := s.create(t, spec)
	var wg sync.WaitGroup
	for i := range s.c.Parallel {
		wg.Go(func() { s.echoed(t, sb, strings.Repeat(string(rune('a'+i)), 1000)) })
	}
	wg.Wait()
	s.state(t, sb, isolation.StatusCreated)
}

func checkManySandboxes(t testing.TB, s *suite) {
	spec, _ := s.command(t, job{program: Echo})
	var wg sync.WaitGroup
	for range s.c.Parallel {
		wg.Go(func() {
			sb, err := s.d.Create(s.ctx(t), s.id(), spec)
			if err != nil {
				t.Errorf("Create: %v", err)
				return
			}
			s.echoed(t, sb, sb.ID())
			s.delete(t, sb)
		})
	}
	wg.Wait()
}

func checkExecCanceled(t testing.TB, s *suite) {
	spec, ps := s.command(t, job{program: Ready, args: []string{"0"}})
	sb := s.create(t, spec)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	out := newCapture()
	p, err := sb.Exec(ctx, ps, isolation.Stdio{Stdout: out})
	if err == nil {
		t.Fatal("Exec with a canceled ctx: no error")
	}
	if p != nil {
		t.Error("Exec returned a process with its error")
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Exec with a canceled ctx: %v", err)
	}
	notStarted(t, "Exec with a canceled ctx", err)
	s.state(t, sb, isolation.StatusCreated)
	r := s.startIn(t, sb, job{program: Exit0})
	succeeded(t, r.wait(t), r)
	if len(out.bytes()) > 0 {
		t.Errorf("the program ran: %q", out)
	}
}

func checkExecCtx(t testing.TB, s *suite) {
	spec, ps := s.command(t, job{program: Echo})
	sb := s.create(t, spec)
	in, out := newGate(strings.NewReader("later")), newCapture()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer in.open()
	p, err := sb.Exec(ctx, ps, isolation.Stdio{Stdin: in, Stdout: out})
	if err != nil {
		t.Fatalf("Exec: %v", err)
	}
	cancel()
	time.Sleep(20 * time.Millisecond) // a process that ends with ctx would be gone
	s.state(t, sb, isolation.StatusRunning, p.ID())
	in.open()
	if e, err := p.Wait(s.ctx(t)); err != nil || !e.Success() || out.String() != "later" {
		t.Errorf("%v, %v, output %q: the end of Exec's ctx ended the process", e, err, out)
	}
}

func checkWaitCtx(t testing.TB, s *suite) {
	r := s.start(t, job{program: Ready, args: []string{"60"}})
	r.awaitReady(t)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	s.within(t, "Wait", func() {
		if _, err := r.p.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Wait: %v, want that of its ctx", err)
		}
	})
	s.state(t, r.sb, isolation.StatusRunning, r.p.ID())
	if err := r.p.Kill(s.ctx(t), isolation.SIGKILL); err != nil {
		t.Fatalf("Kill: %v", err)
	}
	r.wait(t)
}

func checkManyWaiters(t testing.TB, s *suite) {
	r := s.start(t, job{program: Ready, args: []string{"0.05"}})
	exits := make([]isolation.Exit, 8)
	ctx := s.ctx(t)
	var wg sync.WaitGroup
	for i := range exits {
		wg.Go(func() {
			var err error
			if exits[i], err = r.p.Wait(ctx); err != nil {
				t.Errorf("Wait: %v", err)
			}
		})
	}
	wg.Wait()
	e := r.wait(t) // one that comes late
	for _, other := range exits {
		if !reflect.DeepEqual(other, e) {
			t.Errorf("two waiters got %+v and %+v", details(other), details(e))
		}
	}
	succeeded(t, e, r)
}

// checkDeleteDuringExec deletes while processes are started: each Exec gives an
// error that says so, or a process that ends.
func checkDeleteDuringExec(t testing.TB, s *suite) {
	spec, ps := s.command(t, job{program: Sleep, args: []string{"60"}})
	sb := s.create(t, spec)
	ctx := s.ctx(t)
	var wg sync.WaitGroup
	for range s.c.Parallel {
		wg.Go(func() {
			p, err := sb.Exec(ctx, ps, isolation.Stdio{})
			if err != nil {
				if isolation.Class(err) != isolation.ErrNotFound {
					t.Errorf("Exec during Delete: %v, want NotFound", err)
				}
				return
			}
			if e, err := p.Wait(ctx); err != nil || e.Reason != isolation.ReasonCanceled {
				t.Errorf("Wait during Delete: %v, %v, want canceled", e, err)
			}
		})
	}
	s.delete(t, sb)
	wg.Wait()
}

// checkSurvivors runs a program whose children hold its output open.
func checkSurvivors(t testing.TB, s *suite) {
	e, r := s.run(t, job{program: Survivors, args: []string{"2"}})
	succeeded(t, e, r)
	if e.Survivors != 2 {
		t.Errorf("survivors are %d, want 2", e.Survivors)
	}
	again := s.startIn(t, r.sb, job{program: Exit0})
	if e := again.wait(t); e.Survivors != 0 {
		t.Errorf("survivors of another process are %d", e.Survivors)
	}
}

// checkTenants runs for several tenants by turns and at once: what one leaves
// must not be seen, and must not be in the way.
func checkTenants(t testing.TB, s *suite) {
	var wg sync.WaitGroup
	for i := range 4 {
		tenant := []string{"", "a", "b", "a"}[i]
		wg.Go(func() {
			spec, _ := s.command(t, job{program: Echo, spec: func(c *isolation.Spec) { c.Tenant = tenant }})
			for range 3 {
				sb, err := s.d.Create(s.ctx(t), s.id(), spec)
				if err != nil {
					t.Errorf("Create for tenant %q: %v", tenant, err)
					return
				}
				s.echoed(t, sb, "of "+tenant)
				s.delete(t, sb)
			}
		})
	}
	wg.Wait()
}

func checkUsage(t testing.TB, s *suite) {
	e, r := s.run(t, job{program: Sleep, args: []string{"0.2"}})
	succeeded(t, e, r)
	if e.Usage.Wall < 100*time.Millisecond {
		t.Errorf("wall time is %v of a program that sleeps for 200 ms", e.Usage.Wall)
	}
}
