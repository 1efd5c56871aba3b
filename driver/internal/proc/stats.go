package proc

import (
	"context"
	"math"
	"time"

	"github.com/axocoatl/isolation"
)

// measuring is a sandbox that tells what it uses.
type measuring struct {
	isolation.Sandbox
	sb   *sandbox
	read Meter
}

// Unwrap lets isolation.As find further abilities.
func (m measuring) Unwrap() any { return m.Sandbox }

// Stats implements [isolation.Stats].
func (m measuring) Stats(ctx context.Context) (u isolation.Usage, err error) {
	if err = m.sb.hold(ctx, nil); err == nil {
		u, err = m.read(ctx)
		m.sb.release()
	}
	if err != nil {
		return isolation.Usage{}, m.sb.fail("stats", "", err)
	}
	if r := m.sb.spec.Resources; u.Now != nil {
		if r.MemoryBytes > 0 {
			u.Now.MemoryTotal = min(u.Now.MemoryTotal, r.MemoryBytes)
		}
		if r.CPUs > 0 {
			u.Now.CPUs = min(u.Now.CPUs, int(math.Ceil(r.CPUs)))
		}
	}
	u.Wall = time.Since(m.sb.created)
	return u, nil
}
