package microvm_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/microvm"
)

func restorer(t testing.TB, d isolation.Driver) isolation.Restorer {
	t.Helper()
	r, ok := isolation.As[isolation.Restorer](d)
	if !ok {
		t.Fatal("the driver restores nothing")
	}
	return r
}

func snapshot(t testing.TB, sb isolation.Sandbox, name string) {
	t.Helper()
	s, ok := isolation.As[isolation.Snapshotter](sb)
	if !ok {
		t.Fatal("no snapshot of it can be taken")
	}
	if err := s.Snapshot(t.Context(), name); err != nil {
		t.Fatal(err)
	}
}

// TestSnapshot: a sandbox on disk comes back with its processes running on, more than
// once, in another driver.
func TestSnapshot(t *testing.T) {
	c := config(t)
	c.Snapshots = t.TempDir()
	d := newDriver(t, c)
	sb := create(t, d, "snap-first", isolation.Spec{Hostname: "box", Resources: isolation.Resources{Pids: 77}})
	if _, err := sb.Exec(t.Context(), isolation.ProcessSpec{ExecID: "counter", Args: []string{"python3", "-c", counter}}, isolation.Stdio{}); err != nil {
		t.Fatal(err)
	}
	secret, n := counted(t, sb, 3)
	snapshot(t, sb, "one")
	if err := sb.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	other := newDriver(t, c)
	seen := map[string]bool{}
	for _, id := range []string{"snap-again", "snap-and-again"} {
		back, err := restorer(t, other).Restore(t.Context(), id, "one")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = back.Delete(context.Background()) })
		if who, _ := counted(t, back, n); who != secret {
			t.Error("another process counts")
		}
		out, e := sh(t, back, "hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | od -An -tx1")
		lines := strings.Split(out, "\n")
		if !e.Success() || lines[0] != "box" {
			t.Fatalf("%v: %q", e, out)
		}
		for _, v := range lines[1:4] {
			if seen[v] {
				t.Errorf("%s is in both", v)
			}
			seen[v] = true
		}
	}
	if _, err := restorer(t, other).Restore(t.Context(), "snap-none", "none"); !errors.Is(err, isolation.ErrNotFound) {
		t.Errorf("of nothing: %v", err)
	}
}

// TestSnapshotRefused: what was changed, or was made by another QEMU, processor or
// machine, does not run.
func TestSnapshotRefused(t *testing.T) {
	c := config(t)
	c.Snapshots = t.TempDir()
	sb := create(t, newDriver(t, c), "refuse", isolation.Spec{})
	snapshot(t, sb, "good")
	s, _ := isolation.As[isolation.Snapshotter](sb)
	if err := s.Snapshot(t.Context(), "good"); !errors.Is(err, isolation.ErrAlreadyExists) {
		t.Errorf("a second one of that name: %v", err)
	}
	if err := s.Snapshot(t.Context(), "../bad"); !errors.Is(err, isolation.ErrInvalidArgument) {
		t.Errorf("of a bad name: %v", err)
	}
	dir := filepath.Join(c.Snapshots, "good")
	if entries, err := os.ReadDir(c.Snapshots); err != nil || len(entries) != 2 { // and the lock
		t.Errorf("%v, %v: more than a snapshot and a lock", entries, err)
	}
	doc, err := os.ReadFile(filepath.Join(dir, "template.json"))
	if err != nil {
		t.Fatal(err)
	}
	flip := func(name string, at int64) {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var b [1]byte
		_, err = f.ReadAt(b[:], at)
		b[0] ^= 1
		_, werr := f.WriteAt(b[:], at)
		if err != nil || werr != nil {
			t.Fatal(err, werr)
		}
	}
	edit := func(f func(t *microvm.Template)) {
		var tpl microvm.Template
		if err := json.Unmarshal(doc, &tpl); err != nil {
			t.Fatal(err)
		}
		f(&tpl)
		tpl.Digest = microvm.Sum(&tpl)
		b, err := json.Marshal(tpl)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "template.json"), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, change := range map[string]func(){
		"memory":       func() { flip("ram", 1<<20) },
		"devices":      func() { flip("state", 5000) },
		"disk":         func() { flip("disk", 4096) },
		"words":        func() { flip("template.json", 40) },
		"a QEMU":       func() { edit(func(t *microvm.Template) { t.Key.Binary.Inode++ }) },
		"a processor":  func() { edit(func(t *microvm.Template) { t.Key.CPU += "2" }) },
		"of a machine": func() { edit(func(t *microvm.Template) { t.Shape.MemoryMiB *= 2 }) },
		"a template":   func() { edit(func(t *microvm.Template) { t.Live = nil }) },
	} {
		change()
		// Another driver: it has nothing in memory.
		back, err := restorer(t, newDriver(t, c)).Restore(t.Context(), "refuse-"+strings.Fields(name)[0], "good")
		if err == nil {
			t.Errorf("%s: it runs", name)
			_ = back.Delete(t.Context())
		} else if !errors.Is(err, isolation.ErrFailedPrecondition) && name != "words" {
			t.Errorf("%s: %v", name, err)
		}
		switch name {
		case "memory", "devices", "disk":
			change() // as it was
		}
		if err := os.WriteFile(filepath.Join(dir, "template.json"), doc, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	back, err := restorer(t, newDriver(t, c)).Restore(t.Context(), "refuse-not", "good")
	if err != nil {
		t.Fatalf("as it was it does not run: %v", err)
	}
	if out, e := sh(t, back, "echo here"); out != "here\n" || !e.Success() {
		t.Errorf("%q, %v", out, e)
	}
	if err := back.Delete(t.Context()); err != nil {
		t.Error(err)
	}
}
