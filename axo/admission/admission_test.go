package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/axocoatl/isolation"
)

func queue(slots, bound int) *Queue {
	return NewQueue(QueueConfig{What: "runs", Slots: slots, Bound: bound, Wait: 10 * time.Second})
}

// line notes who gets a place, in order, each holding it for a second.
type line struct {
	q   *Queue
	wg  sync.WaitGroup
	mu  sync.Mutex
	got []string
}

func (l *line) enter(t *testing.T, name string) {
	l.wg.Go(func() {
		leave, err := l.q.Enter(t.Context(), name)
		l.mu.Lock()
		if err != nil {
			name += "!"
		}
		l.got = append(l.got, name)
		l.mu.Unlock()
		if err == nil {
			time.Sleep(time.Second)
			leave()
			leave() // once more is nothing
		}
	})
	synctest.Wait()
}

// A tenant with one request does not wait for all of another with many.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &line{q: queue(2, 100)}
		for range 6 {
			l.enter(t, "many")
		}
		l.enter(t, "one")
		l.enter(t, "two")
		l.enter(t, "two")
		l.wg.Wait()
		// Both places come free at once, and go to those who have none.
		if got, want := strings.Join(l.got[2:4], " "), "one two"; got != want && got != "two one" {
			t.Errorf("%v: want %s after the first two", l.got, want)
		}
		if len(l.got) != 9 || slices.ContainsFunc(l.got, func(s string) bool { return strings.HasSuffix(s, "!") }) {
			t.Errorf("%v", l.got)
		}
		if len(l.q.tenants) != 0 || l.q.taken != 0 || l.q.waiting != 0 {
			t.Errorf("left: %+v", l.q)
		}
	})
}

// Who fills the queue is sent away for those who do not; nobody waits for ever.
func TestFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := queue(1, 4)
		leave, err := q.Enter(t.Context(), "many")
		if err != nil {
			t.Fatal(err)
		}
		ends := make(chan error, 10)
		wait := func(name string) {
			go func() {
				leave, err := q.Enter(t.Context(), name)
				if err == nil {
					leave()
				}
				ends <- err
			}()
			synctest.Wait()
		}
		for range 4 {
			wait("many")
		}
		sent := func() error {
			select {
			case err := <-ends:
				return err
			default:
				return nil
			}
		}
		if err := sent(); err != nil {
			t.Fatal(err)
		}
		// It has the most itself: nobody goes for it.
		wait("many")
		if err := sent(); !errors.Is(err, isolation.ErrUnavailable) {
			t.Errorf("one too many: %v", err)
		}
		wait("few")
		if err := sent(); !errors.Is(err, isolation.ErrUnavailable) || !strings.Contains(err.Error(), "come first") {
			t.Errorf("nobody made room: %v", err)
		}
		wait("few")
		if err := sent(); !errors.Is(err, isolation.ErrUnavailable) {
			t.Errorf("nobody made room for the second: %v", err)
		}
		wait("few")
		var retry *RetryError
		if err := sent(); !errors.As(err, &retry) || retry.After < time.Second {
			t.Errorf("as many as the other: %v", err)
		}
		// Of those who wait, none gets a place within the time.
		start := time.Now()
		for range 4 {
			if err := <-ends; !errors.Is(err, isolation.ErrUnavailable) {
				t.Errorf("%v", err)
			}
		}
		if d := time.Since(start); d != 10*time.Second {
			t.Errorf("they waited %v", d)
		}
		leave()
		wait("few")
		if err := <-ends; err != nil {
			t.Errorf("the place is not free again: %v", err)
		}
	})
}

func TestQuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := queue(1, 4)
		leave, err := q.Enter(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := make(chan error)
		go func() {
			_, err := q.Enter(ctx, "b")
			gone <- err
		}()
		synctest.Wait()
		why := errors.New("hung up")
		cancel(why)
		if err := <-gone; err != why {
			t.Errorf("%v", err)
		}
		if _, err := q.Enter(ctx, "b"); err != why {
			t.Errorf("ended before: %v", err)
		}
		leave()
		if q.taken != 0 || q.waiting != 0 || len(q.tenants) != 0 {
			t.Errorf("left: %+v", q)
		}
	})
}

// Under load with hang-ups no place is lost, and none is given twice.
func TestHammer(t *testing.T) {
	q := NewQueue(QueueConfig{What: "runs", Slots: 3, Bound: 10, Wait: time.Millisecond})
	var wg sync.WaitGroup
	var mu sync.Mutex
	in, most := 0, 0
	for i := range 8 {
		wg.Go(func() {
			for j := range 300 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(j%5)*200*time.Microsecond)
				if leave, err := q.Enter(ctx, fmt.Sprint(i%3)); err == nil {
					mu.Lock()
					in++
					most = max(most, in)
					in--
					mu.Unlock()
					leave()
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if q.taken != 0 || q.waiting != 0 || len(q.tenants) != 0 || most > 3 || most == 0 {
		t.Errorf("left: %+v, at most %d", q, most)
	}
}

func TestRate(t *testing.T) {
	now := time.Unix(1000, 0)
	r := NewRate(func(tenant string) (float64, int) {
		return map[string]float64{"two": 2, "slow": 0.1}[tenant], map[string]int{"two": 3}[tenant]
	}, func() time.Time { return now })
	take := func(tenant string) time.Duration {
		t.Helper()
		err := r.Take(tenant)
		var retry *RetryError
		switch {
		case err == nil:
			return 0
		case !errors.As(err, &retry) || !errors.Is(err, isolation.ErrResourceExhausted):
			t.Fatal(err)
		}
		return retry.RetryAfter()
	}
	for i, c := range []struct {
		tenant string
		pass   time.Duration
		want   time.Duration
	}{
		{"two", 0, 0}, {"two", 0, 0}, {"two", 0, 0}, {"two", 0, 500 * time.Millisecond},
		{"free", 0, 0}, {"free", 0, 0},
		{"two", 250 * time.Millisecond, 250 * time.Millisecond}, {"two", 250 * time.Millisecond, 0},
		// The clock is set back, and forward: never more than at once.
		{"two", -time.Hour, 500 * time.Millisecond}, {"two", 24 * time.Hour, 0}, {"two", 0, 0}, {"two", 0, 0}, {"two", 0, 500 * time.Millisecond},
		{"slow", 0, 0}, {"slow", 0, 10 * time.Second},
	} {
		now = now.Add(c.pass)
		if got := take(c.tenant); got != c.want {
			t.Errorf("%d: %s has to wait %v, want %v", i, c.tenant, got, c.want)
		}
	}
}
