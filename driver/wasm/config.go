package wasm

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"time"

	"github.com/axocoatl/isolation"
)

// Config makes a Driver.
type Config struct {
	// Engine runs the modules. Empty: Wazero.
	Engine Engine

	// CacheDir keeps compiled modules across processes; it is made with mode
	// 0700 and must be nobody else's. Empty: a temporary directory, removed
	// by Close.
	CacheDir string
	// CacheBytes bounds CacheDir. 0: 2 GiB.
	CacheBytes int64

	// Worker is the path of the engine's worker program. Empty: the embedded
	// one, else one beside this program, else this program itself if it calls
	// ServeIfWorker; the last and the first are for Wazero only.
	Worker string
	// Runnable bounds the modules that compute at once. 0: the number of
	// cores. A module that waits for input, output or a sleep does not count.
	Runnable int
	// MaxWorkers bounds the worker processes, idle ones included. 0: 256.
	MaxWorkers int
	// MemoryBudget bounds what all workers may take together, in bytes,
	// counting each at what an idle one takes with its native code, and with the
	// interpreter that waits in it. 0: half of the host's memory.
	MemoryBudget int64
	// MaxMemory is the largest memory of an instance in bytes, and the limit
	// of one whose Spec sets none. 0: 1 GiB. At most 4 GiB, which is all that
	// a 32-bit module can address.
	MaxMemory int64
	// Spares is how many workers are kept started, without a module, once
	// the driver is in use. 0 keeps none.
	Spares int

	// Languages are the interpreters that run source here.
	Languages []Language
	// LanguagesDir is where Languages were found: what Probe says of them rests
	// on it. Empty: nowhere on disk.
	LanguagesDir string

	// NoPark leaves the start of the next interpreter, after a run, to
	// isolation.Preparer.
	NoPark bool

	// CompileMemory bounds a compile worker in bytes. 0: 2 GiB.
	CompileMemory int64
	// CompileTime bounds the CPU time of one compilation, and twice that its
	// wall time. 0: 60 s.
	CompileTime time.Duration

	// NoCgroup leaves out the second wall of memory, where cgroups cannot be
	// used.
	NoCgroup bool
	// Recorder is told of what a worker is before it starts, and when it is
	// gone, so that a later process can clean up. nil: none.
	Recorder Recorder
	Logger   *slog.Logger // nil: silent
}

// Recorder writes down what must not be left behind.
type Recorder interface {
	// Record opens an entry. add names a resource of it ("cgroup", path) or
	// ("process", pid); done closes the entry when all of it is gone.
	Record(id string) (entry Entry, err error)
}

// Entry is what one worker may leave behind.
type Entry interface {
	AddPath(kind, path string) error
	AddProcess(pid int) error
	Done() error
}

func (c Config) withDefaults() Config {
	set := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	set(&c.CacheBytes, 2<<30)
	set(&c.MemoryBudget, hostMemory()/2)
	set(&c.MaxMemory, 1<<30)
	set(&c.CompileMemory, 2<<30)
	if c.CompileTime == 0 {
		c.CompileTime = time.Minute
	}
	if c.Runnable == 0 {
		c.Runnable = runtime.GOMAXPROCS(0)
	}
	if c.MaxWorkers == 0 {
		c.MaxWorkers = 256
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Validate checks c as it is after defaults were filled in.
func (c Config) Validate() error {
	var errs []error
	bad := func(cond bool, format string, a ...any) {
		if cond {
			errs = append(errs, fmt.Errorf("wasm config: "+format+": %w", append(a, isolation.ErrInvalidArgument)...))
		}
	}
	_, known := c.Engine.describe()
	bad(!known, "engine %q is not known", c.Engine)
	bad(c.CacheDir != "" && !filepath.IsAbs(c.CacheDir), "cache directory %q is not absolute", c.CacheDir)
	seen := map[string]bool{}
	for _, l := range c.Languages {
		if err := l.validate(); err != nil {
			errs = append(errs, fmt.Errorf("wasm config: %w", err))
		}
		bad(seen[l.Name], "language %s is there twice", l.Name)
		seen[l.Name] = true
	}
	bad(c.Runnable < 1, "runnable is %d", c.Runnable)
	bad(c.MaxWorkers < 1, "max workers is %d", c.MaxWorkers)
	bad(c.MaxMemory < pageSize || c.MaxMemory > 4<<30, "max memory %d is not between one page and 4 GiB", c.MaxMemory)
	bad(c.CacheBytes < 0 || c.MemoryBudget < 0 || c.CompileMemory < 0 || c.CompileTime < 0 || c.Spares < 0, "negative bound")
	return errors.Join(errs...)
}

const (
	pageSize = 64 << 10 // of WebAssembly
	// workerBytes is what an idle worker counts against the budget, above
	// its module's native code.
	workerBytes = 12 << 20
	// parkedBytes is what an interpreter that waits for its program counts on
	// top of that. CPython takes about 12 MiB.
	parkedBytes = 16 << 20
	// headroom is what a worker's cgroup has above its instance's memory: its
	// own heap, native code, and the call stack: wazero's grows by copying and
	// needs about 175 MiB before it reports an overflow.
	headroom = 256 << 20
)
