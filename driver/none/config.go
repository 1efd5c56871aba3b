package none

import (
	"context"
	"fmt"
	"io"
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
