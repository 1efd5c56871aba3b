package microvm_test

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/drivertest"
	"github.com/axocoatl/isolation/pool"
)

// TestConformancePool holds machines that stood ready, frozen, to what every
// driver does as far as that has to do with it: limits, arguments and streams are
// the machine's, whose own suite has them.
func TestConformancePool(t *testing.T) {
	c := config(t)
	var made []*pool.Pool
	drivertest.Run(t, drivertest.Config{
		New: func(t testing.TB) isolation.Driver {
			p, err := pool.New(pool.Config{Driver: newDriver(t, c), Learn: 2, Freeze: true, MakeTimeout: 2 * time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			made = append(made, p)
			return p
		},
		Command: command, Lose: loseMachine, Leftovers: leftovers, Patience: 90 * time.Second, Large: 4 << 20, Parallel: 4,
		Groups: []string{"lifecycle", "exec", "abilities", "close"},
	})
	hits := int64(0)
	for _, p := range made {
		hits += p.Stats().Hits
	}
	if hits < 10 {
		t.Errorf("%d machines came from a shelf: the suite has not tried the pool", hits)
	}
}

// TestPool: frozen machines are claimed, run and replaced. They have the right
// time, nothing that another's program left, and nothing secret in common.
func TestPool(t *testing.T) {
	spec := isolation.Spec{Requirement: isolation.Python}
	p, err := pool.New(pool.Config{
		Driver: newDriver(t, config(t)), Freeze: true, MakeTimeout: 2 * time.Minute, Makers: 2,
		Templates: []pool.Template{{Spec: spec, Size: 2, Warm: []isolation.ProcessSpec{{Args: []string{"/bin/true"}}}, Prepare: "python"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	const code = `import os, random, time, uuid
print(open('/proc/self/cmdline', 'rb').read().count(b'_a' + b'xo') > 0, os.path.exists('/tmp/left'))
open('/tmp/left', 'w').close()
print(time.time()); print(os.getrandom(16).hex()); print(uuid.uuid4()); print(random.random()); print(hash('axo'))`
	seen := map[string]bool{}
	for i := range 4 {
		for end := time.Now().Add(time.Minute); p.Stats().Idle < 2 && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
		if i == 2 {
			time.Sleep(1500 * time.Millisecond) // for a clock that stands to be seen
		}
		sb, err := p.Create(t.Context(), fmt.Sprint("claim-", i), spec)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		before := time.Now()
		pr, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"python3", "-c", code}}, isolation.Stdio{Stdout: &out, Stderr: &out})
		if err != nil {
			t.Fatal(err)
		}
		if e, err := pr.Wait(t.Context()); err != nil || !e.Success() {
			t.Fatalf("%v, %v: %s", e, err, out.String())
		}
		lines := strings.Split(out.String(), "\n")
		if lines[0] != "True False" {
			t.Errorf("claim %d: its interpreter waited, and what another left is there: %s; want True False", i, lines[0])
		}
		at, err := strconv.ParseFloat(lines[1], 64)
		if is := time.Unix(0, int64(at*1e9)); err != nil || is.Before(before.Add(-100*time.Millisecond)) || is.After(time.Now().Add(100*time.Millisecond)) {
			t.Errorf("claim %d: its time is %v, the host's %v", i, is, before)
		}
		for _, v := range lines[2:] {
			if v != "" && seen[v] {
				t.Errorf("claim %d: %s was another's", i, v)
			}
			seen[v] = true
		}
		if err := sb.Delete(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if st := p.Stats(); st.Hits != 4 || st.Failures != 0 || st.Spoiled != 0 {
		t.Errorf("%+v, want 4 hits", st)
	}
}
