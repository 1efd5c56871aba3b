package worker

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/experimental/sysfs"
	wsys "github.com/tetratelabs/wazero/sys"

	"github.com/axocoatl/isolation/driver/wasm/internal/rewrite"
	"github.com/axocoatl/isolation/driver/wasm/internal/rootfs"
	"github.com/axocoatl/isolation/guest/wire"
)

// runner is a worker with its module: it serves one process at a time, each in
// an instance of its own that was made before the process was asked for.
type runner struct {
	c        *conn
	load     wire.LoadMessage
	ctx      context.Context
	runtime  wazero.Runtime
	compiled wazero.CompiledModule
	config   wazero.ModuleConfig
	memory   memory
	limits   rootfs.Limits
	parked   api.Module
	settled  bool // the heap is as small as it gets
}

func serveRun(c *conn) error {
	f, err := c.r.Next()
	if err != nil {
		return err
	}
	if f.Type != wire.Load {
		return fmt.Errorf("%w: %v before LOAD", wire.ErrProtocol, f.Type)
	}
	r := &runner{c: c, ctx: context.Background()}
	if err := r.load.Parse(f.Body); err != nil {
		return err
	}
	loaded, err := r.prepare(c.t.descriptors())
	if err != nil {
		return c.fail(f.Stream, "", err)
	}
	if err := c.send(wire.Loaded, f.Stream, loaded.Append(nil)); err != nil {
		return err
	}
	for {
		f, err := c.r.Next()
		if err != nil {
			return err
		}
		switch f.Type {
		case wire.Exec:
			err = r.exec(f)
		case wire.Ping:
			err = c.send(wire.Pong, f.Stream, f.Body)
		case wire.Stdin, wire.StdinEOF, wire.Window, wire.Run:
			// Late, for a process that has ended.
		default:
			err = fmt.Errorf("%w: %v to an idle worker", wire.ErrProtocol, f.Type)
		}
		if err != nil {
			return err
		}
	}
}

// prepare jails the process and then loads the module.
func (r *runner) prepare(fds []int) (*wire.LoadedMessage, error) {
	m := &r.load
	paths := []string{m.ModulePath, m.NativePath}
	if m.HasImage {
		paths = append(paths, m.ImagePath)
	}
	for _, mt := range m.Mounts {
		paths = append(paths, mt.Path)
	}
	in, err := files(fds, m.ByPath, paths...)
	if err != nil {
		return nil, err
	}
	module, native, rest := in[0], in[1], in[2:]
	var image *os.File
	if m.HasImage {
		image, rest = rest[0], rest[1:]
	}
	if err := enter(native); err != nil {
		return nil, err
	}
	loaded := &wire.LoadedMessage{}
	var j runJail
	if m.Jail {
		if j, err = newRunJail(native, rest, m.Mounts); err != nil {
			return nil, fmt.Errorf("jail: %w", err)
		}
	}
	if err := r.instantiateRuntime(module, image); err != nil {
		return nil, err
	}
	if err := r.openMounts(rest); err != nil {
		return nil, err
	}
	module.Close()
	native.Close()
	if image != nil {
		image.Close()
	}
	if m.Jail {
		// What loading needed is not needed any more.
		if err := j.tighten(len(m.Mounts) > 0); err != nil {
			return nil, fmt.Errorf("jail: %w", err)
		}
		loaded.Walls, loaded.Missing = j.report()
	}
	if !m.HasStart {
		if err := r.park(); err != nil {
			return nil, err
		}
	}
	return loaded, nil
}

func (r *runner) instantiateRuntime(module, image *os.File) error {
	binary, err := readModule(module)
	if err != nil {
		return err
	}
	if r.memory.region, err = newRegion(r.load.Memory, image, r.load.ImageBase); err != nil {
		return err
	}
	cache, err := wazero.NewCompilationCacheWithDir(".")
	if err != nil {
		return fmt.Errorf("native code: %w", err)
	}
	r.ctx = experimental.WithMemoryAllocator(r.ctx, &r.memory)
	r.runtime = newRuntime(r.ctx, cache)
	if r.compiled, err = r.runtime.CompileModule(r.ctx, binary); err != nil {
		return fmt.Errorf("load native code: %w", err)
	}
	if err := instantiateWASI(r.ctx, r.runtime, r.current); err != nil {
		return err
	}
	r.config = moduleConfig(r.current)
	return nil
}

func (r *runner) current() *process { return r.c.cur }

func (r *runner) openMounts(dirs []*os.File) error {
	fs := wazero.NewFSConfig()
	for i, mt := range r.load.Mounts {
		root, err := rootfs.OpenDir(dirs[i])
		if err != nil {
			return fmt.Errorf("mount %s: %w", mt.Destination, err)
		}
		fs = fs.(sysfs.FSConfig).WithSysFSMount(rootfs.New(root, mt.ReadOnly, &r.limits), mt.Destination)
		dirs[i].Close()
	}
	if len(r.load.Mounts) > 0 {
		r.config = r.config.WithFSConfig(fs)
	}
	return nil
}

