package wasm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/testprog"
)

// installed describes an interpreter's module.
func installed(t testing.TB, name, path string) Language {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return Language{Name: name, Path: path, Digest: fmt.Sprintf("sha256:%x", sha256.Sum256(b))}
}

// withLanguages gives a driver the interpreters. They take seconds to compile,
// so all tests share a cache.
func withLanguages(t testing.TB) func(*Config) {
	list := []Language{installed(t, "python", testprog.Python(t)), installed(t, "js", testprog.QuickJS(t))}
	return func(c *Config) {
		c.Languages = list
		c.CacheDir = filepath.Join(filepath.Dir(wazeroWorker), "cache-"+string(c.Engine))
	}
}

type outcome struct {
	exit        isolation.Exit
	out, errOut string
	pid         int
}

func execute(t testing.TB, sb isolation.Sandbox, ps isolation.ProcessSpec, stdin string) outcome {
	t.Helper()
	var out, errOut bytes.Buffer
	p, err := sb.Exec(t.Context(), ps, isolation.Stdio{Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &errOut})
	if err != nil {
		t.Fatal(err)
	}
	e, err := p.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return outcome{e, out.String(), errOut.String(), p.PID()}
}

func pythonSandbox(t testing.TB, d *Driver, change ...func(*isolation.Spec)) isolation.Sandbox {
	t.Helper()
	spec := isolation.Spec{Requirement: isolation.Python, Resources: isolation.Resources{MemoryBytes: 128 << 20}}
	for _, f := range change {
		f(&spec)
	}
	ids.Lock()
	ids.n++
	id := fmt.Sprintf("python-%d", ids.n)
	ids.Unlock()
	sb, err := d.Create(t.Context(), id, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sb.Delete(context.Background()) })
	return sb
}

func prepare(t testing.TB, sb isolation.Sandbox) {
	t.Helper()
	p, ok := isolation.As[isolation.Preparer](sb)
	if !ok {
		t.Fatal("no ability prepare")
	}
	if err := p.Prepare(context.Background(), "python"); err != nil {
		t.Fatal(err)
	}
}

func python(code string, args ...string) isolation.ProcessSpec {
	return isolation.ProcessSpec{Args: append([]string{"python3", "-c", code}, args...), Limits: isolation.Limits{Wall: time.Minute}}
}

