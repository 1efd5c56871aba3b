package microvm_test

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/microvm"
)

// asked is a builder that says what it is asked for, and builds nothing.
type asked struct {
	microvm.Builder
	inputs microvm.Inputs
	name   string
	recipe microvm.Recipe
	reuse  string
}

var errAsked = errors.New("asked to build")

func (a *asked) Inputs(context.Context, microvm.Recipe) (microvm.Inputs, error) { return a.inputs, nil }

func (a *asked) Build(_ context.Context, name string, r microvm.Recipe, _ microvm.Inputs, reuse string) error {
	a.name, a.recipe, a.reuse = name, r, reuse
	return errAsked
}

// TestStale: a template is used while what it was made of is what it would be made
// of, and else it is made anew, or said how that is done.
func TestStale(t *testing.T) {
	c := config(t)
	is, err := microvm.ReadTemplate(c.Templates, microvm.DefaultTemplate)
	if err != nil {
		t.Fatal(err)
	}
	fresh := microvm.Inputs{Kernel: is.Key.Kernel, Guest: is.Key.Guest, Source: is.Key.Source}
	check := func(in microvm.Inputs) error {
		c.Builder = &asked{inputs: in}
		return microvm.Check(t.Context(), c, microvm.DefaultTemplate)
	}
	if err := check(fresh); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*microvm.Inputs){
		"kernel": func(in *microvm.Inputs) { in.Kernel += "x" }, "guest": func(in *microvm.Inputs) { in.Guest += "x" },
	} {
		in := fresh
		change(&in)
		if err := check(in); !errors.Is(err, isolation.ErrFailedPrecondition) {
			t.Errorf("another %s: %v", name, err)
		}
	}
	qemu := t.TempDir() + "/qemu-system-x86_64"
	if err := os.WriteFile(qemu, []byte("another"), 0o755); err != nil {
		t.Fatal(err)
	}
	old := c.QEMU
	c.QEMU = qemu
	if err := check(fresh); !errors.Is(err, isolation.ErrFailedPrecondition) {
		t.Errorf("another QEMU: %v", err)
	}
	c.QEMU = old

	// What a sandbox needs and is not there is asked for.
	for _, x := range []struct {
		what   string
		spec   isolation.Spec
		source string
		name   string
		want   microvm.Recipe
	}{
		{"memory", isolation.Spec{Resources: isolation.Resources{MemoryBytes: 900 << 20}}, "", "default-m1024", microvm.Recipe{MemoryMiB: 1024, CPUs: 1}},
		{"disk", isolation.Spec{Resources: isolation.Resources{DiskBytes: 1500 << 20}}, "", "default-m2048", microvm.Recipe{MemoryMiB: 2048, CPUs: 1}},
		{"cores", isolation.Spec{Resources: isolation.Resources{CPUs: 1.5}}, "", "default-c2", microvm.Recipe{MemoryMiB: is.Shape.MemoryMiB, CPUs: 2}},
		{"session", isolation.Spec{Profile: "session"}, "", "default-session", microvm.Recipe{MemoryMiB: is.Shape.MemoryMiB, CPUs: 1, Session: true}},
		{"image", isolation.Spec{Root: isolation.Root{Image: "box"}}, "sha256:1", "", microvm.Recipe{MemoryMiB: is.Shape.MemoryMiB, CPUs: 1, Image: "sha256:1"}},
	} {
		b := &asked{inputs: fresh}
		if x.source != "" {
			b.inputs.Source = x.source
		}
		c.Builder = b
		x.spec.Requirement = isolation.Shell
		_, err := newDriver(t, c).Create(t.Context(), "x", x.spec)
		if !errors.Is(err, errAsked) {
			t.Errorf("%s: %v", x.what, err)
			continue
		}
		r := b.recipe
		if x.name != "" && b.name != x.name || r.MemoryMiB != x.want.MemoryMiB || r.CPUs != x.want.CPUs || r.Session != x.want.Session || r.Image != x.want.Image {
			t.Errorf("%s: %s of %+v", x.what, b.name, r)
		}
		if (x.source == "") != (b.reuse != "") {
			t.Errorf("%s: the disk %q is used again", x.what, b.reuse)
		}
	}
}
