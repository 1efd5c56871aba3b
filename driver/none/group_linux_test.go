package none

import (
	"context"
	"os"
	"testing"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/internal/cgroup"
)

// TestUnified runs the version 2 code on whatever hierarchy of that version is
// mounted: its members, its kill and its CPU time need no controller.
func TestUnified(t *testing.T) {
	g := cgroup.FindUnified()
	if !g.Any() {
		missing(t, "no group can be made in a version 2 hierarchy: "+g.Why(cgroup.Core))
	}
	t.Logf("groups are made in %s", g.Base(cgroup.Core))
	e := &nativeEngine{cfg: Config{}, found: g}
	if err := e.cfg.setDefaults(); err != nil {
		t.Fatal(err)
	}
	var last *nativePlace // the one that was made
	d := proc.New(lastPlace{e, &last}, e.cfg.Drain)
	defer d.Close()
	sb, err := d.Create(t.Context(), "unified", isolation.Spec{Requirement: isolation.NativeTrusted})
	if err != nil {
		t.Fatal(err)
	}
	gr := last.group
	p, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"sh", "-c",
		"trap '' TERM; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; (setsid sleep 1000 &); exit 3"}}, isolation.Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	exit, err := p.Wait(t.Context())
	if err != nil || exit.Code != 3 || exit.Survivors != 1 || exit.Usage.CPU == 0 {
		t.Errorf("%+v, %v, want status 3 and one survivor", exit, err)
	}
	left, err := gr.PIDs()
	if err != nil || len(left) != 1 {
		t.Errorf("members %v, %v, want the survivor", left, err)
	}
	if err := sb.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	for _, dir := range gr.Dirs() {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", dir, err)
		}
	}
	if !g.Has(cgroup.Memory) {
		f := isolation.Features{}
		if err := e.Probe(t.Context(), &f); err != nil {
			t.Error(err)
		}
	}
}

func missing(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("AXO_REQUIRE") == "1" {
		t.Fatal("REQUIRED: " + why)
	}
	t.Skip("SKIPPED, NOT PROVED: " + why)
}

// lastPlace is the engine, and keeps the place that it made last.
type lastPlace struct {
	*nativeEngine
	last **nativePlace
}

func (l lastPlace) Create(ctx context.Context, id string, spec isolation.Spec) (proc.Place, error) {
	pl, err := l.nativeEngine.Create(ctx, id, spec)
	if err == nil {
		*l.last = pl.(*nativePlace)
	}
	return pl, err
}