// pythonPrograms end as CPython ends them, in an interpreter that has just
// started and in one that was started ahead.
var pythonPrograms = []struct {
	code  string
	args  []string
	env   []string
	limit isolation.Limits
	// What must come out; "" is compared between the two only.
	out, errOut string
	status      int
	reason      isolation.Reason // "": exited
}{
	{code: "print(6*7)", out: "42\n"},
	{code: "import sys; sys.exit(7)", status: 7},
	{code: "import sys; sys.exit('no')", status: 1, errOut: "no\n"},
	{code: "raise ValueError('x')", status: 1, errOut: "Traceback (most recent call last):\n  File \"<string>\", line 1, in <module>\nValueError: x\n"},
	{code: "def f(n):\n  return 1/n\ntry:\n  f(0)\nexcept ZeroDivisionError as e:\n  raise RuntimeError('y') from e", status: 1},
	{code: "def broken(:\n  pass", status: 1},
	{code: "import nosuchmodule", status: 1},
	{code: "import sys; print(sys.argv, sys.orig_argv[-3:], sys.flags, sys.path, __name__, sorted(globals()))", args: []string{"a", "", "ü", "-x"}},
	{code: "import os; print(sorted(os.environ.items()))", env: []string{"A=1", "HOME=/tmp", "B=x=y", "Ü=ß"}},
	{code: "import os; print(os.getenv('SECRET'), dict(os.environ))", out: "None {}\n"},
	{code: "import sys; print(len(sys.stdin.read()), sys.stdin.encoding, sys.stdout.isatty(), sys.stdout.line_buffering)", out: "10 utf-8 False False\n"},
	{code: "print(input(), end='')", out: "some input"},
	{code: "import json, sys; json.dump({'n': [1, 2.5, None, 'ü']}, sys.stdout)", out: `{"n": [1, 2.5, null, "\u00fc"]}`},
	{code: "import os; os._exit(9)", status: 9},
	{code: "import atexit; atexit.register(print, 'bye'); print('hi')", out: "hi\nbye\n"},
	{code: "class D:\n  def __del__(self): print('gone')\nd = D()", out: "gone\n"},
	{code: "import os\nclass D:\n  def __del__(self): print('gone', os.getcwd())\nd = D()\nd.self = d\nl = [d]\ndef f(): return d", out: "gone /\n"},
	{code: "import sys; sys.exit(-1)", status: -1},
	{code: "import sys; sys.exit(2 ** 40)", status: -1},
	{code: "raise SystemExit", out: ""},
	{code: "raise KeyboardInterrupt", status: -1},
	{code: "import sys; sys.stdout = None; print('lost')"},
	{code: "import sys; sys.stdout.close()"},
	{code: "import sys\ndef hook(*a): raise OSError('worse')\nsys.excepthook = hook\n1/0", status: 1},
	{code: "import sys, atexit\nsys.excepthook = lambda *a: sys.exit(5)\natexit.register(print, 'bye')\n1/0", out: "bye\n", status: 5},
	{code: "import sys; print(sys.modules['__main__'].__dict__ is globals(), __import__('__main__').__name__, __builtins__)"},
	{code: "import gc, colorsys; gc.collect(); print(len(gc.garbage))"},
	{code: "import logging; logging.warning('w')", errOut: "WARNING:root:w\n"},
	{code: "import dataclasses\n@dataclasses.dataclass\nclass P:\n  x: int = 1\nimport pickle\nprint(pickle.loads(pickle.dumps(P(5))))", out: "P(x=5)\n"},
	{code: "import sys\nsys.excepthook = lambda *a: print('mine', a[1])\n1/0", out: "mine division by zero\n", status: 1},
	{code: "class E(BaseException): pass\nraise E('z')", status: 1},
	{code: "import sys; sys.stderr.write('e'); print('o', end='')", out: "o", errOut: "e"},
	{code: "print('x' * 200000)"},
	{code: "import sqlite3; print(sqlite3.connect(':memory:').execute('select 6*7').fetchone())", out: "(42,)\n"},
	{code: "import time\nt = time.monotonic()\ntime.sleep(.03)\nprint(time.monotonic() - t >= .03)", out: "True\n"},
	{code: "import select; print(select.select([0], [1], [], 5), select.select([], [], [], .01), select.poll().poll(10))", out: "([0], [1], []) ([], [], []) []\n"},
	// What WASI does not have fails with Python's own words.
	{code: "import threading; threading.Thread(target=print).start()", status: 1},
	{code: "import subprocess; subprocess.run(['ls'])", status: 1},
	{code: "import socket; socket.create_connection(('127.0.0.1', 80))", status: 1},
	{code: "open('/etc/passwd')", status: 1},
	{code: "open('/tmp/x', 'w')", status: 1},
	{code: "while True: pass", limit: isolation.Limits{Wall: 300 * time.Millisecond}, status: -1, reason: isolation.ReasonTimeoutWall},
	{code: "while True: pass", limit: isolation.Limits{CPU: 200 * time.Millisecond}, status: -1, reason: isolation.ReasonTimeoutCPU},
	{code: "while True: print('x' * 1000)", limit: isolation.Limits{OutputBytes: 1 << 20}, status: -1, reason: isolation.ReasonOutputLimit},
	{code: "b = []\nwhile True: b.append(bytearray(1 << 24))", status: -1, reason: isolation.ReasonOOM},
	{code: "def f(): f()\ntry: f()\nexcept RecursionError as e: print(e)", out: "maximum recursion depth exceeded\n"},
}

