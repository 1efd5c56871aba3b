package wasm

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/testprog"
)

// seen is all that a caller sees of a run that must not depend on the
// engine.
type seen struct {
	stdout, stderr string
	reason         isolation.Reason
	code           int
	detail         string
	hits           string // names of the limits that were hit
}

// differs lists what the engines may do differently, and why: by case, what is
// left out of the comparison.
var differs = map[string]struct {
	why    string
	ignore func(*seen)
}{
	"wat/flood": {"the worker is killed in the middle of a write: how much was written before is chance", func(o *seen) { o.stdout = "" }},
}

// TestEnginesAgree runs a corpus of modules on both engines: same bytes, same
// end.
func TestEnginesAgree(t *testing.T) {
	drivers := map[Engine]*Driver{Wazero: newDriver(t, Wazero), Wasmtime: newDriver(t, Wasmtime)}
	const wall = 300 * time.Millisecond
	random := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(random)
	type program struct {
		name, path string
		args       []string
		env        []string
		stdin      []byte
		limits     isolation.Limits
		memory     int64
		mount      bool // a directory of its own, at /data
	}
	var corpus []program
	add := func(p program) { corpus = append(corpus, p) }
	for _, name := range testprog.Modules() {
		if slices.Contains([]string{
			"empty", "garbage", "truncated", "version", "component", "nostart", "badimport", "badsig", "invalid",
			"bigfunction", "manyfunctions", "nested", "bigmemory",
		}, name) {
			continue // TestBadModules
		}
		p := program{name: "wat/" + name, path: testprog.Wat(t, name), stdin: random, limits: isolation.Limits{Wall: wall}}
		switch name {
		case "flood":
			p.limits = isolation.Limits{OutputBytes: 1 << 20}
		case "memgrow", "memtouch":
			p.memory, p.limits = 48<<20, isolation.Limits{Wall: time.Minute}
		case "loop", "fib", "bulkline", "sleep60", "bulkfill", "startloop":
		default:
			p.limits = isolation.Limits{Wall: time.Minute}
		}
		add(p)
	}
	add(program{name: "fuel", path: testprog.Wat(t, "loop"), limits: isolation.Limits{Fuel: 1e7}})
	long := isolation.Limits{Wall: time.Minute}
	tool := []byte(`{"customer":"A","items":[{"name":"bolt","price":0.25,"count":400},{"name":"gear","price":12.5,"count":3}]}`)
	for _, p := range []program{
		{name: "conform", args: []string{"args", "", "a b", "ünïcode", "new\nline", "\xff"}},
		{name: "conform", args: []string{"env"}, env: []string{"A=1", "B=", "C=a=b", "Ü=ü"}},
		{name: "conform", args: []string{"exit7"}},
		{name: "conform", args: []string{"echo"}, stdin: random},
		{name: "conform", args: []string{"crash"}},
		{name: "tool", stdin: tool},
		{name: "tool", stdin: []byte(`{"customer":`)},
		{name: "sha256", args: []string{"-"}, stdin: random},
		{name: "nbody", args: []string{"10000"}},
		{name: "recurse", memory: 64 << 20},
		{name: "hog", memory: 64 << 20},
		{name: "dial"},
		{name: "conform", args: []string{"fill", "100000"}, mount: true},
		{name: "conform", args: []string{"flooderr", "300000"}},
		{name: "fs", mount: true, args: strings.Fields("write /data/a one append /data/a two read /data/a mkdir /data/d " +
			"write /data/d/x y ls /data stat /data/a stat /data/d rename /data/a /data/b read /data/a read /data/b " +
			"symlink b /data/l read /data/l readlink /data/l link /data/b /data/h truncate /data/h 2 read /data/b " +
			"chtimes /data/b rm /data/d rm /data/d/x rm /data/d ls /data read /data/../etc/passwd")},
		{name: "rawfs", mount: true, args: strings.Fields("open missing 0 r 1 open .. 2 d 1 open /etc 2 d 1 open ../x 1 w 1 " +
			"open new 5 w 1 open new 5 w 1 open new/x 0 r 1 open new 2 d 1 mkdir d mkdir d open d 1 w 1 open d 2 d 1 " +
			"symlink ../x out symlink /etc abs symlink loop loop open loop 0 r 1 symlink new in open in 0 r 1 " +
			"unlink d rmdir new rmdir d rmdir d unlink gone readlink new readlink in stat gone 0 rename gone x " +
			"rename new moved stat moved 1 link moved hard 0 link gone hard 0")},
	} {
		p.path, p.limits = testprog.Go(t, p.name), long
		p.name = "go/" + p.name
		add(p)
	}
	for _, p := range []program{
		{name: "hello"},
		{name: "nbody", args: []string{"10000"}},
		{name: "sha256", stdin: random},
		{name: "conform", args: []string{"args", "", "a b", "ü"}},
		{name: "conform", args: []string{"env"}, env: []string{"A=1", "B="}},
		{name: "conform", args: []string{"echo"}, stdin: random},
		{name: "conform", args: []string{"hog", "256000000"}, memory: 32 << 20},
		{name: "conform", args: []string{"crash"}},
		{name: "conform", args: []string{"exit7"}},
		{name: "conform", args: []string{"list", "/data"}, mount: true},
		{name: "conform", args: []string{"list", "/other"}, mount: true},
	} {
		p.path, p.limits = testprog.C(t, p.name), long
		p.name = "c/" + p.name
		add(p)
	}
	for _, p := range []program{
		{args: []string{"args", "", "a b", "ü"}},
		{args: []string{"env"}, env: []string{"A=1", "B="}},
		{args: []string{"echo"}, stdin: random},
		{args: []string{"words"}, stdin: []byte("the cat and the hat\n")},
		{args: []string{"words"}, stdin: []byte("\xff")}, // not UTF-8
		{args: []string{"exit", "7"}},
		{args: []string{"panic", "at the disco"}},
		{args: []string{"index"}},
		{args: []string{"overflow"}},
		{args: []string{"hog"}, memory: 32 << 20},
		{args: []string{"spin"}, limits: isolation.Limits{Wall: wall}},
		{args: []string{"thread"}},
		{args: []string{"dial"}},
		{args: []string{"clock"}},
		{args: []string{"map"}},
		{args: []string{"files", "/data"}, mount: true},
		{args: []string{"files", "/other"}, mount: true},
		{args: []string{"files", "/data"}},
	} {
		if p.limits.Wall == 0 {
			p.limits = long
		}
		p.name, p.path = "rust", testprog.Rust(t, "conform")
		add(p)
	}
	for _, p := range corpus {
		t.Run(p.name+" "+strings.Join(p.args[:min(len(p.args), 2)], " "), func(t *testing.T) {
			t.Parallel()
			var first seen
			for _, e := range []Engine{Wazero, Wasmtime} {
				spec := wasmSpec(p.path)
				spec.Resources.MemoryBytes = p.memory
				if p.mount {
					dir := t.TempDir()
					if err := os.WriteFile(filepath.Join(dir, "file"), []byte("text"), 0o644); err != nil {
						t.Fatal(err)
					}
					spec.Mounts = []isolation.Mount{{Source: dir, Destination: "/data"}}
				}
				ps := isolation.ProcessSpec{Args: append([]string{"prog"}, p.args...), Env: p.env, Limits: p.limits}
				r := run(t, drivers[e], spec, ps, bytes.NewReader(p.stdin))
				o := seen{r.stdout, r.stderr, r.exit.Reason, r.exit.Code, r.exit.Detail, ""}
				for _, h := range r.exit.LimitsHit {
					o.hits += string(h.Limit) + " "
				}
				if d, ok := differs[p.name]; ok {
					d.ignore(&o)
				}
				if e == Wazero {
					first = o
				} else if o != first {
					t.Errorf("the engines differ:\nwazero   %s\nwasmtime %s", first, o)
				}
			}
		})
	}
}

func (o seen) String() string {
	return fmt.Sprintf("%s %d %q, limits %q, %d and %d bytes:\n%.2000q\n%.600q", o.reason, o.code, o.detail, o.hits, len(o.stdout), len(o.stderr), o.stdout, o.stderr)
}
