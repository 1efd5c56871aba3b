// Package deptest holds the layers of this module to their directions.
package deptest

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/axocoatl/isolation"

type pkg struct {
	ImportPath  string
	Imports     []string
	TestImports []string
	Standard    bool
	ForTest     string
}

// packages lists the packages of this module with what they import directly.
func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,Standard", module+"/...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var list []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
	return list
}

func standard(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".")
}

// TestLayers checks every direct import against the rules of
// docs/ARCHITECTURE.md.
func TestLayers(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		for _, im := range p.Imports {
			if rule := broken(name, im); rule != "" {
				t.Errorf("%s imports %s: %s", p.ImportPath, im, rule)
			}
		}
	}
}

// homes are the only places of third-party runtimes.
var homes = map[string]string{
	"github.com/tetratelabs/wazero": "driver/wasm",

	"github.com/google/go-containerregistry": "image",
	"github.com/klauspost/compress":          "image",
	"github.com/pierrec/lz4":                 "image",
	"github.com/therootcompany/xz":           "image",
	"github.com/cavaliergopher/cpio":         "image",
	"github.com/erofs/go-erofs":              "image",
}

func broken(name, im string) string {
	if standard(im) {
		return ""
	}
	inner, own := strings.CutPrefix(im, module)
	inner = strings.TrimPrefix(inner, "/")
	under := func(s, dir string) bool { return s == dir || strings.HasPrefix(s, dir+"/") }
	tier := func(s string) string {
		parts := strings.SplitN(s, "/", 3)
		if len(parts) >= 2 && parts[0] == "driver" {
			return parts[1]
		}
		return ""
	}
	for lib, home := range homes {
		if under(im, lib) && !under(name, home) {
			return "its home is " + home
		}
	}
	switch {
	case name == "":
		return "the root package imports the standard library only"
	case name == "internal/testprog" || name == "internal/deptest":
		return ""
	case under(name, "internal"):
		if own || !under(im, "golang.org/x/sys") {
			if own && under(inner, "internal") {
				return ""
			}
			return "internal packages import the standard library and x/sys"
		}
	case under(name, "guest/wire"):
		return "guest/wire imports the standard library only"
	case name == "api":
		if own && inner != "" && inner != "engine" {
			return "the interface's types know the contract and the engine's results only"
		}
	case name == "client":
		if !own || inner != "" && inner != "api" && inner != "engine" {
			return "the client has no dependencies"
		}
	case name == "driver/all" || under(name, "cmd") || under(name, "demo") || under(name, "test") || under(name, "bench"):
		return ""
	case name == "drivertest":
		if inner != "" || !own {
			return "the conformance suite imports the root package only"
		}
	case tier(name) != "":
		if own && (under(inner, "engine") || under(inner, "cmd") || under(inner, "pool")) {
			return "drivers do not know what is above them"
		}
		if own && (under(inner, "image") || inner == "interpreter") {
			return "drivers are given images and interpreters by driver/all"
		}
		if o := tier(inner); own && o != "" && o != "internal" && o != tier(name) {
			return "drivers do not import each other"
		}
	case under(name, "image"):
		if own && inner != "" && !under(inner, "internal") && !under(inner, "image") {
			return "images know the contract only"
		}
	case name == "interpreter":
		if own && inner != "" {
			return "interpreters know the contract only"
		}
	case name == "pool":
		if !own || inner != "" && !under(inner, "internal") {
			return "the pool knows the contract only"
		}
	case name == "engine":
		if own && tier(inner) != "" {
			return "the engine knows drivers by the contract only"
		}
	}
	return ""
}

func TestRulesCatch(t *testing.T) {
	for _, c := range []struct{ name, im string }{
		{"", module + "/engine"}, {"", "golang.org/x/sys/unix"}, {"engine", module + "/driver/wasm"},
		{"driver/none", module + "/driver/wasm"}, {"driver/wasm", module + "/engine"}, {"engine", "github.com/tetratelabs/wazero"},
		{"engine", "github.com/google/go-containerregistry/pkg/name"}, {"image", module + "/engine"}, {"image", module + "/driver/none"}, {"driver/oci", module + "/image"},
		{"driver/wasm", module + "/interpreter"}, {"interpreter", module + "/driver/wasm"},
		{"internal/cgroup", module}, {"pool", module + "/engine"}, {"pool", module + "/driver/mem"}, {"guest/wire", "golang.org/x/sys/unix"},
		{"client", "golang.org/x/sys/unix"}, {"client", module + "/driver/mem"}, {"api", module + "/driver/mem"},
	} {
		if broken(c.name, c.im) == "" {
			t.Errorf("%q may import %q", c.name, c.im)
		}
	}
}

// notForLibraryUsers is what must not be in the library's module: the daemon and
// the command line have one of their own.
var notForLibraryUsers = []string{
	"github.com/danielgtaylor/huma", "github.com/spf13/cobra", "github.com/coder/websocket", "modernc.org/sqlite", "github.com/prometheus",
	"go.opentelemetry.io", "github.com/pelletier/go-toml",
}

func TestLibraryUsersInheritNothingOfTheDaemon(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "-test", "-f", "{{with .Module}}{{.Path}}{{end}}", module+"/...")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range strings.Fields(string(out)) {
		for _, bad := range notForLibraryUsers {
			if path == bad || strings.HasPrefix(path, bad+"/") {
				t.Fatalf("the library's module has %s", path)
			}
		}
	}
	sum, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range notForLibraryUsers {
		if strings.Contains(string(sum), bad) {
			t.Errorf("go.mod names %s", bad)
		}
	}
}
