package oci

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/driver/internal/root"
)

// Driver is a container engine. It implements [isolation.Driver].
type Driver = proc.Driver

// Config makes a driver. The zero value is usable.
type Config struct {
	// Engine is who makes the containers: "builtin", which is also what empty
	// means, or one of [Runtimes].
	Engine string
	// Runtime is the path of the engine's program. Empty: it is looked for in
	// PATH.
	Runtime string
	// StateDir is where runtimes note their containers, and where the embedded
	// guest is unpacked for them. Empty: /run/axo/oci.
	StateDir string
	// Guest is the path of axo-guest. Empty: the one embedded in this program,
	// else the one beside it.
	Guest string
	// NoCgroup leaves control groups alone, as on a host without. The limits
	// that need them are then not enforced, and refused.
	NoCgroup bool
	// Recorder is told of what a sandbox may leave before it is there, so that
	// a later process can clean up after one that was killed. nil: none.
	Recorder Recorder
	// SessionDir is where detached sandboxes are written down, which outlive this
	// process: directory "sessions" of a state directory, for the sweeper of that.
	// Empty: they are refused. What runtimes note of them is in StateDir, which
	// then is in that state directory, too.
	SessionDir string
	// Drain is how long output may still come after a process ended. 0: 100 ms.
	Drain time.Duration
	// DiskBytes is what a sandbox may write when its spec has no limit. 0: 1 GiB
	// or a quarter of the host's memory, whichever is less: it is memory.
	DiskBytes int64
	// Images finds the images that specs name. nil: they are refused.
	Images Images
	Logger *slog.Logger // nil: silent
}

// Images finds images on this host, and RootFS is what it returns: their
// read-only layers, and what they say about how to run them.
type (
	Images = root.Images
	RootFS = root.FS
)

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
	// AddProcess names the guest.
	AddProcess(pid int) error
	// Done closes the entry: nothing is left.
	Done() error
}

func (c Config) withDefaults() (Config, error) {
	if c.Drain == 0 {
		c.Drain = 100 * time.Millisecond
	}
	if c.Drain < 0 || c.DiskBytes < 0 {
		return c, fmt.Errorf("oci: a negative Drain or DiskBytes: %w", isolation.ErrInvalidArgument)
	}
	if _, ok := runtimeNamed(c.Engine); !ok && c.Engine != "" && c.Engine != "builtin" {
		return c, fmt.Errorf("oci: there is no engine %q: %w", c.Engine, isolation.ErrInvalidArgument)
	}
	if c.StateDir == "" {
		c.StateDir = "/run/axo/oci"
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// GuestProgram reads axo-guest, from where a driver with this Config would have
// it.
func GuestProgram(c Config) ([]byte, error) {
	p, err := findGuest(&c)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if p.content != nil {
		return p.content, nil
	}
	return io.ReadAll(io.NewSectionReader(p.file, 0, 1<<62))
}

// guestName is the guest's file name beside this program.
const guestName = "axo-guest"

// program is the guest's executable.
type program struct {
	how     string // for people
	path    string // on disk; empty: embedded
	content []byte // embedded; nil: on disk

	mu   sync.Mutex
	file *os.File // guarded by mu, until it is there
}

// open returns the executable as a file. The embedded one becomes one when it is
// first wanted: that takes a millisecond, and most processes start none.
func (p *program) open() (*os.File, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var err error
	if p.file == nil {
		p.file, err = memoryFile(guestName, p.content)
	}
	return p.file, err
}

func (p *program) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file != nil {
		_ = p.file.Close() // nothing was written to it
	}
}

// findGuest opens the guest: by config, embedded, or beside this program.
func findGuest(c *Config) (*program, error) {
	if c.Guest != "" {
		return openGuest(c.Guest)
	}
	if len(embeddedGuest) > 0 {
		return &program{content: embeddedGuest, how: "embedded " + guestName}, nil
	}
	self, err := os.Executable()
	if err != nil {
		return &program{}, fmt.Errorf("find this program: %w", err)
	}
	p, err := openGuest(filepath.Join(filepath.Dir(self), guestName))
	if errors.Is(err, isolation.ErrNotFound) {
		return &program{}, &isolation.UnsupportedError{
			Feature: "containers without a guest program",
			Need:    "axo-guest beside this program (CGO_ENABLED=0 go build ./cmd/axo-guest), or its path in Config.Guest",
		}
	}
	return p, err
}

func openGuest(path string) (*program, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w (%w)", err, isolation.ErrNotFound)
	}
	if err != nil {
		return &program{}, fmt.Errorf("guest program: %w", err)
	}
	return &program{file: f, how: path, path: path}, nil
}
