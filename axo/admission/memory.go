package admission

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
)

// Memory is what all that runs may have together by its limits. Who finds not enough
// waits: what comes free is first for the tenant with the least, and of several such for
// who came first; who wants more than is free is passed by. A nil Memory has no bound. It
// is safe for concurrent use.
type Memory struct {
	most  int64
	bound int
	wait  time.Duration

	mu      sync.Mutex
	taken   int64            // guarded by mu
	of      map[string]int64 // by tenant; guarded by mu
	waiting []*memoryWaiter  // guarded by mu
}

type memoryWaiter struct {
	tenant string
	bytes  int64
	told   chan struct{} // closed when it has them
}

// NewMemory makes one of so many bytes. At most bound wait, each as long as wait says.
func NewMemory(bytes int64, bound int, wait time.Duration) *Memory {
	return &Memory{most: bytes, bound: bound, wait: wait, of: map[string]int64{}}
}

// Counts are how many bytes are taken, and how many wait for some.
func (m *Memory) Counts() (bytes, waiting int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return int(m.taken), len(m.waiting)
}

// Take waits for bytes. give gives them back; it may be called more than once. What is
// more than there ever is is InvalidArgument.
func (m *Memory) Take(ctx context.Context, tenant string, bytes int64) (give func(), err error) {
	if m == nil || bytes <= 0 {
		return func() {}, nil
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if bytes > m.most {
		return nil, fmt.Errorf("%d bytes of memory: all sandboxes together may have %d: %w", bytes, m.most, isolation.ErrInvalidArgument)
	}
	w := &memoryWaiter{tenant, bytes, make(chan struct{})}
	m.mu.Lock()
	if m.taken+bytes <= m.most {
		m.takeLocked(tenant, bytes)
		m.mu.Unlock()
		return m.giver(tenant, bytes), nil
	}
	if len(m.waiting) >= m.bound {
		err := m.fullLocked(ReasonFull, bytes)
		m.mu.Unlock()
		return nil, err
	}
	m.waiting = append(m.waiting, w)
	m.mu.Unlock()
	timer := time.NewTimer(m.wait)
	defer timer.Stop()
	var cause error
	select {
	case <-w.told:
		return m.giver(tenant, bytes), nil
	case <-ctx.Done():
		cause = context.Cause(ctx)
	case <-timer.C:
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := slices.Index(m.waiting, w); i >= 0 {
		m.waiting = slices.Delete(m.waiting, i, i+1)
		if cause == nil {
			cause = m.fullLocked(ReasonDeadline, bytes)
		}
		return nil, cause
	}
	// It was told at the same moment.
	if cause != nil {
		m.giveLocked(tenant, bytes)
		return nil, cause
	}
	return m.giver(tenant, bytes), nil
}

// Adopt takes bytes for what has them already, also where there are not as many.
func (m *Memory) Adopt(tenant string, bytes int64) (give func()) {
	if m == nil || bytes <= 0 {
		return func() {}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.takeLocked(tenant, bytes)
	return m.giver(tenant, bytes)
}

func (m *Memory) takeLocked(tenant string, bytes int64) {
	m.taken += bytes
	m.of[tenant] += bytes
}

func (m *Memory) giver(tenant string, bytes int64) func() {
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.giveLocked(tenant, bytes)
	})
}

func (m *Memory) giveLocked(tenant string, bytes int64) {
	m.taken -= bytes
	if m.of[tenant] -= bytes; m.of[tenant] == 0 {
		delete(m.of, tenant)
	}
	for {
		next := -1
		for i, w := range m.waiting {
			if m.taken+w.bytes <= m.most && (next < 0 || m.of[w.tenant] < m.of[m.waiting[next].tenant]) {
				next = i
			}
		}
		if next < 0 {
			return
		}
		w := m.waiting[next]
		m.waiting = slices.Delete(m.waiting, next, next+1)
		m.takeLocked(w.tenant, w.bytes)
		close(w.told)
	}
}

func (m *Memory) fullLocked(why Reason, bytes int64) error {
	return &RetryError{why, 5 * time.Second, fmt.Errorf("%d bytes of memory: sandboxes have %d of the %d that all together may have, and %d wait; retry later: %w",
		bytes, m.taken, m.most, len(m.waiting), isolation.ErrUnavailable)}
}
