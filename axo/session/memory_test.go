package session

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/admission"
	"github.com/axocoatl/isolation/driver/mem"
)

// TestMemoryOfAll: sandboxes have no more together than there is, and what one had is
// there again when it was not made, is deleted or lost; the next process counts what there is.
func TestMemoryOfAll(t *testing.T) {
	p := newPlace(t)
	var memory *admission.Memory
	with := func(c *Config) {
		memory = admission.NewMemory(100<<20, 100, 10*time.Millisecond)
		c.Memory = memory
	}
	want := func(mb int) {
		t.Helper()
		if taken, waiting := memory.Counts(); taken != mb<<20 || waiting != 0 {
			t.Errorf("%d bytes are taken, %d wait, want %d MiB", taken, waiting, mb)
		}
	}
	asks := func(id string, mb int64) Request {
		r := request()
		r.ID, r.Spec.Resources.MemoryBytes = id, mb<<20
		return r
	}
	first := p.open(t, with)
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := 0
	for i := range 16 {
		wg.Go(func() {
			_, err := first.Create(t.Context(), fmt.Sprint("t", i%4), asks(fmt.Sprint("box", i), 30))
			var retry *admission.RetryError
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made++
			} else if !errors.Is(err, isolation.ErrUnavailable) || !errors.As(err, &retry) || isolation.OutcomeOf(err) != isolation.NotStarted {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if made != 3 {
		t.Errorf("%d were made", made)
	}
	want(90)
	_, err := first.Create(t.Context(), "a", asks("large", 101))
	is(t, err, isolation.ErrInvalidArgument)
	_, err = first.Create(t.Context(), "a", Request{ID: "not/good", Spec: asks("", 10).Spec})
	is(t, err, isolation.ErrInvalidArgument)
	want(90)
	create(t, first, "a", request()) // without a limit it is not counted

	first.crash(t)
	next := p.open(t, with)
	want(90)
	all := next.All()
	for _, s := range all {
		if err := s.Delete(t.Context()); err != nil {
			t.Error(err)
		}
	}
	want(0)

	broken := errors.New("broken")
	next.driver.SetFaults(mem.Faults{Create: func(context.Context, string, isolation.Spec) error { return broken }})
	if _, err := next.Create(t.Context(), "a", asks("box", 10)); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	want(0)
	next.driver.SetFaults(mem.Faults{})
	lost := create(t, next, "a", asks("box", 10))
	want(10)
	lost.lose("the test says so")
	want(0)
	next.crash(t)
	last := p.open(t, with)
	want(0) // nor by the next
	s, err := last.Get("a", "box")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	want(0)
}
