package wasm

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/axocoatl/isolation/guest/wire"
	"github.com/axocoatl/isolation/internal/failpoint"
)

// workerProcess is the host's side of one run worker.
type workerProcess struct {
	child   *child
	key     poolKey
	art     *artefact
	single  bool // has preopens: it serves one process and is ended
	walls   wire.LoadedMessage
	streams uint32 // number of the last stream; touched by one Exec at a time
	onGone  func(*workerProcess)

	idle time.Time // guarded by pool.mu; since when it is idle
	cost int64     // guarded by pool.mu; bytes that it is counted at
	// The interpreter that waits in it, while it is idle; nil: none.
	parked  *parked // guarded by pool.mu
	weighed bool    // guarded by pool.mu; cost has parkedBytes
	evicted bool    // guarded by pool.mu; killed to make room
	gone    bool    // guarded by pool.mu; its process has ended

	wmu sync.Mutex // held over writes to the child
	buf []byte     // guarded by wmu

	mu   sync.Mutex
	cur  *process // guarded by mu
	kept *parked  // guarded by mu; the current process, as long as nobody claimed it
	err  error    // guarded by mu; why its reader gave up
	dead bool     // guarded by mu: the process has ended

	begun  chan struct{} // one element for each process that begins
	exited chan struct{} // closed when the process has ended; then end is set
	end    childEnd
}

// startWorker starts a worker without a module.
func startWorker(l *launcher) (*child, *wire.Reader, error) {
	ch, err := l.start(roleRun)
	if err != nil {
		return nil, nil, err
	}
	return ch, wire.NewReader(ch), nil
}

// loadWorker gives a started worker its module, and starts its reader.
func loadWorker(ch *child, r *wire.Reader, e *description, k poolKey, art *artefact, cfg *Config, jail bool, mounts []mount, onGone func(*workerProcess)) (*workerProcess, error) {
	m := wire.LoadMessage{
		Fuel: art.meta.Fuel, HasImage: art.meta.HasImage, ImageBase: art.meta.ImageBase, HasStart: art.meta.HasStart,
		Memory: uint64(cfg.MaxMemory), ByPath: byPath, Jail: jail,
	}
	files := slices.Clone(art.files)
	for _, mt := range mounts {
		m.Mounts = append(m.Mounts, wire.LoadMount{Destination: mt.destination, ReadOnly: mt.readOnly})
		files = append(files, mt.dir)
	}
	if byPath {
		m.ModulePath, m.NativePath = art.files[0].Name(), art.files[1].Name()
		if art.meta.HasImage {
			m.ImagePath = art.files[2].Name()
		}
		for i, mt := range mounts {
			m.Mounts[i].Path = mt.dir.Name()
		}
	}
	if err := expectHello(r, e); err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	if err := ch.sendFiles(wire.Append(nil, wire.Load, 1, m.Append(nil)), files); err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	f, err := r.Next()
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	w := &workerProcess{child: ch, key: k, art: art, single: len(mounts) > 0, streams: 1, onGone: onGone,
		begun: make(chan struct{}, 1), exited: make(chan struct{})}
	switch f.Type {
	case wire.Loaded:
		if err := w.walls.Parse(f.Body); err != nil {
			return nil, err
		}
	case wire.Fail:
		return nil, parseFail(f.Body)
	default:
		return nil, fmt.Errorf("%w: %v instead of LOADED", wire.ErrProtocol, f.Type)
	}
	go w.watch()
	go w.read(r)
	return w, nil
}

// begin makes p the current process and sends its EXEC with what follows it at
// once. It reports false if the worker has died: then nothing was started.
func (w *workerProcess) begin(p *process, exec *wire.ExecMessage, stdin []byte) bool {
	w.mu.Lock()
	if w.dead {
		w.mu.Unlock()
		return false
	}
	w.streams++
	p.stream = w.streams
	w.cur = p
	w.mu.Unlock()
	w.open(exec, p.stream, stdin)
	return true
}

// boot is begin for an interpreter that is started ahead.
func (w *workerProcess) boot(k *parked, exec *wire.ExecMessage) bool {
	w.mu.Lock()
	if w.dead {
		w.mu.Unlock()
		return false
	}
	w.streams++
	k.stream = w.streams
	w.kept = k
	w.mu.Unlock()
	w.open(exec, k.stream, nil)
	return true
}

