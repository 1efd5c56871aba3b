package wasm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/testprog"
)

const secret = "SECRET"

// prison makes a directory with a mount "in", a file "canary" beside it that no
// module may see, and traps that lead there.
func prison(t *testing.T) (base string) {
	t.Helper()
	base = t.TempDir()
	in := filepath.Join(base, "in")
	canary := filepath.Join(base, "canary")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(in, 0o755))
	must(os.Mkdir(filepath.Join(in, "sub"), 0o755))
	must(os.Mkdir(filepath.Join(base, "out"), 0o755))
	must(os.WriteFile(canary, []byte(secret), 0o644))
	must(os.WriteFile(filepath.Join(in, "file"), []byte("inside"), 0o644))
	for link, target := range map[string]string{
		"abs": canary, "rel": "../canary", "up": "..", "root": "/", "chain": "chain2", "chain2": "sub/../rel",
		"sub/deep": "../../canary", "proc": "/proc/self/cwd/../canary", "dangling": "../made", "dirabs": base,
		"inner": "file",
	} {
		must(os.Symlink(target, filepath.Join(in, link)))
	}
	return base
}

// traps are host paths below the mount that lead to the canary for anybody who
// follows links: the controls.
var traps = []string{"abs", "rel", "up/canary", "chain", "sub/deep", "dirabs/canary"}

// TestEscapes has a module try to leave its mount. Nothing outside may be read,
// made, changed or removed.
func TestEscapes(t *testing.T) { eachEngine(t, testEscapes) }

func testEscapes(t *testing.T, e Engine) { escapes(t, newDriver(t, e), testprog.Go(t, "rawfs")) }

func escapes(t *testing.T, d *Driver, program string) {
	read := func(path string) []string { return []string{"open", path, "0", "r", "1"} }
	write := func(path string, oflags string) []string { return []string{"open", path, oflags, "w", "1"} }
	const create, truncate = "1", "8" // WASI oflags
	attempts := map[string][]string{
		"dotdot":                 read("../canary"),
		"dotdot below":           read("sub/../../canary"),
		"dotdot many":            read("../../../../../../../../etc/passwd"),
		"dot and dotdot":         read("./.././canary"),
		"slashes":                read("sub//..//..//canary"),
		"absolute":               read("/etc/passwd"),
		"absolute slashes":       read("//etc/passwd"),
		"trailing slash":         read("../canary/"),
		"dotdot alone":           {"open", "..", "2", "d", "1"},
		"NUL":                    read("file\x00/../../canary"),
		"link absolute":          read("abs"),
		"link relative":          read("rel"),
		"link to parent":         read("up/canary"),
		"link to root":           read("root/etc/passwd"),
		"link chain":             read("chain"),
		"link below":             read("sub/deep"),
		"link to proc":           read("proc"),
		"link to directory":      read("dirabs/canary"),
		"own link":               append([]string{"symlink", "..", "mine"}, read("mine/canary")...),
		"own link absolute":      append([]string{"symlink", "/etc/passwd", "mine2"}, read("mine2")...),
		"own link below":         append([]string{"symlink", "../../canary", "sub/mine"}, read("sub/mine")...),
		"own links joined":       append([]string{"symlink", "sub", "a", "symlink", "a/../..", "b"}, read("b/canary")...),
		"write dotdot":           write("../made", create),
		"write through link":     write("rel", truncate),
		"write through dangling": write("dangling", create),
		"write through parent":   write("up/made", create),
		"truncate absolute":      write("abs", truncate),
		"mkdir":                  {"mkdir", "../made"},
		"mkdir through link":     {"mkdir", "up/made"},
		"unlink":                 {"unlink", "../canary"},
		"unlink through link":    {"unlink", "up/canary"},
		"rmdir":                  {"rmdir", "../out"},
		"rename out":             {"rename", "file", "../made"},
		"rename in":              {"rename", "../canary", "stolen"},
		"rename through link":    {"rename", "up/canary", "stolen"},
		"hard link in":           append([]string{"link", "../canary", "hard", "0"}, read("hard")...),
		"hard link through link": append([]string{"link", "rel", "hard2", "1"}, read("hard2")...),
		"hard link out":          {"link", "file", "../made", "0"},
		"stat":                   {"stat", "../canary", "1"},
		"stat through link":      {"stat", "rel", "1"},
		"readlink outside":       {"readlink", "up/in/abs"},
	}
	spec := wasmSpec(program)
	for _, readOnly := range []bool{false, true} {
		for name, args := range attempts {
			t.Run(fmt.Sprintf("%s/readonly=%t", name, readOnly), func(t *testing.T) {
				base := prison(t)
				spec := spec
				spec.Mounts = []isolation.Mount{{Source: filepath.Join(base, "in"), Destination: "/data", ReadOnly: readOnly}}
				args := append([]string{"rawfs"}, args...)
				for i, a := range args {
					if strings.ContainsRune(a, 0) {
						args[i] = strings.ReplaceAll(a, "\x00", "\ufffd") // argv cannot carry a NUL
					}
				}
				r := run(t, d, spec, isolation.ProcessSpec{Args: args}, nil)
				if r.exit.Reason != isolation.ReasonExited || r.stderr != "" {
					t.Fatalf("%v %q", r.exit, r.stderr)
				}
				if strings.Contains(r.stdout, secret) || strings.Contains(r.stdout, "root:") {
					t.Errorf("the module read %q", r.stdout)
				}
				lines := strings.Fields(r.stdout)
				if last := lines[len(lines)-1]; last == "0" {
					t.Errorf("the last step succeeded: %q", r.stdout)
				}
				if b, err := os.ReadFile(filepath.Join(base, "canary")); err != nil || string(b) != secret {
					t.Errorf("the canary is %q, %v", b, err)
				}
				list, err := os.ReadDir(base)
				if err != nil || len(list) != 3 {
					t.Errorf("outside the mount are %v, %v", list, err)
				}
				if readOnly {
					inside, err := os.ReadDir(filepath.Join(base, "in"))
					if err != nil || len(inside) != 12 {
						t.Errorf("a read-only mount has %d entries, %v", len(inside), err)
					}
				}
			})
		}
	}
	t.Run("controls", func(t *testing.T) {
		base := prison(t)
		for _, trap := range traps {
			if b, err := os.ReadFile(filepath.Join(base, "in", trap)); err != nil || string(b) != secret {
				t.Errorf("%s does not lead to the canary: %q %v", trap, b, err)
			}
		}
		// What is inside works, links included.
		spec := spec
		spec.Mounts = []isolation.Mount{{Source: filepath.Join(base, "in"), Destination: "/data"}}
		args := append([]string{"rawfs"}, append(read("file"), read("inner")...)...)
		if r := run(t, d, spec, isolation.ProcessSpec{Args: args}, nil); r.stdout != "0 \"inside\"\n0 \"inside\"\n" {
			t.Errorf("inside: %q", r.stdout)
		}
	})
}

