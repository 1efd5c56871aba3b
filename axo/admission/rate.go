package admission

import (
	"fmt"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
)

// Rate bounds how often each tenant begins something: a bucket of tokens for each,
// which fills with time. It is safe for concurrent use.
type Rate struct {
	of  func(tenant string) (perSecond float64, burst int)
	now func() time.Time

	mu      sync.Mutex
	buckets map[string]*bucket // guarded by mu
}

type bucket struct {
	tokens float64
	at     time.Time
}

// NewRate makes one. of is how much a tenant may begin in a second, where 0 is no
// bound, and how much at once after a while of nothing, where 0 is as much as in a
// second, at least 1. now nil: time.Now.
func NewRate(of func(tenant string) (perSecond float64, burst int), now func() time.Time) *Rate {
	if now == nil {
		now = time.Now
	}
	return &Rate{of: of, now: now, buckets: map[string]*bucket{}}
}

// Take counts one. The error is that of a tenant that has begun too many.
func (r *Rate) Take(tenant string) error {
	perSecond, burst := r.of(tenant)
	r.mu.Lock()
	defer r.mu.Unlock()
	if perSecond <= 0 {
		delete(r.buckets, tenant)
		return nil
	}
	most := float64(burst)
	if burst == 0 {
		most = max(perSecond, 1)
	}
	now := r.now()
	b := r.buckets[tenant]
	if b == nil {
		b = &bucket{tokens: most, at: now}
		r.buckets[tenant] = b
	}
	// A clock that was set back fills nothing, and takes nothing away.
	b.tokens = min(most, b.tokens+perSecond*max(now.Sub(b.at), 0).Seconds())
	b.at = now
	if b.tokens < 1 {
		after := time.Duration((1 - b.tokens) / perSecond * float64(time.Second))
		return &RetryError{ReasonRate, after, fmt.Errorf("the tenant may begin %v in a second, and %v at once; retry later: %w", perSecond, most, isolation.ErrResourceExhausted)}
	}
	b.tokens--
	return nil
}