// TestPython compares what programs do in an interpreter that was started ahead
// with what they do in one that was not, and both with what they should.
func TestPython(t *testing.T) {
	eachEngine(t, func(t *testing.T, e Engine) {
		d := newDriver(t, e, withLanguages(t), func(c *Config) { c.NoPark = true })
		sb := pythonSandbox(t, d)
		for _, c := range pythonPrograms {
			ps := python(c.code, c.args...)
			ps.Env = c.env
			if c.limit != (isolation.Limits{}) {
				ps.Limits = c.limit
			}
			plain := execute(t, sb, ps, "some input")
			prepare(t, sb)
			pid := parkedPID(t, d)
			ahead := execute(t, sb, ps, "some input")
			if ahead.pid != pid {
				t.Errorf("%q did not run in the interpreter that was prepared", c.code)
			}
			reason := c.reason
			if reason == "" {
				reason = isolation.ReasonExited
			}
			if plain.exit.Code != ahead.exit.Code {
				t.Errorf("%q: %v, prepared %v", c.code, plain.exit, ahead.exit)
			}
			for name, o := range map[string]outcome{"plain": plain, "prepared": ahead} {
				if o.exit.Reason != reason || c.status >= 0 && o.exit.Code != c.status {
					t.Errorf("%q %s: %v: %s", c.code, name, o.exit, o.errOut)
				}
				if c.out != "" && o.out != c.out || c.errOut != "" && o.errOut != c.errOut {
					t.Errorf("%q %s: stdout %q, stderr %q", c.code, name, o.out, o.errOut)
				}
			}
			if c.reason == "" && plain.out != ahead.out {
				t.Errorf("%q printed\n%.3000s\nprepared\n%.3000s", c.code, plain.out, ahead.out)
			}
			if plain.errOut != ahead.errOut {
				t.Errorf("%q said\n%.3000s\nprepared\n%.3000s", c.code, plain.errOut, ahead.errOut)
			}
		}
	})
}

// parkedPID returns the process id of the one worker in which an interpreter
// waits, or 0.
func parkedPID(t testing.TB, d *Driver) (pid int) {
	t.Helper()
	d.pool.mu.Lock()
	defer d.pool.mu.Unlock()
	for w := range d.pool.all {
		if w.parked != nil && w.parked.waiting() {
			if pid != 0 {
				t.Error("interpreters wait in two workers")
			}
			pid = w.child.pid
		}
	}
	return pid
}

