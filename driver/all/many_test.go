package all_test

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/all"
	"github.com/axocoatl/isolation/engine"
	"github.com/axocoatl/isolation/internal/testprog"
)

// TestManyAtOnce has callers of several tenants in all tiers at once, some of
// whose programs run into limits. Each gets its own output and end, and nothing
// of theirs is open afterwards.
func TestManyAtOnce(t *testing.T) {
	e := newEngine(t)
	here := formsOf(t, e, tierForms)
	warm := func(f form) { // so that compiling is not part of it
		r := f.request(t, "cat")
		r.Process.Limits.Wall = time.Minute
		if _, err := e.Run(t.Context(), r); err != nil {
			t.Fatalf("%s: %v", f.name, err)
		}
	}
	for _, f := range here {
		warm(f)
	}
	var wg sync.WaitGroup
	for i := range 60 {
		for _, f := range here {
			tenant := fmt.Sprint(i % 4)
			text := strings.Repeat(fmt.Sprintf("%s %d of tenant %s\n", f.name, i, tenant), 1+i*50)
			echo, late := f.request(t, "cat"), f.request(t, "sleep")
			late.Process.Args = append(late.Process.Args, "60s")
			wg.Go(func() {
				var out bytes.Buffer
				r, want := echo, isolation.ReasonExited
				r.Process.Limits.Wall = 2 * time.Minute
				if i%10 == 9 {
					r, want = late, isolation.ReasonTimeoutWall
					r.Process.Limits.Wall = 200 * time.Millisecond
				}
				r.Spec.Tenant, r.Stdin, r.Stdout, r.Capture = tenant, strings.NewReader(text), &out, engine.DefaultCapture
				res, err := e.Run(t.Context(), r)
				switch {
				case err != nil:
					t.Errorf("%s %d: %v", f.name, i, err)
				case res.Exit.Reason != want:
					t.Errorf("%s %d ends with %v, want %s", f.name, i, res.Exit, want)
				case want == isolation.ReasonExited && out.String() != text:
					t.Errorf("%s %d: %d bytes came, not its own %d; it %v, wrote %d bytes and %q", f.name, i, out.Len(), len(text), res.Exit, res.StdoutBytes, res.Stderr)
				}
			})
		}
	}
	wg.Wait()
}

// TestCloseLeavesNoDescriptor counts the open files of this process.
func TestCloseLeavesNoDescriptor(t *testing.T) {
	open := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip("no /proc to count open files in")
		}
		return len(list)
	}
	worker := testprog.Worker(t)
	before := 0
	for i := range 3 { // the first opens what a Go program keeps
		state := t.TempDir()
		reg, err := all.Registry(all.Config{StateDir: state, Worker: worker})
		if err != nil {
			t.Fatal(err)
		}
		e, err := engine.New(engine.Config{Registry: reg, StateDir: state, ProbeTimeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			for _, f := range forms {
				if _, err := e.Run(t.Context(), f.request(t, "exit")); err != nil && isolation.Class(err) != isolation.ErrUnsupported {
					t.Fatalf("%s: %v", f.name, err)
				}
			}
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			before = open()
		}
	}
	if after := open(); after > before {
		t.Errorf("%d files are open, %d were after the first round", after, before)
	}
}
