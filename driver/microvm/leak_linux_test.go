package microvm_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/axocoatl/isolation"
)

// stock is what this process has of its host.
type stock struct{ fds, goroutines, mounts, left, children int }

// moreThan reports whether there is more of anything. Less is what a goroutine that
// was on its way out had.
func (s stock) moreThan(o stock) bool {
	return s.fds > o.fds || s.goroutines > o.goroutines || s.mounts > o.mounts || s.left > o.left || s.children > o.children
}

func takeStock(t testing.TB) stock {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	own := 0 // others mount things, too
	for l := range strings.Lines(string(mounts)) {
		if strings.Contains(l, work) {
			own++
		}
	}
	children := 0
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range tasks {
		b, _ := os.ReadFile(f) // a thread may have ended
		children += len(strings.Fields(string(b)))
	}
	return stock{len(fds), runtime.NumGoroutine(), own, len(leftovers(t)), children}
}

// TestManyMachines: what a machine takes of the host it gives back, eight of them
// at a time too, and whatever they are doing when they are deleted. AXO_RUNS is how
// many.
func TestManyMachines(t *testing.T) {
	runs := 24
	if n, err := strconv.Atoi(os.Getenv("AXO_RUNS")); err == nil {
		runs = n
	}
	d := newDriver(t, config(t))
	if standInRun != nil { // it counts, too
		<-standInRun.done
	}
	var made atomic.Int64
	once := func() error {
		n := made.Add(1)
		sb, err := d.Create(context.Background(), fmt.Sprintf("dt-%d-leak-%d", os.Getpid(), n), isolation.Spec{
			Requirement: isolation.Shell, Resources: isolation.Resources{MemoryBytes: 64 << 20, Pids: 20},
		})
		if err != nil {
			return err
		}
		args := []string{"/bin/sh", "-c", []string{"exit 3", "(sleep 1000 &); echo x; exit 3", "sleep 1000", "cat"}[n%4]}
		r, w := io.Pipe()
		defer w.Close()
		p, err := sb.Exec(context.Background(), isolation.ProcessSpec{Args: args, Env: []string{"PATH=/usr/bin:/bin"}}, isolation.Stdio{Stdin: r, Stdout: io.Discard})
		if err != nil {
			return err
		}
		if n%4 < 2 {
			if e, err := p.Wait(context.Background()); err != nil || e.Code != 3 {
				return fmt.Errorf("run %d: %v %w", n, e, err)
			}
		}
		if err := sb.Delete(context.Background()); err != nil {
			return err
		}
		if e, err := p.Wait(context.Background()); err != nil || n%4 >= 2 && e.Reason != isolation.ReasonCanceled {
			return fmt.Errorf("run %d: %v %w", n, e, err)
		}
		return nil
	}
	all := func(n int) {
		t.Helper()
		var g errgroup.Group
		g.SetLimit(8)
		for range n {
			g.Go(once)
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	all(8)
	before := takeStock(t)
	all(runs)
	var after stock
	for range 200 { // goroutines that are on their way out get a moment
		if after = takeStock(t); !after.moreThan(before) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("after %d machines: %+v, before: %+v", runs, after, before)
}
