package oci

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
)

// describeKind describes a container, and compares what is remembered with what it would
// be described by.
func describeKind(t *testing.T, e *builtin, ids *idMap, spec isolation.Spec) (*container, any) {
	t.Helper()
	c := &container{eng: e, ids: ids}
	d, err := e.kinds.describe(e, c, spec)
	if err != nil {
		t.Fatal(err)
	}
	if d == nil {
		return c, nil
	}
	_, fresh, err := e.describe(&container{eng: e, ids: ids}, spec)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(d, fresh) {
		t.Errorf("%+v: remembered\n%+v\nwant\n%+v", spec, d, fresh)
	}
	// What a launch adds is its own.
	d.Plan.Tasks, d.Plan.GroupNamespace = append(d.Plan.Tasks, 7), true
	return c, d
}

// TestKinds: what is remembered of a kind is what a container of it would be described
// by, with its own ids.
func TestKinds(t *testing.T) {
	e := &builtin{cfg: Config{DiskBytes: 1 << 20}}
	e.kinds.on = true
	describe := func(spec isolation.Spec, base int) (*container, any) {
		t.Helper()
		return describeKind(t, e, &idMap{base: base}, spec)
	}
	kinds := map[*kindOfSandbox]bool{}
	specs := []isolation.Spec{
		{Requirement: isolation.Shell},
		{Hostname: "other"},
		{Profile: "session"},
		{Resources: isolation.Resources{MemoryBytes: 1 << 26}},
		{Resources: isolation.Resources{DiskBytes: 1 << 21, CPUs: 1, Pids: 9}},
	}
	for _, spec := range specs {
		first, _ := describe(spec, 1<<20)
		second, _ := describe(spec, 1<<21)
		if first.kind == nil || second.kind == nil {
			t.Errorf("%+v is not remembered", spec)
		}
		kinds[second.kind] = true
	}
	if len(kinds) != len(specs) {
		t.Errorf("%d kinds of %d specs", len(kinds), len(specs))
	}
	for _, spec := range []isolation.Spec{
		{Mounts: []isolation.Mount{{Source: "/tmp", Destination: "/x"}}},
		{Resources: isolation.Resources{IO: isolation.IO{ReadBytes: 1}}},
		{Detached: true},
	} {
		if c, d := describe(spec, 1<<20); d != nil || c.kind != nil {
			t.Errorf("%+v is remembered", spec)
		}
	}
	e.kinds.on = false
	if _, d := describe(specs[0], 1<<20); d != nil {
		t.Error("a runtime's is remembered")
	}
}

// TestKindsOfUsers: who makes a root is a part of its steps and document.
func TestKindsOfUsers(t *testing.T) {
	e := &builtin{cfg: Config{DiskBytes: 1 << 20}}
	e.kinds.on = true
	kinds := map[*kindOfSandbox]bool{}
	for _, ids := range []*idMap{{base: 1 << 20}, {single: true, uid: userID, gid: userID}, {single: true, uid: 7, gid: userID}, {base: 1 << 21}} {
		c, _ := describeKind(t, e, ids, isolation.Spec{})
		kinds[c.kind] = true
	}
	if len(kinds) != 3 {
		t.Errorf("%d kinds of three users", len(kinds))
	}
}

// TestKindsOfAChangedHost: what was made of names of the host's is not used again when
// they have changed. What is known of them is changed here, instead of the host.
func TestKindsOfAChangedHost(t *testing.T) {
	e := &builtin{cfg: Config{DiskBytes: 1 << 20}}
	e.kinds.on = true
	describe := func() *kindOfSandbox {
		t.Helper()
		c, _ := describeKind(t, e, &idMap{base: 1 << 20}, isolation.Spec{})
		return c.kind
	}
	last := describe()
	look := func(change func()) {
		system.mu.Lock()
		defer system.mu.Unlock()
		change()
		system.until = time.Time{}
	}
	look(func() {})
	if k := describe(); k != last {
		t.Error("nothing has changed, and it is described anew")
	}
	for what, change := range map[string]func(){
		"a part that is gone": func() { system.list = slices.Clone(system.list)[1:] },
		"the text of a file": func() {
			system.list = slices.Clone(system.list)
			system.list[0].Text += "other"
		},
		"a file in place of a directory": func() { system.kinds["/usr"] = kindFile },
		"a name of the kernel's":         func() { system.kinds["/proc/no/such"] = kindFile },
	} {
		last = describe()
		look(change)
		if k := describe(); k == last {
			t.Errorf("%s: what was made before is used", what)
		}
	}
	// Nor is what was made while it changed.
	dir, age, err := system.staging()
	if err != nil {
		t.Fatal(err)
	}
	e.kinds.put(kindKey{staging: dir}, age-1, &kindOfSandbox{})
	if k := describe(); k == nil || k.steps == nil {
		t.Error("one of before is used")
	}
}

// TestCallersNamesAreNotKept: there is no end to them, and they change as they like.
func TestCallersNamesAreNotKept(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	e := &builtin{cfg: Config{DiskBytes: 1 << 20}}
	c := &container{eng: e, ids: &idMap{base: 1 << 20}}
	_, d, err := e.describe(c, isolation.Spec{Mounts: []isolation.Mount{{Source: dir, Destination: dir}, {Source: file, Destination: file}}})
	if err != nil {
		t.Fatal(err)
	}
	makeRoot(&d.Plan, c.ids.credential())
	system.mu.Lock()
	defer system.mu.Unlock()
	if len(system.kinds) == 0 {
		t.Error("nothing is known of the host")
	}
	for name := range system.kinds {
		if name == dir || name == file {
			t.Errorf("%s is kept", name)
		}
	}
}

// TestKindsAreBounded: there is no end to what callers can ask for.
func TestKindsAreBounded(t *testing.T) {
	var k kinds
	for i := range 3 * maxKinds {
		k.put(kindKey{resources: isolation.Resources{Pids: int64(i)}}, 1, &kindOfSandbox{})
		if len(k.known) > maxKinds {
			t.Fatalf("%d are remembered", len(k.known))
		}
	}
	k.put(kindKey{}, 2, &kindOfSandbox{})
	if len(k.known) != 1 {
		t.Errorf("%d kinds of a host that has changed", len(k.known))
	}
}
