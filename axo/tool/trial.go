package tool

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
)

// TestResult is of one test of a manifest.
type TestResult struct {
	Name    string  `json:"name"`
	Problem string  `json:"problem,omitempty"` // empty: it passed
	Result  *Result `json:"result"`
}

// Test calls a tool as its manifest's tests say. An error is the engine's.
func (c *Caller) Test(ctx context.Context, ref string) ([]TestResult, error) {
	t, err := c.Registry.Get(ref)
	if err != nil {
		return nil, err
	}
	var out []TestResult
	for _, x := range t.Manifest.Tests {
		input := json.RawMessage("{}")
		if x.Input != nil {
			if input, err = json.Marshal(x.Input); err != nil {
				return out, err
			}
		}
		res, err := c.Call(ctx, Call{Tool: t.Digest, Input: input, Source: "test"})
		if err != nil {
			return out, fmt.Errorf("test %q: %w", x.Name, err)
		}
		out = append(out, TestResult{x.Name, problem(x, res), res})
	}
	return out, nil
}

// problem says how a result is not what a test wants.
func problem(x Test, res *Result) string {
	var got FailureKind
	if res.Failure != nil {
		got = res.Failure.Kind
	}
	switch {
	case got != x.Fails && got != "":
		return fmt.Sprintf("%s: %s", got, res.Failure.Message)
	case got != x.Fails:
		return fmt.Sprintf("it did not fail, and should have: %s", x.Fails)
	case got != "" || x.Output == nil:
		return ""
	}
	// Through JSON, so that numbers are alike.
	b, err := json.Marshal(x.Output)
	if err != nil {
		return err.Error()
	}
	var want, have any
	if err := json.Unmarshal(b, &want); err != nil {
		return err.Error()
	}
	if err := json.Unmarshal(res.Output, &have); err != nil {
		return err.Error()
	}
	if !within(want, have) {
		return fmt.Sprintf("got %.500s, want %.500s", res.Output, b)
	}
	return ""
}

// within reports whether have has all that want has: of objects the keys of want, of
// all else the same.
func within(want, have any) bool {
	w, ok1 := want.(map[string]any)
	h, ok2 := have.(map[string]any)
	if !ok1 || !ok2 {
		return reflect.DeepEqual(want, have)
	}
	for k, v := range w {
		x, ok := h[k]
		if !ok || !within(v, x) {
			return false
		}
	}
	return true
}
