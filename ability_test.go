package isolation

import (
	"context"
	"testing"
)

type resets struct{ n *int }

func (r resets) Reset(context.Context) error { *r.n++; return nil }

// wrapper has no ability of its own.
type wrapper struct{ inner any }

func (w wrapper) Unwrap() any { return w.inner }

// pauses has one, and wraps.
type pauses struct{ wrapper }

func (pauses) Pause(context.Context) error  { return nil }
func (pauses) Resume(context.Context) error { return nil }

func TestAs(t *testing.T) {
	n := 0
	inner := resets{&n}
	for name, v := range map[string]any{
		"itself":       inner,
		"wrapped":      wrapper{inner},
		"wrapped more": wrapper{pauses{wrapper{wrapper{inner}}}},
	} {
		r, ok := As[Resetter](v)
		if !ok {
			t.Errorf("%s: Resetter is not found", name)
			continue
		}
		before := n
		if err := r.Reset(t.Context()); err != nil || n != before+1 {
			t.Errorf("%s: what is found is another", name)
		}
	}
	if _, ok := As[Pauser](wrapper{pauses{wrapper{inner}}}); !ok {
		t.Error("an ability of the middle is not found")
	}
	for name, v := range map[string]any{
		"nil": nil, "none": 1, "wraps nil": wrapper{}, "wraps none": wrapper{wrapper{struct{}{}}},
	} {
		if got, ok := As[Resetter](v); ok || got != nil {
			t.Errorf("%s: found %v", name, got)
		}
	}
	// The outermost one counts.
	m := 0
	if r, _ := As[Resetter](outer{wrapper{inner}, resets{&m}}); r.Reset(t.Context()) != nil || m != 1 {
		t.Error("an inner ability hides the outer one")
	}
}

type outer struct {
	wrapper
	resets
}