// park makes the instance that the next process will use.
func (r *runner) park() error {
	r.memory.begin(r.load.Memory)
	m, err := r.runtime.InstantiateModule(r.ctx, r.compiled, r.config)
	if err != nil {
		return err
	}
	r.parked = m
	return nil
}

// exec serves one EXEC, and then makes the worker ready for the next.
func (r *runner) exec(f wire.Frame) error {
	var m wire.ExecMessage
	if err := m.Parse(f.Body); err != nil {
		return err
	}
	p := newProcess(r.c, f.Stream, &m)
	r.c.cur = p
	r.c.t.linger(min(time.Duration(m.Linger), maxLinger))
	limit := m.Memory
	if limit == 0 || limit > r.load.Memory {
		limit = r.load.Memory
	}
	r.memory.begin(limit)
	r.limits.Begin(m.Disk, m.Files)
	cpu := cpuTime()
	exit, err := r.run(&m)
	if err != nil {
		return err
	}
	exit.CPU = uint64(max(0, cpuTime()-cpu))
	exit.PeakMemory = r.memory.size
	exit.MemoryHits = r.memory.hits
	exit.Stdout, exit.Stderr = p.stdout.total, p.stderr.total
	r.countMounts(exit)
	if err := r.c.send(wire.Exit, p.stream, exit.Append(nil)); err != nil {
		return err
	}
	// From here on nobody waits.
	r.c.cur = nil
	r.settleHeap()
	if r.parked != nil {
		r.parked.Close(r.ctx)
		r.parked = nil
	}
	if err := r.memory.reset(); err != nil {
		return err
	}
	if !r.load.HasStart {
		return r.park()
	}
	return nil
}

// settleHeap gives back what loading left, after the first process.
func (r *runner) settleHeap() {
	if !r.settled {
		r.settled = true
		debug.SetGCPercent(50)
		debug.FreeOSMemory()
	}
}

// maxLinger bounds how long an idle worker may look for its next message
// without sleeping.
const maxLinger = 100 * time.Microsecond

// run calls _start. Its error means that the host is gone.
func (r *runner) run(m *wire.ExecMessage) (exit *wire.ExitMessage, err error) {
	defer func() {
		if v := recover(); v != nil {
			gone, ok := v.(hostGone)
			if !ok {
				panic(v)
			}
			exit, err = nil, gone.err
		}
	}()
	if r.parked == nil {
		if err := r.park(); err != nil {
			return r.judge(err), nil
		}
		r.memory.limit = min(r.memory.limit, max(m.Memory, r.memory.size))
	}
	var fuel api.MutableGlobal
	if r.load.Fuel {
		g, ok := r.parked.ExportedGlobal(rewrite.FuelGlobal).(api.MutableGlobal)
		if !ok {
			return &wire.ExitMessage{Cause: wire.CauseFailed, Detail: "the module was not compiled to count fuel"}, nil
		}
		fuel = g
		fuel.Set(min(m.Fuel, math.MaxInt64))
	}
	start := r.parked.ExportedFunction("_start")
	if start == nil {
		return &wire.ExitMessage{Cause: wire.CauseFailed, Detail: errNoStart.Error()}, nil
	}
	_, callErr := start.Call(r.ctx)
	var gone hostGone
	if errors.As(callErr, &gone) {
		return nil, gone.err
	}
	exit = r.judge(callErr)
	if fuel != nil {
		left := int64(fuel.Get())
		if left == rewrite.FuelExhausted {
			*exit = wire.ExitMessage{Cause: wire.CauseFuel, Fuel: m.Fuel}
		} else {
			exit.Fuel = m.Fuel - uint64(max(0, left))
		}
	}
	return exit, nil
}

// judge turns the end of a call into an EXIT.
func (r *runner) judge(err error) *wire.ExitMessage {
	var code *wsys.ExitError
	switch {
	case err == nil:
		return &wire.ExitMessage{Cause: wire.CauseExited}
	case errors.As(err, &code):
		return &wire.ExitMessage{Cause: wire.CauseExited, Code: uint64(code.ExitCode())}
	}
	// wazero reports a trap as "wasm error: <what>" with a stack trace below,
	// the overflow of the stack as "stack overflow", and everything else that
	// stopped the call as "<what> (recovered by wazero)".
	first, _, _ := strings.Cut(err.Error(), "\n")
	what, trapped := strings.CutPrefix(first, "wasm error: ")
	switch {
	case what == "stack overflow":
		return &wire.ExitMessage{Cause: wire.CauseTrap, Detail: what, StackHits: 1}
	case trapped:
		return &wire.ExitMessage{Cause: wire.CauseTrap, Detail: what}
	}
	return &wire.ExitMessage{Cause: wire.CauseFailed, Detail: firstBytes(first, 1024)}
}

// Error makes hostGone an error too: wazero turns a panic with an error into
// the error of the call.
func (h hostGone) Error() string { return fmt.Sprintf("%v: %v", errHostGone, h.err) }

func (r *runner) countMounts(exit *wire.ExitMessage) {
	l := &r.limits
	exit.DiskHits, exit.FileHits = l.DiskHits.Load(), l.FileHits.Load()
	exit.ReadBytes, exit.WrittenBytes = l.Read.Load(), l.Written.Load()
}
