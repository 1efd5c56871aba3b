package none

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/axocoatl/isolation"
)

// defaultDrain is how long output may still come after a process ended.
const defaultDrain = 100 * time.Millisecond

// Func is a Go function that runs as a program. It should return soon after
// ctx is done: a function that does not cannot be stopped. What it returns is
// its exit status, of which the low eight bits count, as for exit(2).
type Func func(ctx context.Context, call *Call) (code int)

// Call is what a function gets of its ProcessSpec and Stdio. The readers and
// writers fail once the call was ended, also those that a function kept.
type Call struct {
	Args           []string
	Env            []string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Getenv returns the value of key in Env, the last one if there are several.
func (c *Call) Getenv(key string) string {
	for i := len(c.Env) - 1; i >= 0; i-- {
		if k, v, ok := strings.Cut(c.Env[i], "="); ok && k == key {
			return v
		}
	}
	return ""
}

// FuncConfig makes a driver of engine "func".
type FuncConfig struct {
	// Funcs are the functions by the name that Spec.Func uses.
	Funcs map[string]Func
	// Drain is how long an ended call may take to return and to have its last
	// output taken. 0: 100 ms.
	Drain time.Duration
}

func (c *FuncConfig) setDefaults() error {
	for name, f := range c.Funcs {
		if err := isolation.ValidateID(name); err != nil {
			return fmt.Errorf("function name: %w", err)
		}
		if f == nil {
			return fmt.Errorf("function %q is nil: %w", name, isolation.ErrInvalidArgument)
		}
	}
	return setDrain(&c.Drain)
}

func setDrain(drain *time.Duration) error {
	if *drain < 0 {
		return fmt.Errorf("drain must not be negative: %w", isolation.ErrInvalidArgument)
	}
	if *drain == 0 {
		*drain = defaultDrain
	}
	return nil
}

// defaultPath is where programs are looked for when nobody says.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Config makes a driver of engine "process". The zero value is usable.
type Config struct {
	// Dir is the working directory of processes that name none. Empty: the
	// root directory, whatever the host program's own is.
	Dir string
	// Path is the list of directories where programs are looked for when the
	// environment of a process has no PATH. Empty: the system's usual one.
	Path string
	// NoCgroup leaves control groups alone, as on a host without. The limits
	// that need them are then not enforced, and refused.
	NoCgroup bool
	// Recorder is told of a sandbox's control groups before they are there, so
	// that a later process can clean up after one that was killed. (The
	// programs themselves die with the host program in any case.) nil: none.
	Recorder Recorder
	// Drain is how long output may still come after a process ended. 0: 100 ms.
	Drain time.Duration
}

func (c *Config) setDefaults() error {
	if c.Dir == "" {
		c.Dir = "/"
		if runtime.GOOS == "windows" {
			c.Dir = os.Getenv("SystemDrive") + `\`
		}
	}
	if !filepath.IsAbs(c.Dir) {
		return fmt.Errorf("dir %q is not an absolute path: %w", c.Dir, isolation.ErrInvalidArgument)
	}
	if c.Path == "" {
		c.Path = defaultPath
		if runtime.GOOS == "windows" {
			c.Path = filepath.Join(os.Getenv("SystemRoot"), "System32")
		}
	}
	return setDrain(&c.Drain)
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
	// Done closes the entry: nothing is left.
	Done() error
}
