package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/server"
	"github.com/axocoatl/isolation/client"
)

// TestLoad has 8 clients make, use and delete containers of one daemon, up to 200 at a
// time, for a moment, or for as long as AXO_LOAD says (make load). Nothing fails but what is honestly put off,
// nothing is left, no descriptor and no goroutine of the daemon's either, and its memory stays what it is.
func TestLoad(t *testing.T) {
	d, err := time.ParseDuration(cmp.Or(os.Getenv("AXO_LOAD"), "3s"))
	if err != nil {
		t.Fatal(err)
	}
	const clients, each, most = 8, 25, 150 << 20
	h := newHost(t)
	if !haveContainers(t, []string{"AXO_GUEST_PATH=" + filepath.Join(h.dir, "axo-guest")}) {
		t.Skip("SKIPPED, NOT PROVED: this host has no containers")
	}
	dm := h.serve(t, "")
	pid := dm.Process.Pid
	before := h.holds(t)
	end := time.Now().Add(d)
	var mu sync.Mutex
	var execs, creates []time.Duration
	var putOff int
	note := func(to *[]time.Duration, began time.Time) {
		mu.Lock()
		*to = append(*to, time.Since(began))
		mu.Unlock()
	}
	// again does something until it is not put off.
	again := func(what string, f func(ctx context.Context) error) bool {
		for {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			err := f(ctx)
			cancel()
			if err == nil {
				return true
			}
			after, said := api.RetryAfter(err)
			if !said || !errors.Is(err, isolation.ErrResourceExhausted) && !errors.Is(err, isolation.ErrUnavailable) {
				t.Errorf("%s: %v", what, err)
				return false
			}
			mu.Lock()
			putOff++
			mu.Unlock()
			time.Sleep(after)
		}
	}
	var wg sync.WaitGroup
	for n := range clients {
		wg.Go(func() {
			c, err := client.New(client.Config{Address: "unix://" + server.SocketPath(h.state), Key: h.key(t)})
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			rnd := rand.New(rand.NewPCG(uint64(n), 1)) //nolint:gosec // which sandbox is used is no secret
			var have []isolation.Sandbox
			remove := func() {
				sb := have[0]
				have = have[1:]
				again("delete", sb.Delete)
			}
			for i := 0; time.Now().Before(end) && !t.Failed(); i++ {
				if len(have) == each {
					remove()
				}
				spec := isolation.Spec{Requirement: isolation.Shell, Resources: isolation.Resources{MemoryBytes: 64 << 20, Pids: 32}}
				began := time.Now()
				if !again("create", func(ctx context.Context) error {
					sb, err := c.Create(ctx, fmt.Sprintf("c%d-%d", n, i), spec)
					if err == nil {
						have = append(have, sb)
					}
					return err
				}) {
					return
				}
				note(&creates, began)
				for range 3 {
					sb := have[rnd.IntN(len(have))]
					text := strings.Repeat(strconv.Itoa(rnd.Int()), 50)
					began := time.Now()
					again("exec", func(ctx context.Context) error { return echoes(ctx, sb, text) })
					note(&execs, began)
				}
				again("files", func(ctx context.Context) error { return keeps(ctx, have[len(have)-1]) })
			}
			for len(have) > 0 {
				remove()
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	var rss []int64
	for tick := time.Tick(time.Second); ; {
		select {
		case <-tick:
			rss = append(rss, residentOf(t, pid))
			continue
		case <-done:
		}
		break
	}
	if list := h.must(t, "ps"); strings.Count(list, "\n") != 1 {
		t.Errorf("sandboxes are left:\n%s", list)
	}
	after := residentOf(t, pid)
	// A few are of what stands ready for the next who asks.
	eventually(t, "the daemon to let go of descriptors and goroutines", func() bool {
		now := h.holds(t)
		return now["process_open_fds"] < before["process_open_fds"]+50 && now["go_goroutines"] < before["go_goroutines"]+80
	})
	dm.stop(t)
	h.clean(t, pid)
	peak := slices.Max(rss)
	if peak > most {
		t.Errorf("the daemon took %d MiB", peak>>20)
	}
	slices.Sort(execs)
	slices.Sort(creates)
	at := func(list []time.Duration, p int) time.Duration {
		return list[min(len(list)-1, len(list)*p/100)].Round(100 * time.Microsecond)
	}
	t.Logf("%d sandboxes (p50 %v, p99 %v), %d programs (p50 %v, p99 %v), %d put off; the daemon: %d MiB after a third, %d at its peak, %d when all were gone",
		len(creates), at(creates, 50), at(creates, 99), len(execs), at(execs, 50), at(execs, 99), putOff, rss[len(rss)/3]>>20, peak>>20, after>>20)
}

// holds is what the daemon's metrics say that it has.
func (h *host) holds(t *testing.T) map[string]float64 {
	t.Helper()
	out := map[string]float64{}
	for line := range strings.Lines(h.must(t, "debug", "metrics")) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && (name == "process_open_fds" || name == "go_goroutines") {
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			out[name] = n
		}
	}
	if len(out) != 2 {
		t.Fatalf("the metrics have %v", out)
	}
	return out
}

// echoes has a program say what it is given.
func echoes(ctx context.Context, sb isolation.Sandbox, text string) error {
	var out strings.Builder
	p, err := sb.Exec(ctx, isolation.ProcessSpec{Args: []string{"/bin/cat"}, Env: []string{"PATH=/usr/bin:/bin"}}, isolation.Stdio{Stdin: strings.NewReader(text), Stdout: &out})
	if err != nil {
		return err
	}
	e, err := p.Wait(ctx)
	if err == nil && (!e.Success() || out.String() != text) {
		err = fmt.Errorf("%v, %d bytes of %d", e, out.Len(), len(text))
	}
	return err
}

// keeps has the sandbox keep a file.
func keeps(ctx context.Context, sb isolation.Sandbox) error {
	f, ok := isolation.As[isolation.Files](sb)
	if !ok {
		return errors.New("there are no files")
	}
	const text = "what is kept"
	if err := f.WriteFile(ctx, "/tmp/kept", 0o644, strings.NewReader(text)); err != nil {
		return err
	}
	r, err := f.ReadFile(ctx, "/tmp/kept")
	if err != nil {
		return err
	}
	defer r.Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != text {
		return fmt.Errorf("%q, %w", b, err)
	}
	return nil
}

// residentOf is the memory of a process in bytes (proc_pid_status(5), VmRSS).
func residentOf(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}
