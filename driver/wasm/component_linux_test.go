package wasm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/drivertest"
	"github.com/axocoatl/isolation/internal/testprog"
)

// TestComponentConformance runs the suite with a WASI preview 2 component.
func TestComponentConformance(t *testing.T) {
	c := conformance(t, Wasmtime)
	prog := testprog.Component(t, testprog.C(t, "conform"))
	module := c.Command
	c.Command = func(p drivertest.Program, args ...string) (isolation.Spec, isolation.ProcessSpec, bool) {
		spec, ps, ok := module(p, args...)
		spec.Module.Path = prog
		switch p {
		case drivertest.Exit7, drivertest.Args, drivertest.Env: // more than the adapter can
			spec.Module.Path = testprog.ComponentWat(t, string(p))
		}
		ps.Args = append([]string{"conform", string(p)}, args...)
		return spec, ps, ok
	}
	drivertest.Run(t, c)
}

// TestRustComponent has one program as a module and as the component that the same
// compiler makes of it: both do the same, but for the status, of which preview 2
// tells only whether it is 0.
func TestRustComponent(t *testing.T) {
	d := newDriver(t, Wasmtime)
	module, component := testprog.Rust(t, "conform"), testprog.RustComponent(t, "conform")
	for _, c := range []struct {
		args, stdin string
		env         []string
		limits      isolation.Limits
		memory      int64
	}{
		{args: "args a b ü"},
		{args: "env", env: []string{"A=1", "B="}},
		{args: "echo", stdin: strings.Repeat("0123456789abcdef", 1<<14)},
		{args: "words", stdin: "the cat and the hat\n"},
		{args: "exit 0"},
		{args: "exit 1"},
		{args: "panic oh"},
		{args: "overflow"},
		{args: "hog", memory: 32 << 20},
		{args: "spin", limits: isolation.Limits{Wall: 200 * time.Millisecond}},
		{args: "spin", limits: isolation.Limits{Fuel: 1e7}},
		{args: "thread"},
		{args: "clock"},
		{args: "map"},
		{args: "files /data"},
		{args: "files /other"},
	} {
		t.Run(c.args, func(t *testing.T) {
			t.Parallel()
			if c.limits == (isolation.Limits{}) {
				c.limits.Wall = time.Minute
			}
			var saw []seen
			for _, path := range []string{module, component} {
				spec := wasmSpec(path)
				spec.Resources.MemoryBytes = c.memory
				spec.Mounts = []isolation.Mount{{Source: t.TempDir(), Destination: "/data"}}
				ps := isolation.ProcessSpec{Args: append([]string{"prog"}, strings.Fields(c.args)...), Env: c.env, Limits: c.limits}
				r := run(t, d, spec, ps, strings.NewReader(c.stdin))
				saw = append(saw, seen{r.stdout, r.stderr, r.exit.Reason, r.exit.Code, r.exit.Detail, ""})
			}
			if saw[0] != saw[1] {
				t.Errorf("they differ:\nmodule    %s\ncomponent %s", saw[0], saw[1])
			}
		})
	}
}

func TestComponentReasons(t *testing.T) {
	d := newDriver(t, Wasmtime)
	conform := testprog.Component(t, testprog.C(t, "conform"))
	const wall = 200 * time.Millisecond
	short := isolation.Limits{Wall: wall}
	for _, c := range []struct {
		name, path string
		args       string
		limits     isolation.Limits
		memory     int64
		want       isolation.Reason
		code       int
		hit        isolation.Limit
	}{
		{"run says that it failed", testprog.ComponentWat(t, "fail"), "", short, 0, isolation.ReasonExited, 1, ""},
		{"loop", testprog.ComponentWat(t, "spin"), "", short, 0, isolation.ReasonTimeoutWall, -1, isolation.LimitWall},
		{"loop, CPU", testprog.ComponentWat(t, "spin"), "", isolation.Limits{CPU: wall}, 0, isolation.ReasonTimeoutCPU, -1, isolation.LimitCPUTime},
		{"loop, fuel", testprog.ComponentWat(t, "spin"), "", isolation.Limits{Fuel: 1e7}, 0, isolation.ReasonFuelExhausted, -1, isolation.LimitFuel},
		{"no socket", testprog.ComponentWat(t, "socket"), "", short, 0, isolation.ReasonExited, 0, ""},
		{"status", testprog.ComponentWat(t, "exit7"), "", short, 0, isolation.ReasonExited, 7, ""},
		{"status by the adapter", conform, "exit7", short, 0, isolation.ReasonExited, 1, ""},
		{"sleep", conform, "sleep 60", short, 0, isolation.ReasonTimeoutWall, -1, isolation.LimitWall},
		{"trap", conform, "crash", short, 0, isolation.ReasonTrap, -1, ""},
		{"memory", conform, "hog 256000000", isolation.Limits{}, 32 << 20, isolation.ReasonOOM, 1, isolation.LimitMemory},
		{"output", conform, "flood 10000000", isolation.Limits{OutputBytes: 1 << 20}, 0, isolation.ReasonOutputLimit, -1, isolation.LimitOutput},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := wasmSpec(c.path)
			spec.Resources.MemoryBytes = c.memory
			r := run(t, d, spec, isolation.ProcessSpec{Args: append([]string{"x"}, strings.Fields(c.args)...), Limits: c.limits}, nil)
			if r.exit.Reason != c.want || r.exit.Code != c.code {
				t.Errorf("%v (code %d), want %s with code %d; stderr %q", r.exit, r.exit.Code, c.want, c.code, r.stderr)
			}
			if c.hit != "" && (len(r.exit.LimitsHit) == 0 || r.exit.LimitsHit[0].Limit != c.hit) {
				t.Errorf("limits hit %v, want %s", r.exit.LimitsHit, c.hit)
			}
		})
	}
	t.Run("stdin", func(t *testing.T) {
		pr, pw := io.Pipe()
		defer pw.Close()
		r := run(t, d, wasmSpec(conform), isolation.ProcessSpec{Args: []string{"x", "echo"}, Limits: short}, pr)
		if r.exit.Reason != isolation.ReasonTimeoutWall {
			t.Errorf("blocked on stdin: %v", r.exit)
		}
	})
}

