package policy_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/policy"
	"github.com/axocoatl/isolation/engine"
)

const text = `
[[rule]]
name = "no js"
requirements = ["Arbitrary"]
sources = ["mcp"]
deny = "not by MCP"

[[rule]]
name = "trusted tools"
tools = ["csv-*"]
min_tier = "oci"
engines = ["builtin"]
hosts = ["pypi.org"]
directories = [{ path = "DATA" }, { path = "DATA/out", writable = true }]
max = { memory = "64M", timeout = "10s" }

[[rule]]
name = "acme's images"
tenants = ["acme"]
images = ["ghcr.io/acme/*"]
min_tier = "microvm"

[[rule]]
name = "mine"
sources = ["cli"]
native = true
`

const (
	aKey     = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ+6gGm3YlSx2y4Q4o3GmqKvEjCCkQhvlhKjqSqJqXtO"
	otherKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHwUa0cK0bWkH2nGxq0S7rOoVQX9hSHvC7m3n9bq2m1S"
)

// TestSignedBy: a rule goes by whose key signed a tool, also when the file changes.
func TestSignedBy(t *testing.T) {
	name := filepath.Join(t.TempDir(), "policy.toml")
	write := func(key string) {
		t.Helper()
		text := "[[key]]\nname = 'us'\nkey = '" + key + " me@here'\n" + `[[rule]]
name = "ours"
signed_by = ["us"]
hosts = ["example.org"]

[[rule]]
name = "no others"
tools = ["*"]
deny = "nobody whom we know signed it"
`
		if err := errors.Join(os.WriteFile(name+".new", []byte(text), 0o600), os.Rename(name+".new", name)); err != nil {
			t.Fatal(err)
		}
	}
	write(aKey)
	w, err := policy.Watch(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	is := func(tool, signer, want string) {
		t.Helper()
		p, rule, err := w.Decide(request(func(r *engine.Request) { r.Tool, r.Signer = tool, signer }))
		if rule != want || (err != nil) != (want == "no others") || (want == "ours") != (len(p.Egress) == 1) {
			t.Errorf("%s by %q: rule %q, %v, want %q", tool, signer, rule, err, want)
		}
	}
	is("a@1", aKey, "ours")
	is("a@1", otherKey, "no others")
	is("a@1", "", "no others")
	is("", "", "default")
	write(otherKey)
	is("a@1", aKey, "no others")
	is("a@1", otherKey, "ours")
}

func request(f func(*engine.Request)) engine.Request {
	r := engine.Request{Spec: isolation.Spec{Requirement: isolation.Python}}
	f(&r)
	return r
}

func TestDecide(t *testing.T) {
	data := t.TempDir()
	for _, d := range []string{"out", "in"} {
		if err := os.Mkdir(filepath.Join(data, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc", filepath.Join(data, "out", "link")); err != nil {
		t.Fatal(err)
	}
	p, err := policy.Parse("p", []byte(strings.ReplaceAll(text, "DATA", data)))
	if err != nil {
		t.Fatal(err)
	}
	mount := func(dir string, ro bool) func(*engine.Request) {
		return func(r *engine.Request) {
			r.Tool = "csv-sum@1"
			r.Spec.Mounts = []isolation.Mount{{Source: dir, Destination: "/d", ReadOnly: ro}}
		}
	}
	for name, c := range map[string]struct {
		r    func(*engine.Request)
		rule string
		ok   bool
	}{
		"nothing matches":         {func(r *engine.Request) {}, "default", true},
		"denied":                  {func(r *engine.Request) { r.Spec.Requirement, r.Source = isolation.Arbitrary, "mcp" }, "no js", false},
		"another source":          {func(r *engine.Request) { r.Spec.Requirement, r.Source = isolation.Arbitrary, "rest" }, "default", true},
		"a tool":                  {func(r *engine.Request) { r.Tool = "csv-sum@1.0" }, "trusted tools", true},
		"another tool":            {func(r *engine.Request) { r.Tool = "my-csv-sum@1.0" }, "default", true},
		"a directory":             {mount(data+"/in", true), "trusted tools", true},
		"a directory to write":    {mount(data+"/in", false), "trusted tools", false},
		"one that may be written": {mount(data+"/out", false), "trusted tools", true},
		"above":                   {mount(data+"/..", true), "trusted tools", false},
		"through a link":          {mount(data+"/out/link", true), "trusted tools", false},
		"not there":               {mount(data+"/none", true), "trusted tools", false},
		"the host's, by default": {func(r *engine.Request) {
			r.Spec.Mounts = []isolation.Mount{{Source: data, Destination: "/d", ReadOnly: true}}
		}, "default", false},
		"a copy, by default":        {func(r *engine.Request) { r.CopyIn = []engine.Copy{{Host: "/etc/passwd", Guest: "/tmp/x"}} }, "default", false},
		"a root, by default":        {func(r *engine.Request) { r.Spec.Root.Path = "/" }, "default", false},
		"native, by default":        {func(r *engine.Request) { r.Spec.Requirement = isolation.NativeTrusted }, "default", false},
		"native of mine":            {func(r *engine.Request) { r.Spec.Requirement, r.Source = isolation.NativeTrusted, "cli" }, "mine", true},
		"an image":                  {func(r *engine.Request) { r.Spec.Tenant, r.Spec.Root.Image = "acme/x", "ghcr.io/acme/a/b:1" }, "acme's images", true},
		"an image of somebody else": {func(r *engine.Request) { r.Spec.Tenant, r.Spec.Root.Image = "acmes", "ghcr.io/acme/a" }, "default", true},
	} {
		_, rule, err := p.Decide(request(c.r))
		if rule != c.rule || (err == nil) != c.ok || err != nil && !errors.Is(err, isolation.ErrPermissionDenied) {
			t.Errorf("%s: rule %q, %v", name, rule, err)
		}
	}
	got, _, _ := p.Decide(request(func(r *engine.Request) { r.Tool = "csv-sum@1" }))
	if got.MinTier[isolation.WasmCompiled] != isolation.TierOCI || got.MaxResources.MemoryBytes != 64<<20 || len(got.Egress) != 1 || got.Engines[0] != "builtin" {
		t.Errorf("%+v", got)
	}
	// Of the network nothing is nothing, and not what the engine has.
	if d, _, _ := p.Decide(request(func(*engine.Request) {})); d.Egress == nil || len(d.Egress) != 0 {
		t.Errorf("%+v", d)
	}
}

func TestParseTellsTheLine(t *testing.T) {
	for text, want := range map[string]string{
		"[[rule]]\n":                                                 "p:1: rule.0: want a name",
		"[[rule]]\nname='a'\n[[rule]]\nname='a'":                     "p:3: rule.1: want a name, and each once",
		"[[rule]]\nname='a'\nmin_teir='oci'":                         "p:3: rule.min_teir: there is no such key",
		"[[rule]]\nname='a'\nmin_tier='strong'":                      "p:3: rule.min_tier: ",
		"[[rule]]\nname='a'\nsources=['ftp']":                        "p:3: rule.0.sources: ",
		"[[rule]]\nname='a'\ntools=['[']":                            "p:3: rule.0.tools: ",
		"[[rule]]\nname='a'\ndeny='x'\nnative=true":                  "p:3: rule.0.deny: ",
		"[[rule]]\nname='a'\ndirectories=[{path='x'}]":               "p:3: rule.0.directories.0.path: ",
		"[[rule]]\nname='a'\nhosts=['a b']":                          "p:1: rule.0: ",
		"[[rule]]\nname='a'\nmax.timeout='1s'\ndefault.timeout='2s'": "p:1: rule.0: ",
		"[[rule]]\nname='a'\nsigned_by=['x']":                        "p:3: rule.0.signed_by: there is no key \"x\"",
		"[[key]]\nname='a'\nkey='ssh-dss AAAA'":                      "p:3: key.0.key: ",
		"[[key]]\nkey='" + aKey + "'":                                "p:1: key.0: want a name",
		"rules = 1":                                                  "p:1: rules: there is no such key",
	} {
		_, err := policy.Parse("p", []byte(text))
		if err == nil || !strings.Contains(err.Error(), want) || !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("%q:\n got %v\nwant %s", text, err, want)
		}
	}
}

func TestReload(t *testing.T) {
	name := filepath.Join(t.TempDir(), "policy.toml")
	write := func(text string) {
		t.Helper()
		// As an editor does: whole, by another name.
		if err := os.WriteFile(name+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(name+".new", name); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := policy.Watch(name, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	write("broken")
	if _, err := policy.Watch(name, nil); !errors.Is(err, isolation.ErrInvalidArgument) {
		t.Errorf("a broken file: %v", err)
	}
	write("[[rule]]\nname = 'one'\n")
	w, err := policy.Watch(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	is := func(want string, bad bool) {
		t.Helper()
		if _, rule, err := w.Decide(request(func(*engine.Request) {})); err != nil || rule != want || (w.Err() != nil) != bad {
			t.Errorf("rule %q, %v; the file: %v", rule, err, w.Err())
		}
	}
	is("one", false)
	write("[[rule]]\nname = 'two'\n")
	is("two", false)
	write("[[rule]]\nname = \n")
	is("two", true)
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	is("two", true)
	write("[[rule]]\nname = 'three'\n")
	is("three", false)
}
