package pool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/axocoatl/isolation"
)

// Config makes a Pool. Only Driver is needed.
type Config struct {
	// Driver makes the sandboxes. The pool closes it.
	Driver isolation.Driver
	// Templates are the shelves that are always there.
	Templates []Template
	// Learn is how many sandboxes are kept ready of a kind that was asked for
	// and has no template; those for Python with an interpreter started, where
	// that can be had. 0: none.
	Learn int
	// LearnWarm is to those what Template.Warm is to a template's. Where one of the
	// programs is not there, or fails, the sandbox stands ready without it and those
	// after it.
	LearnWarm []isolation.ProcessSpec
	// MaxShelves bounds the learned shelves, the least recently used goes. 0: 16.
	MaxShelves int
	// Forget is how long a learned shelf stays when nobody asks. 0: 2 min.
	Forget time.Duration
	// MaxIdle bounds the sandboxes that stand ready, over all shelves. 0: 64.
	MaxIdle int
	// MaxAge is how long one stands ready before a new one takes its place.
	// 0: 10 min.
	MaxAge time.Duration
	// RefillAfter is how long after a claim its place is filled, unless it was the
	// last one: so long the host's processors are for what was claimed. 0: at once.
	RefillAfter time.Duration
	// Makers is how many are made at once off the caller's path. 0: 1.
	Makers int
	// MaxRemovals is how many are removed at once off the caller's path. 0: 8.
	MaxRemovals int
	// MakeTimeout bounds the making of one, its warm-up included. 0: 30 s.
	MakeTimeout time.Duration
	// Freeze pauses what stands ready (isolation.Pauser), and resumes it when
	// it is handed out: for virtual machines, whose kernels do not rest. Where
	// the driver's sandboxes cannot be paused, making one fails.
	Freeze bool
	// Detached makes sandboxes ahead also where they are to outlive this process.
	// One that was handed out has an id of the pool's with the driver, by which it is
	// recovered: the method RecoveryID of a sandbox tells it. When this process is
	// killed those that stand ready stay; MadeAhead tells them from others, and who
	// comes next discards those that nobody was told of. false: such a sandbox is
	// made when it is asked for.
	Detached bool
	// Resolve replaces what may mean another thing later by what it means now,
	// such as the name of an image by its digest, so that a sandbox made ahead is
	// handed out only for what it was made of. It is asked for each template at
	// first, and for each Create; a template whose name has come to mean another
	// image is made of that one from then on. nil: sandboxes with an image that is no digest are not made
	// ahead.
	Resolve func(context.Context, isolation.Spec) (isolation.Spec, error)
	Logger  *slog.Logger // nil: silent
}

// Template is a kind of sandbox that is kept ready.
type Template struct {
	// Spec is the sandbox's. Tenant and Annotations are not looked at; Mounts
	// are refused, since a directory of the host is the caller's.
	Spec isolation.Spec
	// Size is how many are kept ready; at least 1.
	Size int
	// Warm is run in each before it is ready, one after another, with no input.
	// A process that does not exit with status 0 fails the making. It must not
	// hold anything that may not be shared between tenants.
	Warm []isolation.ProcessSpec
	// Prepare names a language whose interpreter is started in each, after Warm
	// (isolation.Preparer). Empty: none.
	Prepare string
}

func (c Config) withDefaults() Config {
	fill(&c.MaxShelves, 16)
	fill(&c.Forget, 2*time.Minute)
	fill(&c.MaxIdle, 64)
	fill(&c.MaxAge, 10*time.Minute)
	fill(&c.Makers, 1)
	fill(&c.MaxRemovals, 8)
	fill(&c.MakeTimeout, 30*time.Second)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func fill[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Validate checks the configuration. Errors are of class InvalidArgument.
func (c Config) Validate() error {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("pool: "+format+": %w", append(a, isolation.ErrInvalidArgument)...)
	}
	if c.Driver == nil {
		return bad("no driver")
	}
	if c.Learn < 0 || c.MaxShelves < 0 || c.Forget < 0 || c.MaxIdle < 0 || c.MaxAge < 0 || c.Makers < 0 || c.MaxRemovals < 0 || c.MakeTimeout < 0 || c.RefillAfter < 0 {
		return bad("a bound is negative")
	}
	sum := 0
	seen := map[key]bool{}
	for i, t := range c.Templates {
		if err := t.Spec.Validate(); err != nil {
			return errors.Join(bad("template %d", i), err)
		}
		k, ok := c.keyOf(t.Spec)
		ok = ok || c.Resolve != nil && named(t.Spec)
		switch {
		case t.Size < 1:
			return bad("template %d: size %d, want at least 1", i, t.Size)
		case !ok:
			return bad("template %d: it has directories of the host, which belong to a caller, or an image by a name", i)
		case seen[k]:
			return bad("template %d is there twice", i)
		}
		for j, p := range t.Warm {
			if err := t.Spec.ValidateProcess(p); err != nil {
				return errors.Join(bad("template %d: warm-up %d", i, j), err)
			}
		}
		seen[k] = true
		sum += t.Size
	}
	if limit := c.withDefaults().MaxIdle; sum > limit {
		return bad("the templates' sizes are %d together, more than MaxIdle, which is %d", sum, limit)
	}
	return nil
}
