package microvm

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/guest/wire"
	"github.com/axocoatl/isolation/internal/failpoint"
)

// stillness is whether a machine is paused: QEMU itself is stopped, so that not
// even a guest that does what it likes uses a processor.
type stillness struct {
	mu sync.Mutex // held by who stops QEMU or lets it go on
	is atomic.Bool
}

// Pause implements [proc.Pauser].
func (m *machine) Pause(context.Context) error {
	if err := m.freeze(); err != nil || m.kept == nil {
		return err
	}
	failpoint.Hit(failpoint.VMStill)
	err := m.kept.pause(true)
	failpoint.Hit(failpoint.VMPaused)
	return err
}

func (m *machine) freeze() error {
	m.still.mu.Lock()
	defer m.still.mu.Unlock()
	m.Conn.Hold(true)
	if err := m.vm.Freeze(); err != nil {
		m.Conn.Hold(false)
		return err
	}
	m.still.is.Store(true)
	return nil
}

// Resume implements [proc.Pauser]. The guest has the right time, and entropy of
// its own, before anything is asked of it. One that does not answer stays paused.
func (m *machine) Resume(ctx context.Context) error {
	m.still.mu.Lock()
	defer m.still.mu.Unlock()
	if err := m.vm.Thaw(); err != nil {
		return err
	}
	failpoint.Hit(failpoint.VMWoken)
	if err := m.Conn.Sync(ctx, again(m.Resources)); err != nil {
		return errors.Join(fmt.Errorf("sync: %w", err), m.vm.Freeze())
	}
	failpoint.Hit(failpoint.VMResumed)
	m.still.is.Store(false)
	m.Conn.Hold(false)
	if m.kept == nil {
		return nil
	}
	return m.kept.pause(false)
}

// again makes what a guest that was stopped needs: it is who it was.
func again(r isolation.Resources) *wire.SyncMessage {
	s := &wire.SyncMessage{Entropy: random(wire.MinEntropy), Time: uint64(time.Now().UnixNano())}
	return limited(s, r)
}

func limited(s *wire.SyncMessage, r isolation.Resources) *wire.SyncMessage {
	s.Disk = uint64(r.DiskBytes)
	s.Memory, s.Pids, s.MilliCPU = uint64(r.MemoryBytes), uint64(r.Pids), uint64(math.Ceil(r.CPUs*1000))
	return s
}

// letEnd has a paused machine run until a program that was told to end has, and
// what it wrote is here: a machine that stands still ends nothing. Its other programs
// run as long.
func (m *machine) letEnd(t *task) {
	m.still.mu.Lock()
	defer m.still.mu.Unlock()
	if !m.still.is.Load() || t.ended.Load() || m.vm.Thaw() != nil {
		return
	}
	m.Conn.Hold(false)
	select {
	case <-t.over:
	case <-time.After(obeys):
		if !t.ended.Load() {
			t.killed.Store(true)
			m.vm.Kill()
			return
		}
	}
	m.Conn.Hold(true)
	_ = m.vm.Freeze() // fails where QEMU is gone
}
