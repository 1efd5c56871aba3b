package none_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/none"
)

// newFunc returns a driver of one function, "f".
func newFunc(t testing.TB, f none.Func) *none.Driver {
	t.Helper()
	d, err := none.NewFunc(none.FuncConfig{Funcs: map[string]none.Func{"f": f}})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// callFunc runs f and returns its Exit; the sandbox is deleted at the end.
func callFunc(t testing.TB, f none.Func, l isolation.Limits, stdio isolation.Stdio) isolation.Exit {
	t.Helper()
	d := newFunc(t, f)
	t.Cleanup(func() { _ = d.Close() })
	sb, err := d.Create(t.Context(), "a", isolation.Spec{Requirement: isolation.NativeTrusted, Func: "f"})
	if err != nil {
		t.Fatal(err)
	}
	p, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"f", "x"}, Env: []string{"A=1", "A=2"}, Limits: l}, stdio)
	if err != nil {
		t.Fatal(err)
	}
	exit, err := p.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return exit
}

func TestFuncResult(t *testing.T) {
	var out, errs bytes.Buffer
	exit := callFunc(t, func(_ context.Context, c *none.Call) int {
		in, err := io.ReadAll(c.Stdin)
		if err != nil {
			return 9
		}
		fmt.Fprintf(c.Stdout, "%v %s %s", c.Args, c.Getenv("A"), in)
		fmt.Fprint(c.Stderr, "warned")
		return -1
	}, isolation.Limits{}, isolation.Stdio{Stdin: strings.NewReader("hello"), Stdout: &out, Stderr: &errs})
	if exit.Reason != isolation.ReasonExited || exit.Code != 255 {
		t.Errorf("exit = %+v, want status 255", exit)
	}
	if out.String() != "[f x] 2 hello" || errs.String() != "warned" {
		t.Errorf("stdout %q, stderr %q", out.String(), errs.String())
	}
	if exit.Stdout.Bytes != int64(out.Len()) || exit.Stdout.Dropped != 0 {
		t.Errorf("stdout accounted as %+v", exit.Stdout)
	}
}

func TestFuncPanic(t *testing.T) {
	var errs bytes.Buffer
	exit := callFunc(t, func(context.Context, *none.Call) int { panic("boom\nmore") }, isolation.Limits{}, isolation.Stdio{Stderr: &errs})
	if exit.Reason != isolation.ReasonExited || exit.Code != 2 || exit.Detail != "panic: boom" {
		t.Errorf("exit = %+v, want status 2 and the panic", exit)
	}
	if !strings.Contains(errs.String(), "func_test.go") || errs.Len() > 32<<10 {
		t.Errorf("stderr has no bounded stack:\n%s", errs.String())
	}
	exit = callFunc(t, func(context.Context, *none.Call) int { runtime.Goexit(); return 0 }, isolation.Limits{}, isolation.Stdio{})
	if exit.Reason != isolation.ReasonExited || exit.Code != 2 {
		t.Errorf("Goexit gave %+v, want status 2", exit)
	}
}

func TestFuncTimeout(t *testing.T) {
	exit := callFunc(t, func(ctx context.Context, _ *none.Call) int { <-ctx.Done(); return 0 },
		isolation.Limits{Wall: 20 * time.Millisecond}, isolation.Stdio{})
	if exit.Reason != isolation.ReasonTimeoutWall || exit.Code != -1 || exit.Survivors != 0 {
		t.Errorf("exit = %+v, want timeout_wall", exit)
	}
	// A caller's reader that blocks keeps nobody.
	r, w := io.Pipe()
	defer w.Close()
	exit = callFunc(t, func(_ context.Context, c *none.Call) int {
		_, err := c.Stdin.Read(make([]byte, 1))
		fmt.Fprint(c.Stderr, err)
		return 0
	},
		isolation.Limits{Wall: 20 * time.Millisecond}, isolation.Stdio{Stdin: r})
	if exit.Reason != isolation.ReasonTimeoutWall || exit.Survivors != 0 {
		t.Errorf("exit = %+v, want timeout_wall and nothing left", exit)
	}
}

