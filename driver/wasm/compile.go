package wasm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/wasm/worker"
	"github.com/axocoatl/isolation/guest/wire"
	"github.com/axocoatl/isolation/internal/failpoint"
)

// compiler makes artefacts, one compilation a key at a time.
type compiler struct {
	engine   *description
	launcher *launcher
	cache    *cache
	config   Config

	mu      sync.Mutex
	running map[key]*compilation // guarded by mu
}

type compilation struct {
	done chan struct{}
	art  *artefact
	err  error
}

// artefact returns the compiled module, from the cache or made now. Callers
// who want the same one share a compilation; it goes on when one of them gives
// up, and its own time limit ends it.
func (c *compiler) artefact(ctx context.Context, src source, s settings) (*artefact, error) {
	k := c.engine.key(src.digest, s)
	if a := c.cache.get(k); a != nil {
		return a, nil
	}
	c.mu.Lock()
	job := c.running[k]
	if job == nil {
		job = &compilation{done: make(chan struct{})}
		c.running[k] = job
		go func() {
			job.art, job.err = c.compile(k, src, s)
			c.mu.Lock()
			delete(c.running, k)
			c.mu.Unlock()
			close(job.done)
		}()
	}
	c.mu.Unlock()
	select {
	case <-job.done:
		return job.art, job.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// wait returns when no compilation runs.
func (c *compiler) wait() {
	for {
		c.mu.Lock()
		var any *compilation
		for _, j := range c.running {
			any = j
		}
		c.mu.Unlock()
		if any == nil {
			return
		}
		<-any.done
	}
}

func (c *compiler) compile(k key, src source, s settings) (*artefact, error) {
	if a := c.cache.get(k); a != nil { // another caller was just done with it
		return a, nil
	}
	module, err := src.open()
	if err != nil {
		return nil, err
	}
	defer discard(module)
	tmp := c.cache.temp()
	if r := c.config.Recorder; r != nil {
		entry, err := r.Record(filepath.Base(tmp))
		if err == nil {
			err = entry.AddPath("temp", tmp)
			defer entry.Done()
		}
		if err != nil {
			return nil, fmt.Errorf("journal: %w", err)
		}
	}
	failpoint.Hit(failpoint.TempRecorded)
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return nil, fmt.Errorf("module cache: %w", err)
	}
	m, err := c.work(module, tmp, s)
	if err != nil {
		os.RemoveAll(tmp)
		return nil, err
	}
	failpoint.Hit(failpoint.Compiled)
	m.Fuel = s.fuel
	return c.cache.put(k, tmp, m)
}

// work runs one compile worker. The worker is gone when it returns, so nothing
// changes the directory any more.
func (c *compiler) work(module *os.File, tmp string, s settings) (meta, error) {
	dir, err := os.Open(tmp)
	if err != nil {
		return meta{}, err
	}
	defer dir.Close()
	child, err := c.launcher.start(worker.RoleCompile)
	if err != nil {
		return meta{}, err
	}
	deadline := 2 * c.config.CompileTime
	timer := time.AfterFunc(deadline, child.kill)
	answer, err := c.ask(child, module, dir, s)
	late := !timer.Stop()
	child.kill()
	end := child.wait()
	child.Close()
	if err == nil {
		return answer, nil
	}
	var said *answeredError
	switch {
	case errors.As(err, &said):
		return meta{}, err
	case late:
		return meta{}, fmt.Errorf("compiling the module took more than %v: %w", deadline, isolation.ErrResourceExhausted)
	case end.cpuLimit:
		return meta{}, fmt.Errorf("compiling the module took more than %v of CPU time: %w", c.config.CompileTime, isolation.ErrResourceExhausted)
	case end.memoryLimit:
		return meta{}, fmt.Errorf("compiling the module took more than %d bytes of memory: %w", c.config.CompileMemory, isolation.ErrResourceExhausted)
	}
	return meta{}, fmt.Errorf("compile worker: %w (%v)", err, end)
}

// answeredError is what a worker said by FAIL.
type answeredError struct {
	class error // nil: internal
	text  string
}

func (e *answeredError) Error() string { return e.text }

func (e *answeredError) Unwrap() error { return e.class }

func (c *compiler) ask(ch *child, module, dir *os.File, s settings) (meta, error) {
	m := wire.CompileMessage{Fuel: s.fuel, Image: imagesWork, ByPath: byPath, Jail: c.launcher.jail}
	if byPath {
		m.ModulePath, m.OutPath = module.Name(), dir.Name()
	}
	r := wire.NewReader(ch)
	if err := expectHello(r, c.engine); err != nil {
		return meta{}, err
	}
	if err := ch.sendFiles(wire.Append(nil, wire.Compile, 1, m.Append(nil)), []*os.File{module, dir}); err != nil {
		return meta{}, err
	}
	f, err := r.Next()
	if err != nil {
		return meta{}, err
	}
	switch f.Type {
	case wire.Compiled:
		var done wire.CompiledMessage
		if err := done.Parse(f.Body); err != nil {
			return meta{}, err
		}
		return meta{done.HasImage, done.ImageBase, done.MinMemory, done.MaxMemory, done.HasStart, s.fuel}, nil
	case wire.Fail:
		return meta{}, parseFail(f.Body)
	}
	return meta{}, fmt.Errorf("%w: %v from a compile worker", wire.ErrProtocol, f.Type)
}

func expectHello(r *wire.Reader, e *description) error {
	f, err := r.Next()
	if err != nil {
		return err
	}
	var hello wire.HelloMessage
	if f.Type != wire.Hello {
		return fmt.Errorf("%w: %v instead of HELLO", wire.ErrProtocol, f.Type)
	}
	if err := hello.Parse(f.Body); err != nil {
		return err
	}
	if hello.Version != wire.Version || hello.Engine != e.version {
		return fmt.Errorf("worker speaks version %d of %q, want version %d of %q: it is not of this build: %w",
			hello.Version, hello.Engine, wire.Version, e.version, isolation.ErrFailedPrecondition)
	}
	return nil
}

func parseFail(body []byte) error {
	var m wire.FailMessage
	if err := m.Parse(body); err != nil {
		return err
	}
	e := &answeredError{text: m.Message}
	for _, c := range isolation.Classes() {
		if c.Error() == m.Class {
			e.class = c
		}
	}
	return e
}
