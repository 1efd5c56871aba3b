package wasm

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/wasm/worker"
	"github.com/axocoatl/isolation/guest/wire"
)

const roleRun = worker.RoleRun

// poolKey says whose runs may use a worker: those of one tenant and one
// module. Code of one tenant never runs where another's ran.
type poolKey struct {
	tenant   string
	artefact key
}

// pool keeps workers with their module loaded. It bounds the processes, and
// the memory that they are counted at.
type pool struct {
	launcher *launcher
	config   *Config
	slots    slots

	mu       sync.Mutex
	idle     map[poolKey][]*workerProcess // guarded by mu; most recently used last
	all      map[*workerProcess]struct{}  // guarded by mu
	spares   []spare                      // guarded by mu
	making   int                          // guarded by mu; processes being started
	starting int                          // guarded by mu; spares being started
	bytes    int64                        // guarded by mu; counted for all
	freed    chan struct{}                // guarded by mu; closed when room may have come
	closed   bool                         // guarded by mu
	walls    *wire.LoadedMessage          // guarded by mu; of the last worker
	misfits  map[misfit]bool              // guarded by mu; what could not be parked
	wg       sync.WaitGroup               // starts under way
}

// spare is a started worker without a module.
type spare struct {
	child  *child
	reader *wire.Reader
}

func newPool(l *launcher, c *Config, s slots) *pool {
	return &pool{
		launcher: l, config: c, slots: s,
		idle: map[poolKey][]*workerProcess{}, all: map[*workerProcess]struct{}{}, freed: make(chan struct{}),
	}
}

// get returns a worker with the artefact loaded: an idle one, or a new one for
// which room is made. A run with mounts always gets a new one. For a run with a
// fit it may be one in which a parked interpreter waits, which is then returned
// too, and is the caller's.
func (p *pool) get(ctx context.Context, gone <-chan struct{}, k poolKey, art *artefact, mounts []mount, f *fit) (*workerProcess, *parked, error) {
	cost := workerBytes + art.bytes
	for {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, nil, errClosed
		}
		if len(mounts) == 0 {
			if w, kept := p.takeLocked(k, f); w != nil {
				p.mu.Unlock()
				if kept == nil {
					return w, nil, nil
				}
				// One that is being started is ready sooner than a new one.
				select {
				case <-kept.settled:
					if kept.ready {
						return w, kept, nil
					}
					continue
				case <-gone:
				case <-ctx.Done():
				}
				p.giveBack(w, kept)
				return nil, nil, waitError(ctx)
			}
		}
		if p.roomLocked(cost) {
			p.making++
			p.bytes += cost
			p.wg.Add(1)
			p.mu.Unlock()
			w, err := p.start(ctx, k, art, mounts, cost)
			return w, nil, err
		}
		victim := p.oldestLocked()
		freed := p.freed
		p.mu.Unlock()
		if victim != nil {
			victim.child.kill() // its reader does the rest
		}
		select {
		case <-freed:
		case <-gone:
			return nil, nil, waitError(ctx)
		case <-ctx.Done():
			return nil, nil, waitError(ctx)
		}
	}
}

// waitError is why a wait for a worker ended: ctx, or else the sandbox is gone.
func waitError(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("wait for a worker: %w", err)
	}
	return isolation.ErrNotFound
}

// takeLocked takes an idle worker out of the pool: best one in which an
// interpreter waits that fits, else one in which it is being started, else the
// most recently used one in which nothing waits.
func (p *pool) takeLocked(k poolKey, f *fit) (*workerProcess, *parked) {
	const none, plain, starting, ready = 0, 1, 2, 3
	best, at := none, -1
	list := p.idle[k]
	for i, w := range slices.Backward(list) {
		rank := none
		switch {
		case w.parked == nil:
			rank = plain
		case f != nil && w.parked.fit == *f && w.parked.waiting():
			rank = ready
		case f != nil && w.parked.fit == *f:
			rank = starting
		}
		if rank > best {
			best, at = rank, i
		}
	}
	if at < 0 {
		return nil, nil
	}
	w := list[at]
	p.idle[k] = slices.Delete(list, at, at+1)
	kept := w.parked
	w.parked = nil
	return w, kept
}

// giveBack undoes takeLocked for a worker whose interpreter nobody claimed.
func (p *pool) giveBack(w *workerProcess, k *parked) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w.gone {
		return
	}
	w.parked = k
	p.idle[w.key] = append(p.idle[w.key], w)
	p.signalLocked()
}

func (p *pool) roomLocked(cost int64) bool {
	n := len(p.all) + p.making
	return n == 0 || n < p.config.MaxWorkers && p.bytes+cost <= p.config.MemoryBudget
}

// oldestLocked takes the least recently used idle worker out of the pool.
func (p *pool) oldestLocked() *workerProcess {
	var oldest *workerProcess
	for _, list := range p.idle {
		if len(list) > 0 && (oldest == nil || list[0].idle.Before(oldest.idle)) {
			oldest = list[0]
		}
	}
	if oldest != nil {
		p.idle[oldest.key] = p.idle[oldest.key][1:]
		oldest.evicted = true
	}
	return oldest
}

