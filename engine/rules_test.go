package engine_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/engine"
)

func TestRules(t *testing.T) {
	ctx := context.Background()
	rules := func(r engine.Request) (engine.Policy, string, error) {
		switch r.Tool {
		case "small":
			return engine.Policy{MaxResources: isolation.Resources{MemoryBytes: 100}, DefaultResources: isolation.Resources{MemoryBytes: 50}}, "small tools", nil
		case "denied":
			return engine.Policy{}, "", fmt.Errorf("denied tools are: %w", isolation.ErrPermissionDenied)
		case "elsewhere":
			return engine.Policy{Engines: []string{"other"}}, "others", nil
		}
		return engine.Policy{}, "", nil
	}
	e, _ := setup(t, engine.Config{Rules: rules})
	r := request("echo")
	if res, err := e.Run(ctx, r); err != nil || res.Decision.Rule != "" {
		t.Errorf("no rule: %v", err)
	}
	r.Tool = "small"
	res, err := e.Run(ctx, r)
	if err != nil || res.Decision.Rule != "small tools" {
		t.Errorf("%v %+v", err, res)
	}
	r.Spec.Resources.MemoryBytes = 101
	if _, err := e.Run(ctx, r); !errors.Is(err, isolation.ErrPermissionDenied) || isolation.OutcomeOf(err) != isolation.NotStarted {
		t.Errorf("above the ceiling: %v", err)
	}
	if _, _, err := e.Create(ctx, r); !errors.Is(err, isolation.ErrPermissionDenied) {
		t.Errorf("a sandbox above the ceiling: %v", err)
	}
	r.Spec.Resources.MemoryBytes = 0
	r.Tool = "denied"
	if _, err := e.Run(ctx, r); !errors.Is(err, isolation.ErrPermissionDenied) {
		t.Errorf("denied: %v", err)
	}
	if _, _, err := e.Create(ctx, r); !errors.Is(err, isolation.ErrPermissionDenied) {
		t.Errorf("a sandbox that is denied: %v", err)
	}
	r.Tool = "elsewhere"
	var refused *engine.RefusedError
	if _, err := e.Explain(ctx, r); !errors.As(err, &refused) || refused.Decision.Rule != "others" {
		t.Errorf("no engine is left: %v", err)
	}
}

// TestRulesAddNoEngines: what the engine itself may not use no rule allows.
func TestRulesAddNoEngines(t *testing.T) {
	e, _ := setup(t, engine.Config{Policy: engine.Policy{Engines: []string{"other"}}, Rules: func(r engine.Request) (engine.Policy, string, error) {
		if r.Tool == "x" {
			return engine.Policy{Engines: []string{"wazero"}}, "x", nil
		}
		return engine.Policy{}, "any", nil
	}})
	r := request("echo")
	var refused *engine.RefusedError
	if _, err := e.Run(context.Background(), r); !errors.As(err, &refused) {
		t.Errorf("%v", err)
	}
	r.Tool = "x"
	if _, err := e.Run(context.Background(), r); !errors.Is(err, isolation.ErrPermissionDenied) {
		t.Errorf("%v", err)
	}
}