// parkedAgain waits until a worker has an interpreter ready after a run.
func parkedAgain(t testing.TB, d *Driver) int {
	t.Helper()
	for range 2000 {
		if pid := parkedPID(t, d); pid != 0 {
			return pid
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("no interpreter was parked after a run")
	return 0
}

// TestPythonSeeds: no two instances have a seed in common, though one worker
// makes them all.
func TestPythonSeeds(t *testing.T) {
	eachEngine(t, func(t *testing.T, e Engine) {
		d := newDriver(t, e, withLanguages(t))
		sb := pythonSandbox(t, d)
		seen := map[string]bool{}
		for range 6 {
			o := execute(t, sb, python("import random, os, uuid, tempfile; print(hash('axo'), random.random(), os.urandom(8).hex(), uuid.uuid4(), next(tempfile._get_candidate_names()))"), "")
			f := strings.Fields(o.out)
			if len(f) != 5 {
				t.Fatalf("%v %q %s", o.exit, o.out, o.errOut)
			}
			for _, v := range f {
				if seen[v] {
					t.Errorf("%s came twice", v)
				}
				seen[v] = true
			}
			parkedAgain(t, d)
		}
	})
}

// TestPythonParked: an interpreter that waits serves one program, of its tenant
// and with its limits.
func TestPythonParked(t *testing.T) {
	eachEngine(t, func(t *testing.T, e Engine) {
		d := newDriver(t, e, withLanguages(t))
		sb := pythonSandbox(t, d)
		execute(t, sb, python("leak = 1; import sys; sys.modules['leak'] = sys"), "")
		pid := parkedAgain(t, d)
		clean := "import sys; print('leak' in globals(), 'leak' in sys.modules)"
		for _, c := range []struct {
			name string
			o    outcome
		}{
			{"another tenant", execute(t, pythonSandbox(t, d, func(s *isolation.Spec) { s.Tenant = "b" }), python(clean), "")},
			{"another memory limit", execute(t, pythonSandbox(t, d, func(s *isolation.Spec) { s.Resources.MemoryBytes = 64 << 20 }), python(clean), "")},
			{"a limit of files", execute(t, sb, isolation.ProcessSpec{Args: python(clean).Args, Limits: isolation.Limits{OpenFiles: 9}}, "")},
			{"environment of the interpreter", execute(t, sb, isolation.ProcessSpec{Args: python(clean).Args, Env: []string{"PYTHONHASHSEED=0"}}, "")},
			{"options", execute(t, sb, isolation.ProcessSpec{Args: []string{"python3", "-I", "-c", clean}}, "")},
		} {
			if c.o.pid == pid || c.o.out != "False False\n" {
				t.Errorf("%s: in the parked interpreter: %t; %q %s", c.name, c.o.pid == pid, c.o.out, c.o.errOut)
			}
		}
		if o := execute(t, sb, python(clean), ""); o.pid != pid || o.out != "False False\n" {
			t.Errorf("the one that fits ran in %d, parked was %d: %q", o.pid, pid, o.out)
		}
	})
}

// TestPythonParkedLimits: time begins with the program, and what the interpreter
// used before is not counted as the program's.
func TestPythonParkedLimits(t *testing.T) {
	eachEngine(t, func(t *testing.T, e Engine) {
		d := newDriver(t, e, withLanguages(t))
		sb := pythonSandbox(t, d)
		const wall = 1500 * time.Millisecond
		prepare(t, sb)
		time.Sleep(wall + 100*time.Millisecond)
		ps := python("print(1)")
		ps.Limits.Wall = wall
		o := execute(t, sb, ps, "")
		if !o.exit.Success() || o.exit.Usage.Wall >= wall {
			t.Errorf("after it had waited for longer than its limit: %v, wall %v", o.exit, o.exit.Usage.Wall)
		}
		fresh := execute(t, pythonSandbox(t, d, func(s *isolation.Spec) { s.Tenant = "fresh" }), ps, "")
		if o.exit.Usage.CPU <= 0 || o.exit.Usage.CPU >= fresh.exit.Usage.CPU {
			t.Errorf("used %v of CPU time, with the interpreter's start %v", o.exit.Usage.CPU, fresh.exit.Usage.CPU)
		}
		// A script that is larger than a frame, and input after it.
		long := "x = '" + strings.Repeat("a", 300<<10) + "'\nimport sys\nprint(len(x), len(sys.stdin.read()))"
		prepare(t, sb)
		if o := execute(t, sb, python(long), strings.Repeat("b", 400<<10)); o.out != "307200 409600\n" {
			t.Errorf("%v %q %s", o.exit, o.out, o.errOut)
		}
	})
}

// TestPythonParkedLost: one that dies while it waits costs nobody a run, and
// what cannot be parked is run all the same.
func TestPythonParkedLost(t *testing.T) {
	eachEngine(t, func(t *testing.T, e Engine) {
		d := newDriver(t, e, withLanguages(t))
		sb := pythonSandbox(t, d)
		prepare(t, sb)
		pid := parkedPID(t, d)
		p, err := os.FindProcess(pid)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Kill(); err != nil {
			t.Fatal(err)
		}
		for n := 0; parkedPID(t, d) == pid; n++ {
			if n == 2000 {
				t.Fatal("the pool keeps a worker that is dead")
			}
			time.Sleep(5 * time.Millisecond)
		}
		if o := execute(t, sb, python("print(1)"), ""); o.out != "1\n" || o.pid == pid {
			t.Errorf("after its end: %v %q in %d", o.exit, o.out, o.pid)
		}
		small := pythonSandbox(t, d, func(s *isolation.Spec) { s.Resources.MemoryBytes = 11 << 20 })
		o := execute(t, small, python("print(1)"), "")
		again := execute(t, small, python("print(1)"), "")
		if o.exit.Reason != again.exit.Reason || o.out != again.out {
			t.Errorf("with little memory: %v, then %v", o.exit, again.exit)
		}
		sb = pythonSandbox(t, d, func(s *isolation.Spec) { s.Mounts = []isolation.Mount{{Source: t.TempDir(), Destination: "/d"}} })
		preparer, _ := isolation.As[isolation.Preparer](sb)
		if err := preparer.Prepare(t.Context(), "python"); !errors.Is(err, isolation.ErrUnsupported) {
			t.Errorf("Prepare beside a mount: %v", err)
		}
	})
}

// TestPythonBudget: an interpreter is parked only where the memory allows it.
func TestPythonBudget(t *testing.T) {
	d := newDriver(t, Wazero, withLanguages(t), func(c *Config) { c.MemoryBudget = workerBytes })
	sb := pythonSandbox(t, d)
	for range 2 {
		if o := execute(t, sb, python("print(1)"), ""); o.out != "1\n" {
			t.Fatalf("%v %q %s", o.exit, o.out, o.errOut)
		}
	}
	d.pool.mu.Lock()
	defer d.pool.mu.Unlock()
	for w := range d.pool.all {
		if w.parked != nil || w.weighed {
			t.Error("it was parked beyond the budget")
		}
	}
}

// TestPythonPackages imports from a mount, runs a file of it, and cannot write to
// it when it is read-only.
func TestPythonPackages(t *testing.T) {
	eachEngine(t, func(t *testing.T, e Engine) {
		d := newDriver(t, e, withLanguages(t))
		dir := t.TempDir()
		for name, text := range map[string]string{
			"pkg/__init__.py": "from .deep import value", "pkg/deep.py": "value = 'from a package'", "main.py": "import sys, pkg; print(pkg.value, sys.argv, __file__)",
		} {
			if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		sb := pythonSandbox(t, d, func(s *isolation.Spec) {
			s.Mounts = []isolation.Mount{{Source: dir, Destination: "/packages", ReadOnly: true}}
		})
		ps := python("import pkg; print(pkg.value)")
		ps.Env = []string{"PYTHONPATH=/packages"}
		if o := execute(t, sb, ps, ""); o.out != "from a package\n" {
			t.Errorf("%v %q %s", o.exit, o.out, o.errOut)
		}
		if o := execute(t, sb, isolation.ProcessSpec{Args: []string{"python3", "/packages/main.py", "x"}}, ""); o.out != "from a package ['/packages/main.py', 'x'] /packages/main.py\n" {
			t.Errorf("%v %q %s", o.exit, o.out, o.errOut)
		}
		if o := execute(t, sb, python("open('/packages/new', 'w')"), ""); o.exit.Code != 1 {
			t.Errorf("a read-only mount: %v %s", o.exit, o.errOut)
		}
		if o := execute(t, sb, python("open('/packages/../../../etc/passwd')"), ""); o.exit.Code != 1 || !strings.Contains(o.errOut, "Error") {
			t.Errorf("out of a mount: %v %q %s", o.exit, o.out, o.errOut)
		}
	})
}

// TestJavaScript runs programs on QuickJS.
func TestJavaScript(t *testing.T) {
	eachEngine(t, func(t *testing.T, e Engine) {
		d := newDriver(t, e, withLanguages(t))
		spec := isolation.Spec{Requirement: isolation.Arbitrary, Language: "js", Resources: isolation.Resources{MemoryBytes: 64 << 20}}
		sb, err := d.Create(t.Context(), "js", spec)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			code      string
			args      []string
			stdin     string
			out, says string
			status    int
		}{
			{code: "console.log(6*7)", out: "42\n"},
			{code: "console.log('a', {b: [1, 'x', {c: null}]}, new Map([[1, new Set([2])]]), 5n, [undefined], () => 1)",
				out: "a { b: [ 1, 'x', { c: null } ] } Map(1) { 1 => Set(1) { 2 } } 5n [ undefined ] [Function: (anonymous)]\n"},
			{code: "const o = {}; o.self = o; console.log(o, {a: {b: {c: {d: 1}}}})", out: "{ self: [Circular] } { a: { b: { c: [Object] } } }\n"},
			{code: "console.log(JSON.stringify(process.argv.slice(1)), scriptArgs.length)", args: []string{"a b", "--", "-x", "ü"}, out: `["a b","--","-x","ü"] 4` + "\n"},
			{code: "console.log(process.env.A, Object.keys(process.env).length)", out: "1 1\n"},
			{code: "const order = JSON.parse(require('fs').readFileSync(0, 'utf8')); console.log(order.n * 2)", stdin: `{"n": 21}`, out: "42\n"},
			{code: "console.log(require('node:fs').readFileSync('/dev/stdin').length)", stdin: strings.Repeat("x", 300<<10), out: "307200\n"},
			{code: "process.stdout.write('no newline'); console.error('problem')", out: "no newline", says: "problem\n"},
			{code: "process.exit(7)", status: 7},
			{code: "throw new TypeError('bad')", status: 1, says: "Uncaught TypeError: bad\n"},
			{code: "let x = = 1", status: 1, says: "SyntaxError"},
			{code: "function f() { null.x }\nf()", status: 1, says: "at f (<evalScript>:1:"},
			{code: "Promise.reject(new Error('late'))", status: 1, says: "late"},
			{code: "setTimeout(() => console.log('later'), 5); console.log(await Promise.resolve('now'))", out: "now\nlater\n"},
			{code: "require('http')", status: 1, says: "not node"},
			{code: "require('fs').readFileSync('/etc/passwd')", status: 1, says: "/etc/passwd"},
			{code: "var a = 1; a += 1; console.log(this === globalThis, a)", out: "true 2\n"},
			{code: "function f(n) { return n ? 1 + f(n - 1) : 0 }\nf(1e7)", status: 1, says: "RangeError: Maximum call stack size exceeded"},
		} {
			args := append([]string{"node", "-e", c.code, "--"}, c.args...)
			o := execute(t, sb, isolation.ProcessSpec{Args: args, Env: []string{"A=1"}, Limits: isolation.Limits{Wall: time.Minute}}, c.stdin)
			if o.exit.Reason != isolation.ReasonExited || o.exit.Code != c.status || o.out != c.out || !strings.Contains(o.errOut, c.says) {
				t.Errorf("%q: %v, stdout %.300q, stderr %.300q", c.code, o.exit, o.out, o.errOut)
			}
		}
		// Limits are those of any module.
		for want, l := range map[isolation.Reason]isolation.Limits{
			isolation.ReasonTimeoutWall: {Wall: 200 * time.Millisecond}, isolation.ReasonFuelExhausted: {Fuel: 100_000_000},
		} {
			if o := execute(t, sb, isolation.ProcessSpec{Args: []string{"node", "-e", "for (;;);"}, Limits: l}, ""); o.exit.Reason != want {
				t.Errorf("%v: %v", l, o.exit)
			}
		}
		if o := execute(t, sb, isolation.ProcessSpec{Args: []string{"node", "-e", "const a = []; for (;;) a.push(new Uint8Array(1 << 20).fill(1))"}}, ""); o.exit.Reason != isolation.ReasonOOM {
			t.Errorf("memory: %v %s", o.exit, o.errOut)
		}
		_, err = sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"./tool", "x"}}, isolation.Stdio{})
		if !errors.Is(err, isolation.ErrUnsupported) || isolation.OutcomeOf(err) != isolation.NotStarted {
			t.Errorf("a program that is no interpreter: %v", err)
		}
		preparer, _ := isolation.As[isolation.Preparer](sb)
		if err := preparer.Prepare(t.Context(), "js"); !errors.Is(err, isolation.ErrUnsupported) {
			t.Errorf("Prepare of js: %v", err)
		}
	})
}