// start makes a worker for which room was counted.
//
// A module can make its own loading slow, so ctx and loadTimeout end that.
func (p *pool) start(ctx context.Context, k poolKey, art *artefact, mounts []mount, cost int64) (_ *workerProcess, err error) {
	defer p.wg.Done()
	s, err := p.takeSpare()
	var w *workerProcess
	if err == nil {
		ctx, cancel := context.WithTimeoutCause(ctx, loadTimeout, errLoadTimeout)
		defer cancel()
		defer context.AfterFunc(ctx, s.child.kill)()
		if w, err = loadWorker(s.child, s.reader, p.launcher.engine, k, art, p.config, p.launcher.jail, mounts, p.drop); err != nil {
			s.child.kill()
			end := s.child.wait()
			s.child.Close()
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			} else if isolation.Class(err) == nil {
				err = fmt.Errorf("%w (worker: %v)", err, end)
			}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.making--
	if err != nil {
		p.bytes -= cost
		p.signalLocked()
		return nil, fmt.Errorf("start worker: %w", err)
	}
	w.cost = cost
	p.all[w] = struct{}{}
	p.walls = &w.walls
	if w.gone {
		p.dropLocked(w)
	} else if p.closed {
		w.child.kill()
		return nil, errClosed
	}
	p.refillLocked()
	return w, nil
}

// loadTimeout bounds the loading of an artefact, which takes 30 ms for one of
// a 3 MB module.
const loadTimeout = 30 * time.Second

var errLoadTimeout = fmt.Errorf("loading the module took more than %v: %w", loadTimeout, isolation.ErrResourceExhausted)

func (p *pool) takeSpare() (spare, error) {
	p.mu.Lock()
	for len(p.spares) == 0 && p.starting > 0 {
		freed := p.freed
		p.mu.Unlock()
		<-freed
		p.mu.Lock()
	}
	if n := len(p.spares); n > 0 {
		s := p.spares[n-1]
		p.spares = p.spares[:n-1]
		p.mu.Unlock()
		return s, nil
	}
	p.mu.Unlock()
	ch, r, err := startWorker(p.launcher)
	return spare{ch, r}, err
}

// refillLocked starts a spare off the caller's path.
func (p *pool) refillLocked() {
	if len(p.spares)+p.starting < p.config.Spares {
		p.startSpareLocked()
	}
}

// expect starts a worker while the caller still looks for its artefact, if
// there is none at all: the first run of a process then waits for less.
func (p *pool) expect() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.all)+p.making+len(p.spares)+p.starting == 0 {
		p.startSpareLocked()
	}
}

func (p *pool) startSpareLocked() {
	if p.closed {
		return
	}
	p.starting++
	p.wg.Add(1)
	go func() {
		defer p.wg.Done()
		ch, r, err := startWorker(p.launcher)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.starting--
		switch {
		case err != nil:
			p.config.Logger.Warn("start spare worker", "error", err)
		case p.closed:
			ch.kill()
			ch.wait()
			ch.Close()
		default:
			p.spares = append(p.spares, spare{ch, r})
		}
		p.signalLocked()
	}()
}

// put takes a worker back after a run. One that had mounts is not used again:
// its jail was made for them.
func (p *pool) put(w *workerProcess) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w.gone {
		return
	}
	if w.single || p.closed {
		w.child.kill()
		return
	}
	w.idle = time.Now()
	p.idle[w.key] = append(p.idle[w.key], w)
	p.signalLocked()
}

// drop forgets a worker whose process is gone. Its reader calls it.
func (p *pool) drop(w *workerProcess) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w.gone = true
	if _, ok := p.all[w]; ok {
		p.dropLocked(w)
	}
}

func (p *pool) dropLocked(w *workerProcess) {
	delete(p.all, w)
	p.bytes -= w.cost
	list := p.idle[w.key]
	for i, have := range list {
		if have == w {
			p.idle[w.key] = append(list[:i:i], list[i+1:]...)
			break
		}
	}
	if len(p.idle[w.key]) == 0 {
		delete(p.idle, w.key)
	}
	p.signalLocked()
}

func (p *pool) signalLocked() {
	close(p.freed)
	p.freed = make(chan struct{})
}

// close ends all workers and waits until they are gone.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	for w := range p.all {
		w.child.kill()
	}
	spares := p.spares
	p.spares = nil
	p.signalLocked()
	p.mu.Unlock()
	for _, s := range spares {
		s.child.kill()
		s.child.wait()
		s.child.Close()
	}
	p.wg.Wait()
	for {
		p.mu.Lock()
		n, freed := len(p.all), p.freed
		p.mu.Unlock()
		if n == 0 {
			return
		}
		<-freed
	}
}
