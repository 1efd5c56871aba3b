package client

import (
	"context"
	"slices"

	"github.com/axocoatl/isolation"
)

// shown is a sandbox with the abilities that the daemon tells of it, and no others.
type shown struct {
	s   *sandbox
	has []string
}

var (
	_ isolation.Sandbox  = shown{}
	_ isolation.Attacher = shown{}
)

func (h shown) ID() string { return h.s.id }

func (h shown) State(ctx context.Context) (isolation.State, error) { return h.s.State(ctx) }

func (h shown) Exec(ctx context.Context, p isolation.ProcessSpec, stdio isolation.Stdio) (isolation.Process, error) {
	return h.s.Exec(ctx, p, stdio)
}

func (h shown) Delete(ctx context.Context) error { return h.s.Delete(ctx) }

func (h shown) Attach(ctx context.Context, execID string, from isolation.Offsets, stdio isolation.Stdio) (isolation.Process, error) {
	return h.s.Attach(ctx, execID, from, stdio)
}

// Each of these has one ability, and leads to the next.
type (
	pauser struct {
		isolation.Pauser
		next any
	}
	files struct {
		isolation.Files
		isolation.Directories
		next any
	}
	watcher struct {
		isolation.Watcher
		next any
	}
	stats struct {
		s    *sandbox
		next any
	}
	dialer struct {
		isolation.PortDialer
		next any
	}
)

func (x pauser) Unwrap() any  { return x.next }
func (x files) Unwrap() any   { return x.next }
func (x watcher) Unwrap() any { return x.next }
func (x stats) Unwrap() any   { return x.next }
func (x dialer) Unwrap() any  { return x.next }

func (x stats) Stats(ctx context.Context) (isolation.Usage, error) { return x.s.Stats(ctx) }

// Unwrap lets isolation.As find abilities.
func (h shown) Unwrap() (next any) {
	for ability, with := range map[string]func(next any) any{
		isolation.AbilityPause: func(next any) any { return pauser{h.s, next} },
		isolation.AbilityFiles: func(next any) any { return files{h.s, h.s, next} },
		isolation.AbilityWatch: func(next any) any { return watcher{h.s, next} },
		isolation.AbilityStats: func(next any) any { return stats{h.s, next} },
		isolation.AbilityPorts: func(next any) any { return dialer{h.s, next} },
	} {
		if slices.Contains(h.has, ability) {
			next = with(next)
		}
	}
	return next
}
