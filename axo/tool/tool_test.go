package tool_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/jsonschema-go/jsonschema"
	"github.com/pelletier/go-toml/v2"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/tool"
	"github.com/axocoatl/isolation/driver/mem"
	"github.com/axocoatl/isolation/engine"
)

// write makes a tool's directory.
func write(t testing.TB, manifest string, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i+1 < len(files); i += 2 {
		if err := os.WriteFile(filepath.Join(dir, files[i]), []byte(files[i+1]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, tool.ManifestFile), []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

const head = "name = 'echo'\nversion = '1'\ndescription = 'd'\n"

const echo = head + "[entrypoint]\nmodule = 'm.wasm'\n"

func TestParseTellsTheLine(t *testing.T) {
	for manifest, want := range map[string]string{
		"":                    "tool.toml: name: ",
		head:                  "tool.toml: entrypoint: want one of",
		echo + "memory = 1\n": "tool.toml:6: entrypoint.memory: there is no such key",
		echo + "source = 'x'": "tool.toml:4: entrypoint: want one of",
		head + "concurrency = -1\n[entrypoint]\nmodule = 'm.wasm'":          "tool.toml:4: concurrency: it is negative",
		head + "[entrypoint]\nmodule = '../m.wasm'":                         "tool.toml:5: entrypoint.module: \"../m.wasm\" leads out",
		head + "[entrypoint]\nmodule = 'link'":                              "tool.toml:5: entrypoint.module: \"link\" leads out",
		head + "[entrypoint]\nmodule = 'gone'":                              "tool.toml:5: entrypoint.module: ",
		head + "[entrypoint]\nsource = 'm.wasm'":                            "tool.toml:4: entrypoint.language: source and language go together",
		head + "[entrypoint]\nsource = 'm.wasm'\nlanguage='lua'":            "tool.toml:6: entrypoint.language: ",
		"requirement = 'Python'\n" + echo:                                   "tool.toml:1: requirement: Python, and the entrypoint is WasmCompiled",
		echo + "[limits]\nmemory = '12Q'":                                   "tool.toml:7: limits.memory: size",
		echo + "[limits]\n\ntimeout = 'soon'":                               "tool.toml:8: limits.timeout: time",
		echo + "[input]\ntype = 'string'":                                   "tool.toml:6: input: an input is an object",
		echo + "[input]\ntype = 'object'\n'$ref' = 'http://x/y'":            "tool.toml:6: input: ",
		echo + "[input]\ntype = 'thing'":                                    "tool.toml:6: input: ",
		echo + "[output]\ntype = 'objekt'":                                  "tool.toml:6: output: its type \"objekt\" is none of",
		echo + "[output]\nproperties.a.items.anyOf = [{type = ['x']}]":      "tool.toml:6: output: its type \"x\" is none of",
		echo + "[output]\nproperties.a.pattern = '('":                       "tool.toml:6: output: ",
		echo + "[output]\nminLength = -1":                                   "tool.toml:6: output: ",
		"input = '/etc/passwd'\n" + echo:                                    "tool.toml:1: input: \"/etc/passwd\" leads out",
		echo + "[[mounts]]\nsource = 'gone'\ndestination = '/x'":            "tool.toml:7: mounts.0.source: ",
		echo + "[[files.out]]\npath = '/'":                                  "tool.toml:7: files.out.0.path: ",
		echo + "[[files.out]]\npath = '/a/x'\n[[files.out]]\npath = '/b/x'": "tool.toml:8: files.out.1.name: ",
		echo + "[[files.in]]\nsource = 'link'\ndestination = '/x'":          "tool.toml:7: files.in.0.source: \"link\" leads out",
		echo + "[secrets]\nKEY = 'the secret itself'":                       "tool.toml:7: secrets.KEY: want",
		echo + "[[tests]]\nname = 'x'\nfails = 'often'":                     "tool.toml:8: tests.0.fails: ",
		head + "[entrypoint]\nbundle = 'b'":                                 "tool.toml:5: entrypoint.bundle: config.json: ",
	} {
		dir := write(t, manifest, "m.wasm", "module")
		if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
			t.Fatal(err)
		}
		_, err := tool.Parse(dir)
		if err == nil || !strings.Contains(err.Error(), want) || !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("%q:\n got %v\nwant %s", manifest, err, want)
		}
	}
	if _, err := tool.Parse(t.TempDir()); !errors.Is(err, isolation.ErrNotFound) {
		t.Errorf("no manifest: %v", err)
	}
}

// TestSchemaIsTheManifests holds the published schema to what is read.
func TestSchemaIsTheManifests(t *testing.T) {
	var s jsonschema.Schema
	if err := json.Unmarshal(tool.ManifestSchema, &s); err != nil {
		t.Fatal(err)
	}
	checked := 0
	var compare func(at string, s *jsonschema.Schema, v reflect.Type)
	compare = func(at string, s *jsonschema.Schema, v reflect.Type) {
		for v.Kind() == reflect.Slice || v.Kind() == reflect.Pointer {
			if v.Kind() == reflect.Slice {
				s = s.Items
			}
			v = v.Elem()
		}
		if s == nil || v.Kind() != reflect.Struct || len(s.Properties) == 0 {
			return
		}
		checked++
		known := map[string]bool{}
		for i := range v.NumField() {
			f := v.Field(i)
			name := f.Tag.Get("toml")
			known[name] = true
			if s.Properties[name] == nil {
				t.Errorf("%s.%s is not in the schema", at, name)
				continue
			}
			compare(at+"."+name, s.Properties[name], f.Type)
		}
		for name := range s.Properties {
			if !known[name] {
				t.Errorf("%s.%s is in the schema alone", at, name)
			}
		}
	}
	compare("", &s, reflect.TypeFor[tool.Manifest]())
	if checked < 9 {
		t.Errorf("%d tables were compared", checked)
	}
	r, err := s.Resolve(nil)
	if err != nil {
		t.Fatal(err)
	}
	for manifest, good := range map[string]bool{
		echo: true, head: false, echo + "source = 'x'": false, echo + "[limits]\nspeed = 1": false, "convention = 'xml'\n" + echo: false,
	} {
		var v map[string]any
		if err := toml.Unmarshal([]byte(manifest), &v); err != nil {
			t.Fatal(err)
		}
		if err := r.Validate(v); (err == nil) != good {
			t.Errorf("%q: %v", manifest, err)
		}
	}
	for _, kind := range tool.Kinds() {
		dir := filepath.Join(t.TempDir(), "x")
		if _, err := tool.Init(dir, "x", kind); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(dir, tool.ManifestFile))
		if err != nil {
			t.Fatal(err)
		}
		var v any
		var m map[string]any
		if err := toml.Unmarshal(b, &m); err != nil {
			t.Fatal(err)
		}
		b, _ = json.Marshal(m) // numbers as JSON has them
		_ = json.Unmarshal(b, &v)
		if err := r.Validate(v); err != nil {
			t.Errorf("kind %s: %v", kind, err)
		}
		if kind == "go" {
			if err := os.WriteFile(filepath.Join(dir, "tool.wasm"), []byte("m"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := tool.Parse(dir); err != nil {
			t.Errorf("kind %s: %v", kind, err)
		}
	}
}

func open(t testing.TB) *tool.Registry {
	t.Helper()
	r, err := tool.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRegistry(t *testing.T) {
	ctx := context.Background()
	r := open(t)
	dir := write(t, echo, "m.wasm", "one")
	first, err := r.Add(ctx, dir, tool.AddOptions{})
	if err != nil {
		t.Fatal(err)
	}
	again, err := r.Add(ctx, dir, tool.AddOptions{})
	if err != nil || again.Digest != first.Digest {
		t.Errorf("the same again: %v %s", err, again.Digest)
	}
	if err := os.WriteFile(filepath.Join(dir, "m.wasm"), []byte("two"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Add(ctx, dir, tool.AddOptions{}); !errors.Is(err, isolation.ErrAlreadyExists) {
		t.Errorf("other content: %v", err)
	}
	refused := errors.New("refused")
	if _, err := r.Add(ctx, dir, tool.AddOptions{Replace: true, Prepare: func(context.Context, *tool.Tool) error { return refused }}); !errors.Is(err, refused) {
		t.Errorf("prepare: %v", err)
	}
	if x, err := r.Get("echo"); err != nil || x.Digest != first.Digest {
		t.Errorf("what was refused is there: %v %v", x, err)
	}
	second, err := r.Add(ctx, dir, tool.AddOptions{Replace: true})
	if err != nil || second.Digest == first.Digest {
		t.Fatal(err, second.Digest)
	}
	third, err := r.Add(ctx, write(t, strings.Replace(echo, "'1'", "'2'", 1), "m.wasm", "two"), tool.AddOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// Another process sees the same.
	for ref, want := range map[string]string{"echo": third.Digest, "echo@1": second.Digest, "echo@2": third.Digest, third.Digest: third.Digest} {
		if x, err := r.Get(ref); err != nil || x.Digest != want {
			t.Errorf("%s: %v %v, want %s", ref, x.Digest, err, want)
		}
	}
	for _, ref := range []string{"", "ech", "echo@3", "echo@", first.Digest, "../echo"} {
		if _, err := r.Get(ref); !errors.Is(err, isolation.ErrNotFound) {
			t.Errorf("%q: %v", ref, err)
		}
	}
	list, err := r.List(true)
	if err != nil || len(list) != 2 {
		t.Errorf("%v %v", list, err)
	}
	if gone, err := r.Remove("echo@2"); err != nil || !slices.Equal(gone, []string{"echo@2"}) {
		t.Errorf("%v %v", gone, err)
	}
	if x, err := r.Get("echo"); err != nil || x.Digest != second.Digest {
		t.Errorf("after rm of the newest: %v %v", x.Digest, err)
	}
	if _, err := r.Remove("echo"); err != nil {
		t.Error(err)
	}
	if _, err := r.Remove("echo"); !errors.Is(err, isolation.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// TestAddedAtOnce has processes, as it were, that add at the same time.
func TestAddedAtOnce(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i := range 16 {
		src := write(t, strings.Replace(echo, "'echo'", fmt.Sprintf("'echo-%d'", i), 1), "m.wasm", "m")
		wg.Go(func() {
			r, err := tool.Open(dir)
			if err == nil {
				_, err = r.Add(context.Background(), src, tool.AddOptions{})
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	r, err := tool.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := r.List(false); err != nil || len(list) != 16 {
		t.Errorf("%d tools, %v", len(list), err)
	}
	left, _ := filepath.Glob(filepath.Join(dir, ".adding-*"))
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// caller has a registry, and an engine over the driver in memory: what calls do with
// results is the matter here. The command's tests run real tools.
func caller(t testing.TB, manifests ...string) *tool.Caller {
	t.Helper()
	d := mem.New(mem.Config{Name: "wazero", Features: func(f *isolation.Features) { f.Tier = isolation.TierWASM }})
	var reg isolation.Registry
	reg.Add(isolation.TierWASM, d)
	e, err := engine.New(engine.Config{Registry: reg})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	c := &tool.Caller{Registry: open(t), Engine: e}
	for _, m := range manifests {
		if _, err := c.Registry.Add(context.Background(), write(t, m, "m.wasm", "m"), tool.AddOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func TestCall(t *testing.T) {
	c := caller(t, echo+"[input]\ntype = 'object'\nproperties.n = {type = 'integer'}\n[output]\ntype = 'object'\nrequired = ['n']\nproperties.n = {maximum = 5}")
	for input, want := range map[string]tool.FailureKind{
		`{"n":1}`: "", `{"n":"x"}`: tool.FailedInput, `[]`: tool.FailedInput, `{`: tool.FailedInput, `{"n":6}`: tool.FailedOutput, ``: tool.FailedOutput,
	} {
		res, err := c.Call(context.Background(), tool.Call{Tool: "echo", Input: json.RawMessage(input)})
		if err != nil {
			t.Fatalf("%s: %v", input, err)
		}
		got := tool.FailureKind("")
		if res.Failure != nil {
			got = res.Failure.Kind
		}
		if got != want || (want == "") != (string(res.Output) == input && input != "") || (want == tool.FailedInput) != (res.Run == nil) {
			t.Errorf("%s: %+v", input, res)
		}
	}
	if _, err := c.Call(context.Background(), tool.Call{Tool: "gone"}); !errors.Is(err, isolation.ErrNotFound) {
		t.Error(err)
	}
}

func TestKeys(t *testing.T) {
	c := caller(t, echo)
	ctx := context.Background()
	call := tool.Call{Tool: "echo", Input: json.RawMessage(`{"a":1}`), Key: "k", Tenant: "x"}
	var wg sync.WaitGroup
	var mu sync.Mutex
	fresh := 0
	ids := map[string]bool{}
	for range 8 {
		wg.Go(func() {
			res, err := c.Call(ctx, call)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if !res.Replayed {
				fresh++
			}
			ids[res.Run.ID] = true
		})
	}
	wg.Wait()
	if fresh != 1 || len(ids) != 1 {
		t.Errorf("%d runs of their own, ids %v", fresh, ids)
	}
	other := call
	other.Input = json.RawMessage(`{"a":2}`)
	if _, err := c.Call(ctx, other); !errors.Is(err, isolation.ErrFailedPrecondition) {
		t.Errorf("another input by the same key: %v", err)
	}
	other.Tenant = "y"
	if res, err := c.Call(ctx, other); err != nil || res.Replayed {
		t.Errorf("another tenant's: %v", err)
	}
}

func TestConcurrencyAndCancel(t *testing.T) {
	c := caller(t, strings.Replace(echo, "'echo'", "'ready'", 1)+"args = ['3600']\n", "concurrency = 1\n"+strings.Replace(echo, "'echo'", "'sleep'", 1)+"args = ['3600']\n")
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var results [2]*tool.Result
	var errs [2]error
	for i := range 2 {
		wg.Go(func() { results[i], errs[i] = c.Call(ctx, tool.Call{Tool: "sleep"}) })
	}
	// One has the place; the other one waits, and never runs.
	cancel()
	wg.Wait()
	for i := range 2 {
		if errs[i] == nil && (results[i].Failure == nil || results[i].Failure.Kind != tool.FailedCanceled) {
			t.Errorf("%+v", results[i])
		}
		if errs[i] != nil && (isolation.OutcomeOf(errs[i]) != isolation.NotStarted || !errors.Is(errs[i], context.Canceled)) {
			t.Errorf("%v", errs[i])
		}
	}
}
