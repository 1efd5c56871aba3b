package all_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/all"
	"github.com/axocoatl/isolation/engine"
	"github.com/axocoatl/isolation/internal/testprog"
	"github.com/axocoatl/isolation/interpreter"
)

// TestSourceDifferential runs the same Python in WebAssembly, on both engines,
// and in a container on the host's own Python, and the same JavaScript on both
// engines and in a container on node where the host has it.
func TestSourceDifferential(t *testing.T) {
	state := t.TempDir()
	store := interpreter.Open(filepath.Join(state, all.InterpretersDir))
	for language, file := range map[string]string{"python": testprog.Python(t), "js": testprog.QuickJS(t)} {
		if _, err := store.Add(t.Context(), interpreter.Options{Language: language, File: file}); err != nil {
			t.Fatal(err)
		}
	}
	reg, err := all.Registry(all.Config{StateDir: state, Worker: testprog.Worker(t), WasmtimeWorker: testprog.Wasmtime(t), Guest: testprog.Guest(t)})
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
	wasm := isolation.TierWASM
	for _, c := range []struct {
		language, code string
		args           []string
		stdin          string
		out            string
		status         int
	}{
		{"python", "print(sum(x * x for x in range(1000)), 2 ** 100, 7 // -2, round(2.5), 0.1 + 0.2)", nil, "", "332833500 1267650600228229401496703205376 -4 2 0.30000000000000004\n", 0},
		{"python", "import json, sys; d = json.load(sys.stdin); d['n'] += 1; print(json.dumps(d, sort_keys=True, ensure_ascii=False))", nil, `{"n": 41, "a": "ü"}`, `{"a": "ü", "n": 42}` + "\n", 0},
		{"python", "import sys, os; print(sys.argv[1:], os.environ.get('HOME'), __name__)", []string{"a b", "", "-x"}, "", "['a b', '', '-x'] None __main__\n", 0},
		{"python", "import re, collections, datetime, hashlib; print(re.sub(r'(\\w+)', lambda m: m[1].title(), 'a bc'), collections.Counter('abca').most_common(1), datetime.date(2024, 2, 29).isoformat(), hashlib.sha256(b'axo').hexdigest()[:8])", nil, "", "A Bc [('a', 2)] 2024-02-29 5317711b\n", 0},
		{"python", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)", nil, "", "out\n", 3},
		{"python", "raise ValueError('bad')", nil, "", "", 1},
		{"python", "for line in open(0): print(line.strip()[::-1])", nil, "ab\ncd\n", "ba\ndc\n", 0},
		{"python", "import csv, io, decimal, fractions; print(list(csv.reader(io.StringIO('a,\"b,c\"\\n'))), decimal.Decimal('0.1') * 3, fractions.Fraction(1, 3) + 1)", nil, "", "[['a', 'b,c']] 0.3 4/3\n", 0},
		{"js", "console.log(JSON.stringify([1, 'a', {b: null}]), 0.1 + 0.2, 2n ** 64n, [3, 1, 2].sort().join())", nil, "", `[1,"a",{"b":null}] 0.30000000000000004 18446744073709551616n 1,2,3` + "\n", 0},
		{"js", "const d = JSON.parse(require('fs').readFileSync(0, 'utf8')); console.log(d.n + 1, process.argv.slice(1))", []string{"x", "--y"}, `{"n": 41}`, "42 [ 'x', '--y' ]\n", 0},
		{"js", "console.log([1, 2], {a: 'b'}, new Map([[1, 2]]), null, undefined, -0, 'text'); process.exit(4)", nil, "", "[ 1, 2 ] { a: 'b' } Map(1) { 1 => 2 } null undefined -0 text\n", 4},
		{"js", "Promise.resolve(1).then(console.log); setTimeout(() => console.log(2), 1); console.error('err')", nil, "", "1\n2\n", 0},
		{"js", "null.x", nil, "", "", 1},
	} {
		for _, name := range []string{"wasmtime", "wazero", "builtin"} {
			r := engine.Request{Engine: name, Stdin: strings.NewReader(c.stdin)}
			r.Spec.Requirement = isolation.Python
			if c.language == "js" {
				r.Spec.Requirement, r.Spec.Language = isolation.Arbitrary, "js"
			}
			if name != "builtin" {
				r.Tier = &wasm
			}
			r.Process.Limits.Wall = time.Minute
			if r.Process.Args, err = isolation.ScriptArgs(c.language, c.code, c.args...); err != nil {
				t.Fatal(err)
			}
			var out, errOut bytes.Buffer
			r.Stdout, r.Stderr = &out, &errOut
			res, err := e.Run(t.Context(), r)
			if name == "builtin" && err != nil && (c.language == "js" && errors.Is(err, isolation.ErrNotFound) || os.Getenv("AXO_REQUIRE") == "") {
				t.Logf("%s in a container: SKIPPED, NOT PROVED: %v", c.language, err)
				continue
			}
			if err != nil {
				t.Errorf("%q on %s: %v", c.code, name, err)
				continue
			}
			if res.Exit.Reason != isolation.ReasonExited || res.Exit.Code != c.status || out.String() != c.out {
				t.Errorf("%q on %s: %v, printed %q, want %q; %s", c.code, name, res.Exit, out.String(), c.out, errOut.String())
			}
			if (errOut.Len() > 0) != (c.status == 3 || c.status == 1 || strings.Contains(c.code, "console.error")) {
				t.Errorf("%q on %s: stderr %q", c.code, name, errOut.String())
			}
			if res.Decision.Degraded != (name != "builtin") {
				t.Errorf("on %s: degraded is %t", name, res.Decision.Degraded)
			}
		}
	}
}