// TestReadOnlyMountHolds tries to change what is in a read-only mount, also by ways
// that ask for no right to write.
func TestReadOnlyMountHolds(t *testing.T) { eachEngine(t, testReadOnlyMountHolds) }

func testReadOnlyMountHolds(t *testing.T, e Engine) {
	d := newDriver(t, e)
	raw, files := testprog.Go(t, "rawfs"), testprog.Go(t, "fs")
	for name, c := range map[string]struct{ program, args string }{
		"truncate, read":      {raw, "open file 8 r 1"},
		"truncate, no rights": {raw, "open file 8 d 1"},
		"truncate, write":     {raw, "open file 8 w 1"},
		"truncate by a link":  {raw, "open inner 8 r 1"},
		"truncate below":      {raw, "open sub/../file 8 r 1"},
		"create, read":        {raw, "open new 1 r 1"},
		"create new, read":    {raw, "open new 5 r 1"},
		"create over, read":   {raw, "open file 9 r 1"},
		"write":               {raw, "open file 0 w 1"},
		"unlink":              {raw, "unlink file"},
		"rmdir":               {raw, "rmdir sub"},
		"mkdir":               {raw, "mkdir new"},
		"symlink":             {raw, "symlink file new"},
		"rename":              {raw, "rename file new"},
		"link":                {raw, "link file new 0"},
		"set size":            {files, "truncate /data/file 1"},
		"set times":           {files, "chtimes /data/file"},
	} {
		t.Run(name, func(t *testing.T) {
			base := prison(t)
			file := filepath.Join(base, "in", "file")
			before, err := os.Stat(file)
			if err != nil {
				t.Fatal(err)
			}
			spec := wasmSpec(c.program)
			spec.Mounts = []isolation.Mount{{Source: filepath.Join(base, "in"), Destination: "/data", ReadOnly: true}}
			r := run(t, d, spec, isolation.ProcessSpec{Args: append([]string{"prog"}, strings.Fields(c.args)...)}, nil)
			if r.exit.Reason != isolation.ReasonExited || strings.HasPrefix(r.stdout, "0") {
				t.Errorf("it worked: %v %q %q", r.exit, r.stdout, r.stderr)
			}
			after, err := os.Stat(file)
			if b, rerr := os.ReadFile(file); err != nil || string(b) != "inside" || !after.ModTime().Equal(before.ModTime()) {
				t.Errorf("the file is %q of %v (%v, %v)", b, after.ModTime(), rerr, err)
			}
			if list, err := os.ReadDir(filepath.Join(base, "in")); err != nil || len(list) != 12 {
				t.Errorf("%d entries, want 12 (%v)", len(list), err)
			}
		})
	}
}
