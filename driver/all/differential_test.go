package all_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/all"
	"github.com/axocoatl/isolation/engine"
	"github.com/axocoatl/isolation/internal/testprog"
	"github.com/axocoatl/isolation/test/testvm"
)

func newEngine(t *testing.T) *engine.Engine {
	t.Helper()
	state := t.TempDir()
	c := all.Config{StateDir: state, Worker: testprog.Worker(t)}
	if runtime.GOOS == "linux" {
		c.Guest, c.Runtimes = testprog.Guest(t), map[string]string{}
		for _, name := range all.Runtimes() {
			path, err := testprog.FindRuntime(name)
			if err != nil {
				t.Logf("%s: %v", name, err) // formsOf says what follows
			}
			c.Runtimes[name] = path
		}
		if err := testvm.Try(state, c.Guest); err != nil {
			t.Logf("microvm: %v", err)
		}
	}
	reg, err := all.Registry(c)
	if err != nil {
		t.Fatal(err)
	}
	e, err := engine.New(engine.Config{Registry: reg, StateDir: state, ProbeTimeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// form is a way to have the same program: compiled for a tier.
type form struct {
	name    string // of the tier, or of the engine
	tier    string
	request func(t *testing.T, program string) engine.Request
}

// formsOf lists the forms that run here.
func formsOf(t *testing.T, e *engine.Engine, all []form) []form {
	t.Helper()
	var out []form
	for _, f := range all {
		_, err := e.Explain(t.Context(), f.request(t, "exit"))
		switch {
		case err == nil:
			out = append(out, f)
		case os.Getenv("AXO_REQUIRE") != "":
			t.Fatalf("%s: %v", f.name, err)
		default:
			t.Logf("%s: SKIPPED, NOT PROVED: %v", f.name, err)
		}
	}
	return out
}

var forms = append(append(slices.Clone(tierForms), engineForms()...), machineForm)

// machineForm has the container's program copied into a machine, which is
// emulated here.
var machineForm = form{"microvm", "microvm", func(t *testing.T, program string) engine.Request {
	native, tier := testprog.GoNative(t, program), isolation.TierMicroVM
	return engine.Request{
		Tier: &tier, AllowEmulated: true,
		Spec:    isolation.Spec{Requirement: isolation.Arbitrary},
		CopyIn:  []engine.Copy{{Host: native, Guest: "/tmp/program"}},
		Process: isolation.ProcessSpec{Args: []string{"/tmp/program"}},
	}
}}

// engineForms are the container's form once more for each runtime.
func engineForms() []form {
	var out []form
	for _, name := range all.Runtimes() {
		out = append(out, form{name, "oci", func(t *testing.T, program string) engine.Request {
			r := tierForms[len(tierForms)-1].request(t, program)
			r.Engine = name
			return r
		}})
	}
	return out
}

var tierForms = []form{
	{"none", "none", func(t *testing.T, program string) engine.Request {
		return engine.Request{
			Spec:    isolation.Spec{Requirement: isolation.NativeTrusted},
			Process: isolation.ProcessSpec{Args: []string{testprog.GoNative(t, program)}},
		}
	}},
	{"wasm", "wasm", func(t *testing.T, program string) engine.Request {
		return engine.Request{
			Spec:    isolation.Spec{Requirement: isolation.WasmCompiled, Module: isolation.Module{Path: testprog.Go(t, program)}},
			Process: isolation.ProcessSpec{Args: []string{program}},
		}
	}},
	{"oci", "oci", func(t *testing.T, program string) engine.Request {
		native, tier := testprog.GoNative(t, program), isolation.TierOCI
		return engine.Request{
			Tier: &tier,
			Spec: isolation.Spec{
				Requirement: isolation.Arbitrary,
				Mounts:      []isolation.Mount{{Source: filepath.Dir(native), Destination: "/program", ReadOnly: true}},
			},
			Process: isolation.ProcessSpec{Args: []string{"/program/" + filepath.Base(native)}},
		}
	}},
}

// TestDifferential runs the same programs in every tier: same bytes, same end.
func TestDifferential(t *testing.T) {
	e := newEngine(t)
	here := formsOf(t, e, forms)
	data := t.TempDir()
	sales := "day,region,amount\n"
	sum := 0
	for i := range 5000 {
		sales += fmt.Sprintf("%d,r%d,%d\n", i%365, i%7, i*3)
		sum += i * 3
	}
	for name, text := range map[string]string{"sales.csv": sales, "empty.csv": "a,b\n", "notes.txt": "not a table\n"} {
		if err := os.WriteFile(filepath.Join(data, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	random := make([]byte, 16<<20)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(random)

	for _, c := range []struct {
		name, program string
		args          []string
		stdin         []byte
		dir           bool // args end with the data directory
		check         func(t *testing.T, stdout []byte, exit isolation.Exit)
	}{
		{name: "json tool", program: "tool",
			stdin: []byte(`{"customer":"A","items":[{"name":"bolt","price":0.25,"count":400},{"name":"gear","price":12.5,"count":3}]}`),
			check: func(t *testing.T, out []byte, _ isolation.Exit) {
				var v struct{ Total float64 }
				if err := json.Unmarshal(out, &v); err != nil || v.Total != 137.5 {
					t.Errorf("%s, %v", out, err)
				}
			}},
		{name: "bad json", program: "tool", stdin: []byte(`{"customer":`), check: func(t *testing.T, _ []byte, x isolation.Exit) {
			if x.Code != 2 {
				t.Errorf("%v", x)
			}
		}},
		{name: "sha-256 of 16 MB", program: "sha256", args: []string{"-"}, stdin: random, check: func(t *testing.T, out []byte, _ isolation.Exit) {
			if want := fmt.Sprintf("%x", sha256.Sum256(random)); !strings.Contains(string(out), want) {
				t.Errorf("%s, want %s", out, want)
			}
		}},
		{name: "16 MB there and back", program: "cat", stdin: random, check: func(t *testing.T, out []byte, _ isolation.Exit) {
			if !bytes.Equal(out, random) {
				t.Error("the bytes are others")
			}
		}},
		{name: "csv summary", program: "csvsum", dir: true, check: func(t *testing.T, out []byte, _ isolation.Exit) {
			if !strings.Contains(string(out), fmt.Sprintf(`"amount":%d`, sum)) {
				t.Errorf("%s", out)
			}
		}},
		{name: "n-body", program: "nbody", args: []string{"20000"}, check: func(t *testing.T, out []byte, _ isolation.Exit) {
			if !strings.Contains(string(out), "-0.16") {
				t.Errorf("%s", out)
			}
		}},
		{name: "arguments", program: "conform", args: []string{"args", "", "a b", "\"", "ünïcode", "new\nline", "--"},
			check: func(t *testing.T, out []byte, _ isolation.Exit) {
				if string(out) != "\x00a b\x00\"\x00ünïcode\x00new\nline\x00--\x00" {
					t.Errorf("%q", out)
				}
			}},
		{name: "both streams and a status", program: "exit", args: []string{"42", "out", "err"}, check: func(t *testing.T, out []byte, x isolation.Exit) {
			if x.Code != 42 || string(out) != "out\n" {
				t.Errorf("%v %q", x, out)
			}
		}},
		{name: "status 255", program: "exit", args: []string{"255"}, check: func(t *testing.T, _ []byte, x isolation.Exit) {
			if x.Code != 255 || x.Reason != isolation.ReasonExited {
				t.Errorf("%v", x)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			type end struct {
				stdout, stderr []byte
				exit           isolation.Exit
			}
			var first end
			for i, f := range here {
				r := f.request(t, c.program)
				r.Process.Args = append(r.Process.Args, c.args...)
				r.Process.Limits.Wall = time.Minute
				if c.dir {
					switch f.name {
					case "none":
						r.Process.Args = append(r.Process.Args, data)
					case "microvm":
						r.CopyIn = append(r.CopyIn, engine.Copy{Host: data, Guest: "/tmp/data"})
						r.Process.Args = append(r.Process.Args, "/tmp/data")
					default:
						r.Spec.Mounts = append(r.Spec.Mounts, isolation.Mount{Source: data, Destination: "/data", ReadOnly: true})
						r.Process.Args = append(r.Process.Args, "/data")
					}
				}
				var out, errOut bytes.Buffer
				r.Stdin, r.Stdout, r.Stderr = bytes.NewReader(c.stdin), &out, &errOut
				res, err := e.Run(t.Context(), r)
				if err != nil {
					t.Fatalf("%s: %v", f.name, err)
				}
				c.check(t, out.Bytes(), res.Exit)
				if res.StdoutBytes != int64(out.Len()) || res.StderrBytes != int64(errOut.Len()) {
					t.Errorf("%s: counted %d and %d bytes, got %d and %d", f.name, res.StdoutBytes, res.StderrBytes, out.Len(), errOut.Len())
				}
				if i == 0 {
					first = end{out.Bytes(), errOut.Bytes(), res.Exit}
					continue
				}
				if !bytes.Equal(out.Bytes(), first.stdout) {
					t.Errorf("stdout of %s is %.200q, of %s %.200q", f.name, out.Bytes(), here[0].name, first.stdout)
				}
				if res.Exit.Reason != first.exit.Reason || res.Exit.Code != first.exit.Code {
					t.Errorf("%s ends with %v, %s with %v", f.name, res.Exit, here[0].name, first.exit)
				}
				if !bytes.Equal(errOut.Bytes(), first.stderr) {
					t.Errorf("stderr of %s is %.200q, of %s %.200q", f.name, errOut.Bytes(), here[0].name, first.stderr)
				}
			}
		})
	}
}

// TestDifferences are the ends that must differ: what isolation takes away. The
// column of tier none is the control that shows that the program would do it.
func TestDifferences(t *testing.T) {
	e := newEngine(t)
	here := formsOf(t, e, forms)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("canary"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, program string
		args          []string
		want          map[string]int // by tier
	}{
		{"start a program", "fork", nil, map[string]int{"none": 0, "wasm": 3, "oci": 0, "microvm": 0}},
		{"read a file of the host", "fs", []string{"read", secret}, map[string]int{"none": 0, "wasm": 1, "oci": 1, "microvm": 1}},
	} {
		for _, f := range here {
			r := f.request(t, c.program)
			r.Process.Args = append(r.Process.Args, c.args...)
			r.Capture = engine.DefaultCapture
			res, err := e.Run(t.Context(), r)
			if err != nil {
				t.Fatalf("%s, %s: %v", c.name, f.name, err)
			}
			if want := c.want[f.tier]; res.Exit.Code != want {
				t.Errorf("%s: %s ends with %v and %q, want status %d", c.name, f.name, res.Exit, res.Stdout, want)
			}
			if leaked := strings.Contains(fmt.Sprint(res.Stdout, res.Stderr), "canary"); leaked && f.name != "none" {
				t.Errorf("%s: %s got at the secret", c.name, f.name)
			}
		}
	}
}

// TestMemoryHog takes all that it can get, in each tier that bounds memory.
func TestMemoryHog(t *testing.T) {
	e := newEngine(t)
	here := formsOf(t, e, forms)
	for _, f := range here {
		r := f.request(t, "hog")
		r.Spec.Resources.MemoryBytes = 64 << 20
		r.Process.Limits.Wall = time.Minute
		r.Capture = engine.DefaultCapture
		res, err := e.Run(t.Context(), r)
		if isolation.Class(err) == isolation.ErrUnsupported || err != nil && f.name == "none" {
			t.Logf("%s: SKIPPED, NOT PROVED: %v", f.name, err)
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", f.name, err)
		}
		if res.Exit.Reason != isolation.ReasonOOM || len(res.Exit.LimitsHit) == 0 || res.Exit.LimitsHit[0].Limit != isolation.LimitMemory {
			t.Errorf("%s ends with %v %v, want oom", f.name, res.Exit, res.Exit.LimitsHit)
		}
		if p := res.Usage.PeakMemoryBytes; p <= 16<<20 || p > 72<<20 {
			t.Errorf("%s: peak of %d MiB under a limit of 64", f.name, p>>20)
		}
	}
}

// TestFloodOfTwoGB keeps head and tail of 2 GB of output, from an emulated machine
// of 64 MB, in bounded memory.
func TestFloodOfTwoGB(t *testing.T) {
	e := newEngine(t)
	here := formsOf(t, e, append(slices.Clone(tierForms), machineForm))
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for _, f := range here {
		size := int64(2 << 30)
		if f.name == "microvm" {
			size = 64 << 20 // of an emulated machine less comes in a second
		}
		r := f.request(t, "flood")
		r.Process.Args = append(r.Process.Args, fmt.Sprint(size))
		r.Process.Limits.Wall, r.Process.Limits.OutputBytes = 2*time.Minute, 4<<30
		r.Capture = engine.Capture{Head: 1 << 10, Tail: 1 << 10}
		res, err := e.Run(t.Context(), r)
		if err != nil {
			t.Fatalf("%s: %v", f.name, err)
		}
		if !res.Exit.Success() || res.StdoutBytes != size || !res.Truncated {
			t.Errorf("%s: %v, %d bytes, truncated %t", f.name, res.Exit, res.StdoutBytes, res.Truncated)
		}
	}
	var after runtime.MemStats
	runtime.ReadMemStats(&after)
	if grown := int64(after.Sys) - int64(before.Sys); grown > 64<<20 {
		t.Errorf("the host program took %d MiB more from the system", grown>>20)
	}
}

// TestStdinNeverEnds: a program that ends does not wait for its input, and one
// whose input has no end is stopped at its deadline.
func TestStdinNeverEnds(t *testing.T) {
	e := newEngine(t)
	here := formsOf(t, e, append(slices.Clone(tierForms), machineForm))
	for _, f := range here {
		pr, pw := io.Pipe()
		r := f.request(t, "exit")
		r.Process.Args, r.Stdin = append(r.Process.Args, "5"), pr
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		res, err := e.Run(ctx, r)
		cancel()
		if err != nil || res.Exit.Code != 5 {
			t.Errorf("%s: %v %v", f.name, res.Exit, err)
		}
		pw.Close()
		r = f.request(t, "sha256")
		r.Process.Args = append(r.Process.Args, "-")
		r.Stdin, r.Process.Limits.Wall = zeros{}, 300*time.Millisecond
		res, err = e.Run(t.Context(), r)
		if err != nil || res.Exit.Reason != isolation.ReasonTimeoutWall {
			t.Errorf("%s: %v %v", f.name, res.Exit, err)
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