// TestLanguages: what is not installed is refused, and Probe tells what is.
func TestLanguages(t *testing.T) {
	gone := Language{Name: "lua", Path: "/nonexistent", Digest: "sha256:" + strings.Repeat("0", 64)}
	js := installed(t, "js", testprog.QuickJS(t))
	d := newDriver(t, Wazero, func(c *Config) { c.Languages = []Language{gone, js} })
	f, err := d.Probe(t.Context())
	if err != nil || !f.Interpreted || !slices.Equal(f.Languages, []string{"js"}) || !slices.Equal(f.Runs, []isolation.Requirement{isolation.WasmCompiled, isolation.Arbitrary}) {
		t.Errorf("%v %v %v %v", f.Interpreted, f.Runs, f.Languages, err)
	}
	for _, c := range []struct {
		spec isolation.Spec
		want error
	}{
		{isolation.Spec{Requirement: isolation.Python}, isolation.ErrUnsupported},
		{isolation.Spec{Requirement: isolation.Arbitrary}, isolation.ErrUnsupported},
		{isolation.Spec{Requirement: isolation.Arbitrary, Language: "ruby"}, isolation.ErrUnsupported},
		{isolation.Spec{Requirement: isolation.ContainerImage}, isolation.ErrUnsupported},
		{isolation.Spec{Requirement: isolation.Arbitrary, Language: "lua"}, isolation.ErrNotFound},
		{isolation.Spec{Requirement: isolation.Arbitrary, Language: "js", Module: isolation.Module{Path: js.Path}}, isolation.ErrInvalidArgument},
	} {
		if _, err := d.Create(t.Context(), "x", c.spec); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v, want %v", c.spec, err, c.want)
		}
	}
	// The digest is held against the file when it is compiled.
	wrong := js
	wrong.Digest = gone.Digest
	d = newDriver(t, Wazero, func(c *Config) { c.Languages = []Language{wrong} })
	if _, err := d.Create(t.Context(), "x", isolation.Spec{Requirement: isolation.Arbitrary, Language: "js"}); !errors.Is(err, isolation.ErrFailedPrecondition) {
		t.Errorf("a module that is not the one of its digest: %v", err)
	}
	for _, bad := range [][]Language{{{Name: "Bad", Path: "/x", Digest: gone.Digest}}, {{Name: "js", Path: "/x", Digest: "sha1:0"}}, {js, js}} {
		if _, err := New(Config{Engine: Wazero, Worker: wazeroWorker, Languages: bad}); !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// TestPythonTurns has many callers take turns on one core with interpreters that
// are started in between. Nobody waits for ever, and no slot is lost.
func TestPythonTurns(t *testing.T) {
	eachEngine(t, func(t *testing.T, e Engine) {
		d := newDriver(t, e, withLanguages(t), func(c *Config) { c.Runnable = 1 })
		var wg sync.WaitGroup
		for i := range 5 {
			sb := pythonSandbox(t, d)
			wg.Go(func() {
				for n := range 3 {
					code := fmt.Sprintf("import time; time.sleep(.01); print(%d)", n)
					var out bytes.Buffer
					p, err := sb.Exec(t.Context(), python(code), isolation.Stdio{Stdout: &out})
					if err != nil {
						t.Error(err)
						return
					}
					if i == 0 && n == 1 {
						// One is ended in the middle of it all.
						if err := p.Kill(t.Context(), isolation.SIGKILL); err != nil {
							t.Error(err)
						}
					}
					if x, err := p.Wait(t.Context()); err != nil || x.Reason == isolation.ReasonExited && out.String() != fmt.Sprintln(n) || x.Reason != isolation.ReasonExited && i != 0 {
						t.Errorf("%v %v %q", x, err, out.String())
					}
				}
			})
		}
		wg.Wait()
		for n := 0; len(d.slots) > 0; n++ {
			if n == 2000 {
				t.Fatalf("%d slots are still taken", len(d.slots))
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
}
