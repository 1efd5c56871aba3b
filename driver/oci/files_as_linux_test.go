package oci_test

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/oci"
)

// tries makes a file and a directory wherever a mount may have another opinion than the
// one above it, and tells where it could.
const tries = `b=; [ ! -x /bin/busybox ] || b=/bin/busybox
{ while read -r _ _ _ _ at _; do echo "$at"; done < /proc/self/mountinfo
for d in / /*/ /dev/*/ /proc/sys/*/ /sys/fs/*/; do echo "$d"; done; } | while read -r d; do
	[ -d "$d" ] || continue
	can=
	(: > "$d/of-axo") 2>/dev/null && can=file && $b rm "$d/of-axo"
	$b mkdir "$d/of-axo" 2>/dev/null && can=$can,directory && $b rmdir "$d/of-axo"
	echo "$d $can"
done`

// TestFilesAs: files as another user are what a program of that user gets at, and not
// more, whatever the profile: what the guest does for a user is not behind Landlock.
func TestFilesAs(t *testing.T) { eachEngine(t, testFilesAs) }

func testFilesAs(t *testing.T, c oci.Config) {
	d := newDriver(t, c)
	sb, p := start(t, d, isolation.Spec{}, isolation.ProcessSpec{}, io.Discard, "true")
	wait(t, p)
	u, ok := isolation.As[isolation.UserFiles](sb)
	if f, err := d.Probe(t.Context()); err != nil || ok != slices.Contains(f.Abilities, isolation.AbilityFiles) {
		t.Fatal(ok, err)
	}
	if !ok {
		return
	}
	if _, err := u.FilesAs("root"); !errors.Is(err, isolation.ErrUnsupported) {
		t.Errorf("on the host's directories: %v", err)
	}
	if !granted(t, d) {
		return
	}
	root := isolation.Root{Path: imageRoot(t)}
	for name, spec := range map[string]isolation.Spec{"strict": {Root: root}, "session": {Root: root, Profile: "session"}} {
		t.Run(name, func(t *testing.T) {
			const user = "root"
			var out bytes.Buffer
			sb, p := start(t, d, spec, isolation.ProcessSpec{User: user}, &out, tries)
			wait(t, p)
			u, ok := isolation.As[isolation.UserFiles](sb)
			if !ok {
				t.Fatal("it has no files")
			}
			f, err := u.FilesAs(user)
			if err != nil {
				t.Fatal(err)
			}
			made := 0
			for line := range strings.Lines(out.String()) {
				dir, can, _ := strings.Cut(strings.TrimSpace(line), " ")
				for what, do := range map[string]func(at string) error{
					"file":      func(at string) error { return f.WriteFile(t.Context(), at, 0o644, strings.NewReader("x")) },
					"directory": func(at string) error { return f.Mkdir(t.Context(), at, 0o755) },
				} {
					at := dir + "/of-axo"
					if do(at) != nil {
						continue
					}
					made++
					if err := f.Remove(t.Context(), at); err != nil {
						t.Errorf("%s: %v", at, err)
					}
					if !strings.Contains(can, what) {
						t.Errorf("%s makes a %s in %s, which its programs do not", user, what, dir)
					}
				}
			}
			if made == 0 {
				t.Errorf("%s makes nothing, anywhere: %s", user, out.Bytes())
			}
			if r, err := f.ReadFile(t.Context(), "/proc/1/mem"); err == nil {
				if b, err := io.ReadAll(io.LimitReader(r, 1)); err == nil {
					t.Errorf("%s reads the memory of the first process: %x", user, b)
				}
				r.Close()
			}
			watches(t, u, f)
			f, err = u.FilesAs("nobody-has-this-name")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.Stat(t.Context(), "/"); !errors.Is(err, isolation.ErrNotFound) {
				t.Errorf("who is not there: %v", err)
			}
		})
	}
}

// watches: root is told what happens in a directory of its own, another user is not.
func watches(t *testing.T, u isolation.UserFiles, root isolation.UserFilesystem) {
	t.Helper()
	const dir = "/tmp/of-root"
	if err := root.Mkdir(t.Context(), dir, 0o700); err != nil {
		t.Fatal(err)
	}
	events, err := root.Watch(t.Context(), dir, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := root.WriteFile(t.Context(), dir+"/x", 0o600, strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	for e := range events { // it ends with the sandbox, at the latest
		if e.Name == dir+"/x" {
			break
		}
	}
	other, err := u.FilesAs("1234")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Watch(t.Context(), dir, false); !errors.Is(err, isolation.ErrPermissionDenied) {
		t.Errorf("another user watches what is root's: %v", err)
	}
}