func TestFuncThatCannotBeStopped(t *testing.T) {
	release := make(chan struct{})
	d := newFunc(t, func(_ context.Context, c *none.Call) int {
		<-release
		if _, err := c.Stdout.Write([]byte("late")); err == nil {
			panic("a write after the end of the call was taken")
		}
		return 0
	})
	ctx := t.Context()
	sb, err := d.Create(ctx, "a", isolation.Spec{Requirement: isolation.NativeTrusted, Func: "f"})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	p, err := sb.Exec(ctx, isolation.ProcessSpec{Args: []string{"f"}, Limits: isolation.Limits{Wall: 20 * time.Millisecond}}, isolation.Stdio{Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	exit, err := p.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if exit.Reason != isolation.ReasonTimeoutWall || exit.Survivors != 1 || !strings.Contains(exit.Detail, "still running: a Go function cannot be stopped") {
		t.Errorf("exit = %+v", exit)
	}
	if f, err := d.Probe(ctx); err != nil || !strings.Contains(strings.Join(f.Warnings, "\n"), "1 functions are still running") {
		t.Errorf("Features do not warn of it: %v, %v", f.Warnings, err)
	}
	if err := sb.Delete(ctx); !errors.Is(err, isolation.ErrUnavailable) {
		t.Errorf("Delete while it runs = %v, want Unavailable", err)
	}
	if st, err := sb.State(ctx); err != nil || st.Status != isolation.StatusStopped {
		t.Errorf("State = %+v, %v, want stopped", st, err)
	}
	close(release)
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if err = d.Close(); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("Close after it returned = %v", err)
		}
	}
	if _, err := sb.State(ctx); !errors.Is(err, isolation.ErrNotFound) {
		t.Errorf("State after Close = %v, want NotFound", err)
	}
	if out.Len() != 0 {
		t.Errorf("written after Wait: %q", out.String())
	}
}

func TestFuncOutputLimit(t *testing.T) {
	var out bytes.Buffer
	exit := callFunc(t, func(_ context.Context, c *none.Call) int {
		for {
			if _, err := c.Stdout.Write(make([]byte, 10_000)); err != nil {
				return 0
			}
		}
	}, isolation.Limits{OutputBytes: 25_000}, isolation.Stdio{Stdout: &out})
	if exit.Reason != isolation.ReasonOutputLimit || out.Len() != 25_000 || exit.Stdout.Bytes != exit.Stdout.Dropped+25_000 {
		t.Errorf("exit = %+v, delivered %d, want output_limit and 25000", exit, out.Len())
	}
	// Exceeded and gone before anybody looked: the same reason, its own status.
	for range 50 {
		exit = callFunc(t, func(_ context.Context, c *none.Call) int { _, _ = c.Stdout.Write(make([]byte, 11)); return 3 },
			isolation.Limits{OutputBytes: 10}, isolation.Stdio{})
		if exit.Reason != isolation.ReasonOutputLimit {
			t.Fatalf("exit = %+v, want output_limit", exit)
		}
	}
}

// blocked is a writer that blocks until it is released.
type blocked chan struct{}

func (b blocked) Write(p []byte) (int, error) { <-b; return len(p), nil }

func TestFuncBlockedWriter(t *testing.T) {
	w := make(blocked)
	defer close(w)
	exit := callFunc(t, func(_ context.Context, c *none.Call) int { fmt.Fprint(c.Stdout, "abc"); return 0 },
		isolation.Limits{}, isolation.Stdio{Stdout: w})
	if !exit.Success() || exit.Stdout != (isolation.Output{Bytes: 3, Dropped: 3}) {
		t.Errorf("exit = %+v, want success with 3 bytes dropped", exit)
	}
}

func TestFuncRefusals(t *testing.T) {
	d := newFunc(t, func(context.Context, *none.Call) int { return 0 })
	defer d.Close()
	base := isolation.Spec{Requirement: isolation.NativeTrusted, Func: "f"}
	for name, c := range map[string]struct {
		change func(*isolation.Spec)
		want   error
	}{
		"unknown function": {func(s *isolation.Spec) { s.Func = "g" }, isolation.ErrNotFound},
		"no function":      {func(s *isolation.Spec) { s.Func = "" }, isolation.ErrUnsupported},
		"memory":           {func(s *isolation.Spec) { s.Resources.MemoryBytes = 1 }, isolation.ErrUnsupported},
		"shell":            {func(s *isolation.Spec) { s.Requirement = isolation.Shell }, isolation.ErrUnsupported},
		"nothing":          {func(s *isolation.Spec) { s.Requirement = 0 }, isolation.ErrInvalidArgument},
	} {
		spec := base
		c.change(&spec)
		if _, err := d.Create(t.Context(), "x", spec); !errors.Is(err, c.want) || isolation.OutcomeOf(err) != isolation.NotStarted {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if _, err := none.NewFunc(none.FuncConfig{Funcs: map[string]none.Func{"f": nil}}); !errors.Is(err, isolation.ErrInvalidArgument) {
		t.Errorf("a nil function: %v", err)
	}
}

func BenchmarkFuncCall(b *testing.B) {
	d := newFunc(b, func(context.Context, *none.Call) int { return 0 })
	defer d.Close()
	sb, err := d.Create(b.Context(), "a", isolation.Spec{Requirement: isolation.NativeTrusted, Func: "f"})
	if err != nil {
		b.Fatal(err)
	}
	spec := isolation.ProcessSpec{Args: []string{"f"}, Limits: isolation.Limits{Wall: time.Minute, OutputBytes: 1 << 20}}
	b.ReportAllocs()
	for b.Loop() {
		p, err := sb.Exec(b.Context(), spec, isolation.Stdio{})
		if err != nil {
			b.Fatal(err)
		}
		if exit, err := p.Wait(b.Context()); err != nil || !exit.Success() {
			b.Fatal(exit, err)
		}
	}
}
