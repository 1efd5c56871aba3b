package microvm_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/microvm"
)

// counter is a program that goes on for ever, with all it knows in its memory:
// who it is, and how far it is. It writes a line every 20 ms.
const counter = `import os, time, sys
secret = os.urandom(8).hex()
n = 0
while True:
    n += 1
    open('/tmp/count.new', 'w').write('%s %d' % (secret, n))
    os.rename('/tmp/count.new', '/tmp/count')
    time.sleep(0.02)`

// counted waits until the counter has got further than n, and returns who it is and
// how far it is.
func counted(t testing.TB, sb isolation.Sandbox, n int) (secret string, now int) {
	t.Helper()
	for range 200 {
		out, _ := sh(t, sb, "cat /tmp/count 2>/dev/null")
		if _, err := fmt.Sscanf(out, "%s %d", &secret, &now); err == nil && now > n {
			return secret, now
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("the counter does not go on from %d", n)
	return "", 0
}

// TestFork: copies of a sandbox go on with its processes and files, and have
// nothing in common from then on.
func TestFork(t *testing.T) { forks(t, config(t)) }

func forks(t *testing.T, c microvm.Config) {
	d := newDriver(t, c)
	sb := create(t, d, "fork-parent", isolation.Spec{Hostname: "box"})
	if _, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"python3", "-c", counter}}, isolation.Stdio{}); err != nil {
		t.Fatal(err)
	}
	secret, n := counted(t, sb, 3)
	if out, e := sh(t, sb, "echo theirs >/tmp/kept"); !e.Success() {
		t.Fatal(out)
	}
	f, ok := isolation.As[isolation.Forker](sb)
	if !ok {
		t.Fatal("it cannot be forked")
	}
	begin := time.Now()
	forks, err := f.Fork(t.Context(), []string{"fork-1", "fork-2", "fork-3"})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("fork into 3: %v", time.Since(begin))
	all := append(forks, sb)
	t.Cleanup(func() {
		for _, f := range forks {
			if err := f.Delete(context.Background()); err != nil {
				t.Error(err)
			}
		}
	})
	ids := map[string]int{}
	for i, s := range all {
		who, _ := counted(t, s, n)
		if who != secret {
			t.Errorf("copy %d: another process counts", i)
		}
		out, e := sh(t, s, fmt.Sprintf("cat /tmp/kept; echo %d >>/tmp/kept; cat /tmp/kept; hostname", i)+"; "+identity)
		lines := strings.Split(out, "\n")
		if want := fmt.Sprintf("theirs\ntheirs\n%d\nbox\n", i); !e.Success() || !strings.HasPrefix(out, want) {
			t.Fatalf("copy %d: %v, %q, want %q", i, e, out, want)
		}
		for line, v := range lines[4:] {
			if other, ok := ids[v]; ok && v != "" {
				t.Errorf("line %d is %q in copies %d and %d", line, v, other, i)
			}
			ids[v] = i
		}
	}
	// A copy of a copy.
	second, ok := isolation.As[isolation.Forker](forks[0])
	if !ok {
		t.Fatal("a copy cannot be forked")
	}
	again, err := second.Fork(t.Context(), []string{"fork-1-1"})
	if err != nil {
		t.Fatal(err)
	}
	defer again[0].Delete(context.Background())
	if out, _ := sh(t, again[0], "cat /tmp/kept"); out != "theirs\n0\n" {
		t.Errorf("a copy's copy has %q", out)
	}
	counted(t, again[0], n)
}

// TestForkPaused: a paused sandbox stays paused, and its copies run.
func TestForkPaused(t *testing.T) {
	d := newDriver(t, config(t))
	sb := create(t, d, "fork-paused", isolation.Spec{})
	var out bytes.Buffer
	pr, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"/bin/cat"}}, isolation.Stdio{Stdin: strings.NewReader("x"), Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	if e, err := pr.Wait(t.Context()); err != nil || !e.Success() {
		t.Fatal(e, err)
	}
	p, _ := isolation.As[isolation.Pauser](sb)
	if err := p.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	f, _ := isolation.As[isolation.Forker](sb)
	forks, err := f.Fork(t.Context(), []string{"fork-running"})
	if err != nil {
		t.Fatal(err)
	}
	defer forks[0].Delete(context.Background())
	if got, e := sh(t, forks[0], "echo runs"); got != "runs\n" || !e.Success() {
		t.Errorf("in the copy: %q, %v", got, e)
	}
	standsStill(t, pr.PID())
	if err := p.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, e := sh(t, sb, "echo runs"); got != "runs\n" || !e.Success() {
		t.Errorf("after Resume: %q, %v", got, e)
	}
}