// TestBadComponents: what is refused, and why.
func TestBadComponents(t *testing.T) {
	d := newDriver(t, Wasmtime)
	ctx := context.Background()
	for name, c := range map[string]struct {
		class error
		says  string
	}{
		"library": {isolation.ErrInvalidArgument, "wasi:cli/run"},
		"http":    {isolation.ErrUnsupported, "wasi:http/types@0.2.0"},
		"newer":   {isolation.ErrUnsupported, "get-better-random-u64"},
	} {
		_, err := d.Create(ctx, name, wasmSpec(testprog.ComponentWat(t, name)))
		if !errors.Is(err, c.class) || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%s: %v, want class %v and %q in the text", name, err, c.class, c.says)
		}
	}
	good := testprog.ComponentWat(t, "fail")
	sb, err := d.Create(ctx, "text", wasmSpec(good))
	if err != nil {
		t.Fatal(err)
	}
	for _, ps := range []isolation.ProcessSpec{{Args: []string{"x", "\xff"}}, {Args: []string{"x"}, Env: []string{"A=\xff"}}} {
		if _, err := sb.Exec(ctx, ps, isolation.Stdio{}); !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("%q %q: %v", ps.Args, ps.Env, err)
		}
	}
	_, err = newDriver(t, Wazero).Create(ctx, "c", wasmSpec(good))
	if !errors.Is(err, isolation.ErrUnsupported) || !strings.Contains(fmt.Sprint(err), "wasmtime") {
		t.Errorf("component on wazero: %v", err)
	}
}

// TestComponentEscapes has a component try to leave its mount.
func TestComponentEscapes(t *testing.T) {
	escapes(t, newDriver(t, Wasmtime), testprog.Component(t, testprog.Go(t, "rawfs")))
}

// TestComponentFiles: a read-only mount stays as it is, and what is listed and
// read is what is there.
func TestComponentFiles(t *testing.T) {
	d := newDriver(t, Wasmtime)
	for _, readOnly := range []bool{true, false} {
		dir := t.TempDir()
		for name, text := range map[string]string{"a": "one", "b": "two", "fill": "keep"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		spec := wasmSpec(testprog.Component(t, testprog.C(t, "conform")))
		spec.Mounts = []isolation.Mount{{Source: dir, Destination: "/data", ReadOnly: readOnly}}
		r := run(t, d, spec, isolation.ProcessSpec{Args: []string{"x", "list", "/data"}}, nil)
		if r.stdout != "a 3\nb 3\nfill 4\n" {
			t.Errorf("listed %q, %v %q", r.stdout, r.exit, r.stderr)
		}
		// It opens with O_CREAT|O_TRUNC|O_WRONLY.
		r = run(t, d, spec, isolation.ProcessSpec{Args: []string{"x", "fill", "5"}}, nil)
		b, err := os.ReadFile(filepath.Join(dir, "fill"))
		if err != nil {
			t.Fatal(err)
		}
		if refused := !r.exit.Success() && string(b) == "keep"; refused != readOnly {
			t.Errorf("read-only %t: %v, the file is %q", readOnly, r.exit, b)
		}
	}
}
