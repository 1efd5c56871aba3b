package oci_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/oci"
)

// python makes a driver, or skips where the host has no Python.
func python(t testing.TB) isolation.Driver {
	t.Helper()
	if _, err := exec.LookPath("python3"); err != nil {
		if os.Getenv("AXO_REQUIRE") != "" {
			t.Fatal(err)
		}
		t.Skip("SKIPPED: no python3 on this host")
	}
	d := config(oci.Config{}).New(t)
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func sandbox(t testing.TB, d isolation.Driver, id string, prepare bool) isolation.Sandbox {
	t.Helper()
	sb, err := d.Create(context.Background(), id, isolation.Spec{Requirement: isolation.Python, Resources: isolation.Resources{MemoryBytes: 256 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sb.Delete(context.Background()) })
	if prepare {
		p, ok := isolation.As[isolation.Preparer](sb)
		if !ok {
			t.Fatal("no ability prepare")
		}
		if err := p.Prepare(t.Context(), "python"); err != nil {
			t.Fatal(err)
		}
	}
	return sb
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

// TestPreparedIsTheSame compares what programs do in an interpreter that was
// started ahead with what they do in one that was not.
func TestPreparedIsTheSame(t *testing.T) {
	d := python(t)
	for i, c := range []struct {
		code  string
		args  []string
		env   []string
		cwd   string
		limit isolation.Limits
	}{
		{code: "print(6*7)"},
		{code: "import sys; sys.exit(7)"},
		{code: "import sys; sys.exit('no')"},
		{code: "raise ValueError('x')"},
		{code: "def f(n):\n  return 1/n\ntry:\n  f(0)\nexcept ZeroDivisionError as e:\n  raise RuntimeError('y') from e"},
		{code: "def broken(:\n  pass"},
		{code: "import nosuchmodule"},
		{code: "import sys; print(sys.argv, sys.flags, sys.path[0] == '', __name__, sorted(globals()))", args: []string{"a", "", "ü"}},
		{code: "import os; print(sorted(os.environ.items()))", env: []string{"A=1", "HOME=/tmp", "B=x=y"}},
		{code: "import os; print(os.getcwd(), os.getuid(), os.getgid(), os.getgroups(), os.umask(0), os.getpgrp()==os.getpid(), os.getsid(0)==os.getpid())", cwd: "/usr"},
		{code: "import os; print(sorted(os.listdir('/proc/self/fd'))[:3], len(os.listdir('/proc/self/fd')))"},
		{code: "import resource; print([resource.getrlimit(i) for i in range(15)])", limit: isolation.Limits{OpenFiles: 77}},
		{code: "print(open('/proc/self/status').read().split('CapInh')[1].split('Speculation')[0])"},
		{code: "import sys; print(len(sys.stdin.read()), sys.stdin.buffer.seekable(), sys.stdout.isatty(), sys.stdout.encoding, sys.stdout.line_buffering)"},
		{code: "import os; os.abort()"},
		{code: "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"},
		{code: "raise KeyboardInterrupt"},
		{code: "import atexit; atexit.register(print, 'bye'); print('hi', flush=False)"},
		{code: "import threading, time; threading.Thread(target=lambda: (time.sleep(.05), print('thread'))).start()"},
		{code: "import subprocess; print(subprocess.run(['echo', 'child'], capture_output=True).stdout)"},
		{code: "import os\nif os.fork() == 0: os._exit(3)\nprint(os.waitstatus_to_exitcode(os.wait()[1]))"},
		{code: "import time; print(time.tzname)", env: []string{"TZ=EST5EDT"}},
		{code: "print('x' * 200000)"},
		{code: "while True: pass", limit: isolation.Limits{Wall: 200 * time.Millisecond}},
		{code: "while True: pass", limit: isolation.Limits{CPU: 150 * time.Millisecond}},
		{code: "b = []\nwhile True: b.append(bytearray(1 << 24))"},
		{code: "import sys; sys.setrecursionlimit(100000)\ndef f(): f()\nf()"},
		{code: "class E(BaseException): pass\nraise E('z')"},
		// What sees the end of the interpreter.
		{code: "import json\nclass A:\n  __slots__ = ()\n  def __del__(self): print('gone', json.dumps(1))\njson.a = A()"},
		{code: "f = open('/tmp/f', 'w')\nf.write('kept')\nimport os\nif os.fork(): os.wait(); print(open('/tmp/f').read())"},
		{code: "def g():\n  try: yield\n  finally: print('left')\na = g()\nnext(a)"},
		{code: "import weakref, re\nclass A: pass\na = A()\nr = weakref.ref(a, lambda r: print('gone'))"},
		{code: "import sys, io\nclass W(io.StringIO):\n  def flush(self): sys.__stdout__.write('flushed')\nsys.stdout = W()"},
		{code: "import os\nprint('lost')\nos.close(1)"},
		{code: "import sys; sys.exit(-1)"},
		{code: "import sys; sys.exit(2**40 + 3)"},
		{code: "import sys; sys.exit(True)"},
	} {
		ps := isolation.ProcessSpec{Args: append([]string{"python3", "-c", c.code}, c.args...), Env: append([]string{"PATH=/usr/bin:/bin"}, c.env...), Cwd: c.cwd, Limits: c.limit}
		plain := execute(t, sandbox(t, d, fmt.Sprintf("plain-%d", i), false), ps, "some input")
		sb := sandbox(t, d, fmt.Sprintf("ahead-%d", i), true)
		ahead := execute(t, sb, ps, "some input")
		if plain.exit.Reason != ahead.exit.Reason || plain.exit.Code != ahead.exit.Code || plain.exit.Signal != ahead.exit.Signal {
			t.Errorf("%q: %v, prepared %v: %s", c.code, plain.exit, ahead.exit, ahead.errOut)
		}
		if plain.out != ahead.out {
			t.Errorf("%q printed\n%s\nprepared\n%s", c.code, plain.out, ahead.out)
		}
		if plain.errOut != ahead.errOut {
			t.Errorf("%q said\n%s\nprepared\n%s", c.code, plain.errOut, ahead.errOut)
		}
		if ahead.exit.Survivors != 0 {
			t.Errorf("%q: %d survivors", c.code, ahead.exit.Survivors)
		}
	}
}

// TestPreparedServesOnce: the program is the process that was started ahead, the
// next one is another, and their seeds differ.
func TestPreparedServesOnce(t *testing.T) {
	d := python(t)
	const code = "import os, random; print(os.getpid(), hash('axo'), random.random())"
	ps := isolation.ProcessSpec{Args: []string{"python3", "-c", code}}
	pids := map[string]bool{}
	seeds := map[string]bool{}
	for i := range 8 {
		sb := sandbox(t, d, fmt.Sprintf("once-%d", i), true)
		for range 2 {
			f := strings.Fields(execute(t, sb, ps, "").out)
			if len(f) != 3 {
				t.Fatalf("%q", f)
			}
			pids[fmt.Sprint(i, f[0])] = true
			if seeds[f[1]] || seeds[f[2]] {
				t.Errorf("seeds %v came twice", f[1:])
			}
			seeds[f[1]], seeds[f[2]] = true, true
		}
	}
	if len(pids) != 16 {
		t.Errorf("%d processes, want 16", len(pids))
	}
}

// TestPreparedDoesNotFit: what the interpreter would have seen at its start makes
// it start anew.
func TestPreparedDoesNotFit(t *testing.T) {
	d := python(t)
	for i, c := range []struct {
		ps   isolation.ProcessSpec
		want string
	}{
		{isolation.ProcessSpec{Args: []string{"python3", "-c", "print(hash('axo') == hash('axo'), __import__('sys').flags.hash_randomization)"}, Env: []string{"PYTHONHASHSEED=0"}}, "True 0\n"},
		{isolation.ProcessSpec{Args: []string{"python3", "-I", "-c", "print(__import__('sys').flags.isolated)"}}, "1\n"},
		{isolation.ProcessSpec{Args: []string{"sh", "-c", "echo shell"}}, "shell\n"},
	} {
		if got := execute(t, sandbox(t, d, fmt.Sprintf("misfit-%d", i), true), c.ps, ""); got.out != c.want || !got.exit.Success() {
			t.Errorf("%q: %q, %v: %s", c.ps.Args, got.out, got.exit, got.errOut)
		}
	}
}

// onePython is a store of one image, which has a Python and says what images of
// Python do.
type onePython struct{ dir string }

const pythonImage = "sha256:2222222222222222222222222222222222222222222222222222222222222222"

func (i onePython) Open(_ context.Context, ref string) (*oci.RootFS, error) {
	if ref != pythonImage {
		return nil, isolation.ErrNotFound
	}
	fs := &oci.RootFS{Digest: ref, Layers: []string{i.dir}}
	fs.Config.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8", "PYTHON_VERSION=3.11.2", "PYTHONDONTWRITEBYTECODE=1"}
	return fs, nil
}

func (i onePython) TempDir() (string, func() error, error) {
	dir, err := os.MkdirTemp(filepath.Dir(i.dir), "probe")
	return dir, func() error { return os.Remove(dir) }, err
}

// TestPreparedInAnImage: an interpreter that was started ahead has the environment
// of its image from the start, and serves programs that have it too.
func TestPreparedInAnImage(t *testing.T) {
	python(t).Close()
	layer := filepath.Join(t.TempDir(), "layer")
	if err := os.MkdirAll(filepath.Join(layer, "tmp"), 0o755); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{"usr": "opt/host", "bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64"} {
		if err := os.Symlink(to, filepath.Join(layer, from)); err != nil {
			t.Fatal(err)
		}
	}
	d := newDriver(t, oci.Config{Images: onePython{layer}})
	spec := isolation.Spec{
		Requirement: isolation.Python, Root: isolation.Root{Image: pythonImage},
		Mounts: []isolation.Mount{{Source: "/usr", Destination: "/opt/host", ReadOnly: true}},
	}
	for _, c := range []struct {
		env  []string
		want string
	}{
		{nil, "True True C.UTF-8 utf-8\n"}, {[]string{"A=b"}, "True True C.UTF-8 utf-8\n"},
		{[]string{"PYTHONDONTWRITEBYTECODE="}, "False False C.UTF-8 utf-8\n"}, {[]string{"PYTHONIOENCODING=latin-1"}, "False True C.UTF-8 iso8859-1\n"},
	} {
		sb, err := d.Create(t.Context(), nextID(), spec)
		if err != nil {
			t.Fatal(err)
		}
		defer sb.Delete(context.Background())
		p, ok := isolation.As[isolation.Preparer](sb)
		if !ok {
			t.Fatal("no ability prepare")
		}
		if err := p.Prepare(t.Context(), "python"); err != nil {
			t.Fatal(err)
		}
		// What is frozen is what the bootstrap of one that was started ahead froze.
		o := execute(t, sb, isolation.ProcessSpec{Env: c.env, Args: []string{
			"python3", "-c", "import gc, os, sys; print(gc.get_freeze_count() > 0, sys.dont_write_bytecode, os.environ['LANG'], sys.stdout.encoding)",
		}}, "")
		if o.out != c.want {
			t.Errorf("%q: %q, want %q: %s", c.env, o.out, c.want, o.errOut)
		}
	}
}

// TestPreparedBadDirectory: a start that must fail fails as ever, and a program
// whose interpreter died before it began runs in another.
func TestPreparedBadDirectory(t *testing.T) {
	d := python(t)
	sb := sandbox(t, d, "nodir", true)
	ps := isolation.ProcessSpec{Args: []string{"python3", "-c", "print(1)"}, Cwd: "/no/such"}
	if _, err := sb.Exec(t.Context(), ps, isolation.Stdio{}); isolation.OutcomeOf(err) != isolation.NotStarted || isolation.Class(err) != isolation.ErrNotFound {
		t.Errorf("%v", err)
	}
	sb = sandbox(t, d, "killed", true)
	if o := execute(t, sb, isolation.ProcessSpec{Args: []string{"sh", "-c", "kill -9 -1"}}, ""); o.exit.Reason != isolation.ReasonSignaled {
		t.Logf("kill: %v", o.exit) // the shell may outlive it
	}
	ps.Cwd = ""
	if o := execute(t, sb, ps, ""); o.out != "1\n" {
		t.Errorf("%v %q %s", o.exit, o.out, o.errOut)
	}
}

func BenchmarkPython(b *testing.B) {
	d := python(b)
	ps := isolation.ProcessSpec{Args: []string{"python3", "-c", "pass"}}
	b.Run("host", func(b *testing.B) {
		for b.Loop() {
			if err := exec.Command("python3", "-c", "pass").Run(); err != nil {
				b.Fatal(err)
			}
		}
	})
	for _, prepare := range []bool{false, true} {
		b.Run(fmt.Sprintf("prepared=%v", prepare), func(b *testing.B) {
			n := 0
			for b.Loop() {
				b.StopTimer()
				n++
				sb := sandbox(b, d, fmt.Sprintf("bench-%v-%d", prepare, n), prepare)
				b.StartTimer()
				p, err := sb.Exec(context.Background(), ps, isolation.Stdio{})
				if err != nil {
					b.Fatal(err)
				}
				if e, err := p.Wait(context.Background()); err != nil || !e.Success() {
					b.Fatal(e, err)
				}
				b.StopTimer()
				if err := sb.Delete(context.Background()); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
