package admission

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/axocoatl/isolation"
)

func TestMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory(100, 3, 10*time.Second)
		take := func(tenant string, n int64) func() {
			t.Helper()
			give, err := m.Take(t.Context(), tenant, n)
			if err != nil {
				t.Fatal(err)
			}
			return give
		}
		if _, err := m.Take(t.Context(), "a", 101); !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("more than there is: %v", err)
		}
		first, second := take("a", 60), take("a", 40)
		take("a", 0)() // without a limit it is not counted
		var mu sync.Mutex
		var got []string
		var wg sync.WaitGroup
		wait := func(tenant string, n int64) {
			wg.Go(func() {
				give, err := m.Take(t.Context(), tenant, n)
				mu.Lock()
				defer mu.Unlock()
				got = append(got, fmt.Sprintf("%s%d%v", tenant, n, err == nil))
				if err == nil {
					t.Cleanup(give)
				}
			})
			synctest.Wait()
		}
		wait("a", 30)
		wait("b", 50)
		wait("b", 10)
		var retry *RetryError
		if _, err := m.Take(t.Context(), "c", 1); !errors.As(err, &retry) || retry.Reason != ReasonFull || !errors.Is(err, isolation.ErrUnavailable) || retry.After <= 0 {
			t.Errorf("too many wait: %v", err)
		}
		// 40 are not enough for b's first, and its second has less than a.
		second()
		second()
		synctest.Wait()
		if s := strings.Join(got, " "); s != "b10true a30true" && s != "a30true b10true" {
			t.Errorf("%v", got)
		}
		time.Sleep(11 * time.Second)
		wg.Wait()
		if got[len(got)-1] != "b50false" {
			t.Errorf("%v", got)
		}
		adopted := m.Adopt("old", 1000) // it is there, whatever fits
		if taken, waiting := m.Counts(); taken != 1100 || waiting != 0 {
			t.Errorf("%d taken, %d wait", taken, waiting)
		}
		adopted()
		first()
		if taken, _ := m.Counts(); taken != 40 {
			t.Errorf("%d taken", taken)
		}
	})
}

// Under load with hang-ups it is never more than there is, and nothing is lost.
func TestMemoryHammer(t *testing.T) {
	m := NewMemory(10, 100, time.Millisecond)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var in int64
	took := 0
	for i := range 8 {
		wg.Go(func() {
			for j := range 300 {
				n := int64(j%5 + 1)
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(j%5)*200*time.Microsecond)
				if give, err := m.Take(ctx, fmt.Sprint(i%3), n); err == nil {
					mu.Lock()
					if in += n; in > 10 {
						t.Errorf("%d are taken", in)
					}
					took++
					mu.Unlock()
					mu.Lock()
					in -= n
					mu.Unlock()
					give()
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if m.taken != 0 || len(m.waiting) != 0 || len(m.of) != 0 || took == 0 {
		t.Errorf("left: %+v, %d took some", m, took)
	}
}