// hand makes p what the parked interpreter k becomes, which has its program from
// stdin. It reports false if the worker has died: then nothing was started.
func (w *workerProcess) hand(p *process, k *parked, stdin []byte) bool {
	w.mu.Lock()
	if w.dead || w.kept != k {
		w.mu.Unlock()
		return false
	}
	p.stream, p.turn = k.stream, &k.turn
	w.cur, w.kept = p, nil
	w.mu.Unlock()
	// The slot that the caller has is the process's now.
	k.turn.give()
	if len(stdin) > 0 {
		w.wmu.Lock()
		defer w.wmu.Unlock()
		w.buf = wire.Append(w.buf[:0], wire.Stdin, p.stream, stdin)
		w.buf = wire.Append(w.buf, wire.StdinEOF, p.stream, nil)
		_, _ = w.child.Write(w.buf) // a worker that dies now is seen by its reader
	}
	failpoint.Hit(failpoint.Executed)
	return true
}

// open sends EXEC for a stream, and has the reader serve it.
func (w *workerProcess) open(exec *wire.ExecMessage, stream uint32, stdin []byte) {
	w.wmu.Lock()
	defer w.wmu.Unlock()
	// The header is written again once the length of the body is known.
	w.buf = exec.Append(wire.AppendHeader(w.buf[:0], wire.Exec, stream, 0))
	wire.AppendHeader(w.buf[:0], wire.Exec, stream, len(w.buf)-wire.HeaderSize)
	if len(stdin) > 0 {
		w.buf = wire.Append(w.buf, wire.Stdin, stream, stdin)
		w.buf = wire.Append(w.buf, wire.StdinEOF, stream, nil)
	}
	// A worker that dies now is seen by its reader, which ends the process.
	_, _ = w.child.Write(w.buf)
	if cap(w.buf) > 2*wire.MaxData {
		w.buf = nil
	}
	failpoint.Hit(failpoint.Executed)
	w.begun <- struct{}{}
}

// failure is why the worker's reader gave up, once it has.
func (w *workerProcess) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (w *workerProcess) send(t wire.Type, stream uint32, body []byte) error {
	w.wmu.Lock()
	defer w.wmu.Unlock()
	w.buf = wire.Append(w.buf[:0], t, stream, body)
	_, err := w.child.Write(w.buf)
	return err
}

// watch waits for the end of the process, also of an idle one.
func (w *workerProcess) watch() {
	w.end = w.child.wait()
	w.mu.Lock()
	w.dead = true
	w.mu.Unlock()
	w.onGone(w)
	close(w.exited)
}

// read serves what the worker sends while a process runs. Everything that comes
// is hostile: a violation ends the worker.
func (w *workerProcess) read(r *wire.Reader) {
	defer w.child.Close()
	for {
		select {
		case <-w.begun:
		case <-w.exited:
			// A process may have begun at the same moment; none does from now
			// on.
			w.mu.Lock()
			idle := w.cur == nil
			w.mu.Unlock()
			if idle {
				return
			}
		}
		if err := w.serveProcess(r); err != nil {
			w.child.kill()
			<-w.exited
			w.mu.Lock()
			p, k := w.cur, w.kept
			w.cur, w.kept, w.err = nil, nil, err
			w.mu.Unlock()
			if k != nil {
				k.lost()
			}
			// There is none if it had ended as the worker did.
			if p != nil {
				p.lost(err, w.end)
			}
			return
		}
	}
}

// serveProcess serves one process to its EXIT.
func (w *workerProcess) serveProcess(r *wire.Reader) error {
	for done := false; !done; {
		f, err := r.Next()
		if err != nil {
			return err
		}
		if done, err = w.serve(f); err != nil {
			return err
		}
	}
	return nil
}

// serve handles one frame, and reports whether it was the process's last.
func (w *workerProcess) serve(f wire.Frame) (done bool, err error) {
	w.mu.Lock()
	p, k := w.cur, w.kept
	w.mu.Unlock()
	if k != nil && f.Stream == k.stream {
		return false, k.serve(f)
	}
	if p == nil || f.Stream != p.stream {
		return false, fmt.Errorf("%w: %v on stream %d, which is not running", wire.ErrProtocol, f.Type, f.Stream)
	}
	switch f.Type {
	case wire.Stdout:
		return false, p.output(&p.stdout, f.Body)
	case wire.Stderr:
		return false, p.output(&p.stderr, f.Body)
	case wire.Window:
		var m wire.WindowMessage
		if err := m.Parse(f.Body); err != nil {
			return false, err
		}
		if m.Of != wire.Stdin || !p.stdin.give(m.Bytes) {
			return false, fmt.Errorf("%w: WINDOW of %d for %v", wire.ErrProtocol, m.Bytes, m.Of)
		}
		return false, nil
	case wire.Wait:
		return false, p.turn.waits()
	case wire.Run:
		return false, p.turn.wantsRun()
	case wire.Exit:
		var m wire.ExitMessage
		if err := m.Parse(f.Body); err != nil {
			return false, err
		}
		w.mu.Lock()
		w.cur = nil
		w.mu.Unlock()
		p.exited(&m)
		return true, nil
	}
	return false, fmt.Errorf("%w: %v from a run worker", wire.ErrProtocol, f.Type)
}
