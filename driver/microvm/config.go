package microvm

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/axocoatl/isolation"
)

// The engines.
const (
	QEMU        = "qemu"
	Firecracker = "firecracker"
)

// Config makes a driver. Templates is needed.
type Config struct {
	// Engine is QEMU or Firecracker; empty: QEMU.
	Engine string
	// Templates is the directory that has the templates.
	Templates string
	// Snapshots is the directory that has the snapshots. Empty: "snapshots" beside
	// Templates.
	Snapshots string
	// SessionDir is where detached sandboxes are written down, which outlive this
	// process: directory "sessions" of a state directory, for the sweeper of that.
	// Empty: they are refused.
	SessionDir string
	// RunDir is where machines have their sockets: a short path (unix(7)).
	// Empty: /run/axo/microvm, or a directory of the user's.
	RunDir string
	// QEMU is the path of qemu-system-x86_64. Empty: it is looked for in PATH.
	QEMU string
	// Firecracker is the path of firecracker. Empty: it is looked for in PATH.
	Firecracker string
	// NoCgroup leaves control groups alone, as on a host without.
	NoCgroup bool
	// Recorder is told of what a sandbox may leave before it is there. nil:
	// none.
	Recorder Recorder
	// Drain is how long output may still come after a process ended. 0: 100 ms.
	Drain time.Duration
	// Builder makes templates that a sandbox wants and that are not there: of an
	// image, a directory, or another size. nil: then there are none.
	Builder Builder
	Logger  *slog.Logger // nil: silent

	standIn     []string      // see firecracker.Config
	kvmPatience time.Duration // 0: kvmPatience
}

func (c Config) engine() string {
	if c.Engine == "" {
		return QEMU
	}
	return c.Engine
}

// Recorder writes down what must not be left behind.
type Recorder interface {
	// Record opens an entry for a sandbox. The id is made from the sandbox's
	// and unique on the host.
	Record(id string) (Entry, error)
}

// Entry is what one sandbox may leave behind.
type Entry interface {
	// AddPath names a directory before it is made; kind is "cgroup".
	AddPath(kind, path string) error
	// AddProcess names the VMM.
	AddProcess(pid int) error
	// Done closes the entry: nothing is left.
	Done() error
}

func (c Config) withDefaults() (Config, error) {
	if c.Drain == 0 {
		c.Drain = 100 * time.Millisecond
	}
	if c.Drain < 0 {
		return c, fmt.Errorf("microvm: a negative Drain: %w", isolation.ErrInvalidArgument)
	}
	if e := c.engine(); e != QEMU && e != Firecracker {
		return c, fmt.Errorf("microvm: engine %q: want %s or %s: %w", e, QEMU, Firecracker, isolation.ErrInvalidArgument)
	}
	if c.Templates == "" {
		return c, fmt.Errorf("microvm: no directory of templates: %w", isolation.ErrInvalidArgument)
	}
	if c.Snapshots == "" {
		c.Snapshots = filepath.Join(filepath.Dir(filepath.Clean(c.Templates)), "snapshots")
	}
	if c.RunDir == "" {
		c.RunDir = "/run/axo/microvm"
		if os.Geteuid() != 0 {
			c.RunDir = fmt.Sprintf("%s/axo-%d-microvm", os.TempDir(), os.Geteuid())
		}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// DefaultTemplate is the one that sandboxes without a root of their own get.
const DefaultTemplate = "default"

// setupFix says how the tier becomes usable.
const setupFix = "axo setup microvm"
