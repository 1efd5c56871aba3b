package engine_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/mem"
	"github.com/axocoatl/isolation/engine"
)

// TestRecover: an engine finds what another one's drivers have left, once, and is
// told what it does not get.
func TestRecover(t *testing.T) {
	host := mem.NewHost()
	open := func() (*engine.Engine, *mem.Driver) {
		d := mem.New(mem.Config{Name: "builtin", Host: host, Features: func(f *isolation.Features) { f.Tier = isolation.TierOCI }})
		var reg isolation.Registry
		reg.Add(isolation.TierOCI, d)
		reg.Add(isolation.TierNone, mem.New(mem.Config{Name: "without", Features: func(f *isolation.Features) { f.Abilities = nil }}))
		e, err := engine.New(engine.Config{Registry: reg, StateDir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		return e, d
	}
	fill := func(d *mem.Driver, id string) {
		sb, err := d.Create(t.Context(), id, isolation.Spec{Requirement: isolation.Shell, Detached: true})
		if err != nil {
			t.Fatal(err)
		}
		started := make(chan struct{})
		_, err = sb.Exec(t.Context(), isolation.ProcessSpec{ExecID: "e", Args: []string{"ready", "600"}}, isolation.Stdio{
			Stdout: writerFunc(func([]byte) (int, error) { close(started); return 0, io.ErrClosedPipe }),
		})
		if err != nil {
			t.Fatal(err)
		}
		<-started
	}
	first, a := open()
	fill(a, "lives")
	fill(a, "lost")
	other, b := open()
	fill(b, "held")
	defer other.Close()
	a.Crash()
	if !b.Lose("held", "") {
		t.Fatal("there is no sandbox held")
	}

	third, c := open()
	list, err := third.Recover(t.Context())
	if err != nil || len(list) != 3 {
		t.Fatalf("%+v, %v", list, err)
	}
	for _, x := range list {
		if x.Tier != isolation.TierOCI || x.Engine != "builtin" || x.Created.IsZero() {
			t.Errorf("%+v", x)
		}
		switch {
		case x.ID == "held":
			if x.Holder == 0 || x.Sandbox != nil || x.Err != nil {
				t.Errorf("%+v", x)
			}
			continue
		case x.Sandbox == nil || x.Err != nil || x.Holder != 0:
			t.Errorf("%+v", x)
			continue
		}
		at, _ := isolation.As[isolation.Attacher](x.Sandbox)
		var out bytes.Buffer
		p, err := at.Attach(t.Context(), "e", isolation.Offsets{}, isolation.Stdio{Stdout: &out})
		if err != nil {
			t.Fatal(err)
		}
		if err := x.Sandbox.Delete(t.Context()); err != nil {
			t.Error(err)
		}
		if e, err := p.Wait(t.Context()); err != nil || e.Reason != isolation.ReasonCanceled || out.String() != "ready\n" {
			t.Errorf("%v, %v, %q", e, err, &out)
		}
	}
	if list, err = third.Recover(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("again: %+v, %v", list, err)
	}
	// What is lost when its holder has ended is told once.
	b.Crash()
	list, err = third.Recover(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != "held" || list[0].Sandbox != nil || isolation.Class(list[0].Err) != isolation.ErrNotFound {
		t.Errorf("%+v, %v", list, err)
	}
	if list, err = third.Recover(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("at the end: %+v, %v", list, err)
	}
	if err := errors.Join(first.Close(), third.Close(), c.Close()); err != nil {
		t.Error(err)
	}
	if _, err := third.Recover(t.Context()); isolation.Class(err) != isolation.ErrFailedPrecondition {
		t.Errorf("after Close: %v", err)
	}
}
