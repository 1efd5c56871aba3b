package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/internal/testprog"
)

// TestStateDirectoryThatFails: on a disk that is full, or read-only, or of which a part
// is garbage, what cannot be done is refused with the reason and leaves nothing, what is
// there can be seen and removed, and all is well again when the disk is.
func TestStateDirectoryThatFails(t *testing.T) {
	testprog.Root(t, "to mount a small disk")
	h := newHost(t)
	if !haveContainers(t, []string{"AXO_GUEST_PATH=" + filepath.Join(h.dir, "axo-guest")}) {
		t.Skip("SKIPPED, NOT PROVED: this host has no containers")
	}
	if err := os.Mkdir(h.state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("axo-test", h.state, "tmpfs", 0, "size=8m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(h.state, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	d := h.serve(t, "", "--warm", "0")
	h.must(t, "create", "--id", "one")
	h.must(t, "create", "--id", "two")
	refused := func(want string, args ...string) {
		t.Helper()
		if out, err := h.do(args...); err == nil || !strings.Contains(out, want) {
			t.Errorf("axo %v: %v, want %q: %s", args, err, want, out)
		}
	}
	lists := func(want ...string) {
		t.Helper()
		list := h.must(t, "ps")
		for _, name := range want {
			if !strings.Contains(list, name+" ") {
				t.Errorf("%s is not there:\n%s", name, list)
			}
		}
		if n := strings.Count(list, "\n") - 1; n != len(want) {
			t.Errorf("%d sandboxes, want %v:\n%s", n, want, list)
		}
	}

	fill(t, filepath.Join(h.state, "fill"))
	refused("disk is full", "create", "--id", "three")
	refused("disk is full", "exec", "one", "--", "true")
	lists("one", "two")
	h.must(t, "rm", "two")
	lists("one")
	// Also for one that was killed meanwhile.
	if err := d.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-d.ended
	fill(t, filepath.Join(h.state, "fill2"))
	d = h.serve(t, "", "--warm", "0")
	lists("one")
	for _, f := range []string{"fill", "fill2"} {
		if err := os.Remove(filepath.Join(h.state, f)); err != nil {
			t.Fatal(err)
		}
	}
	if out := h.must(t, "exec", "one", "--", "echo", "again"); out != "again\n" {
		t.Errorf("%q", out)
	}

	// No disk becomes read-only while something on it is open for writing.
	if err := d.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-d.ended
	if err := unix.Mount("", h.state, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	refused("read-only file system", "serve", "--warm", "0")
	if err := unix.Mount("", h.state, "", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}

	// Garbage in the place of what was written down.
	records := h.glob(t, filepath.Join(h.state, "serve", "one.*", "session.json"))
	entry := filepath.Join(h.state, "journal", "garbage.json")
	if len(records) != 1 {
		t.Fatalf("%v", records)
	}
	good, err := os.ReadFile(records[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{records[0], entry} {
		if err := os.WriteFile(file, []byte("{\"id\": \x00"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d = h.serve(t, "", "--warm", "0")
	h.must(t, "create", "--id", "three")
	h.must(t, "exec", "three", "--", "true")
	h.must(t, "rm", "three")
	if len(h.guests(t)) == 0 {
		t.Error("what nobody can read was ended")
	}
	d.stop(t)
	if !strings.Contains(d.log.String(), "cannot be read") {
		t.Errorf("nobody is told of the garbage:\n%s", d.log)
	}
	if err := os.WriteFile(records[0], good, 0o600); err != nil {
		t.Fatal(err)
	}
	d = h.serve(t, "", "--warm", "0")
	lists("one")
	h.must(t, "exec", "one", "--", "true")
	h.must(t, "rm", "one")
	d.stop(t)
	if err := os.Remove(entry); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if left := h.guests(t); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// fill takes all that is left of a disk.
func fill(t *testing.T, file string) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil && !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if err != nil {
		return
	}
	defer f.Close()
	b := make([]byte, 4096)
	for err == nil {
		_, err = f.Write(b)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}
