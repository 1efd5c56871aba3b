package oci_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/oci"
	"github.com/axocoatl/isolation/internal/failpoint"
	"github.com/axocoatl/isolation/internal/journal"
	"github.com/axocoatl/isolation/internal/testprog"
)

// sweep is what the next engine does first.
func sweep(t *testing.T, c oci.Config) journal.Report {
	t.Helper()
	k, err := journal.OpenKeep(c.SessionDir)
	if err != nil {
		t.Fatal(err)
	}
	rep := k.Sweep()
	if len(rep.Errors) > 0 {
		t.Errorf("sweep: %v", rep.Errors)
	}
	return rep
}

// sleepers counts the programs of testhost.
func sleepers(t *testing.T) int { return marked(t, "sleep\x0086398") }

// groupsOf lists the control groups of a sandbox.
func groupsOf(t *testing.T, id string) (list []string) {
	t.Helper()
	for _, depth := range []string{"*", "*/*", "*/*/*", "*/*/*/*"} {
		names, err := filepath.Glob("/sys/fs/cgroup/" + depth + "/axo-oci-" + id + "-*")
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, names...)
	}
	return list
}

// TestDetachedIsKilledAtEachFailpoint kills a host at every point of a detached
// sandbox's life. After one sweep what was acknowledged is there, to the last byte,
// and what was not leaves nothing.
func TestDetachedIsKilledAtEachFailpoint(t *testing.T) {
	if os.Getenv("AXO_TEST_PROGRAMS") != "" {
		t.Skip("it takes a compiler; what it looks at is the same on every host")
	}
	host := filepath.Join(t.TempDir(), "testhost")
	if err := testprog.BuildPackage(host, "driver/oci/testhost", "failpoint"); err != nil {
		t.Fatal(err)
	}
	f, err := newDriver(t, oci.Config{}).Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	memory := f.Enforcement(isolation.LimitMemory).Enforced
	for _, engine := range []string{"builtin", "crun", "runc"} {
		for _, point := range failpoint.Detached {
			if engine != "builtin" && !slices.Contains([]string{failpoint.OCIStarted, failpoint.OCIMade, failpoint.OCIReady, failpoint.OCIUnready, failpoint.OCIEnded}, point) {
				continue // it is the same code
			}
			t.Run(engine+"/"+point, func(t *testing.T) {
				c := oci.Config{}
				if engine != "builtin" {
					c = hostedBy(t, engine)
				}
				c = detached(t, c)
				c.Guest = guestProgram
				killedAt(t, host, c, point, memory)
			})
		}
	}
}

func killedAt(t *testing.T, host string, c oci.Config, point string, memory bool) {
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	id, before := nextID(), sleepers(t)
	cmd := exec.Command(host, string(b), id, strconv.FormatBool(memory))
	cmd.Env = append(os.Environ(), "AXO_FAILPOINT="+point)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("was not killed: %v\n%s\n%s", err, out, errs.Bytes())
	}
	done := strings.Fields(string(out))
	created, deleting := slices.Contains(done, "created"), slices.Contains(done, "deleting")

	sweep(t, c)
	d := newDriver(t, c)
	r, ok := isolation.As[isolation.Recoverer](d)
	if !ok {
		t.Fatal("the driver is no Recoverer")
	}
	list, err := r.Recoverable(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case deleting && len(list) != 0:
		t.Errorf("its removal had begun, and it is there: %+v", list)
	case created && !deleting && len(list) != 1:
		t.Errorf("it was made, and is not there: %+v", list)
	}
	for _, x := range list {
		if x.ID != id || x.Err != nil || x.Holder != 0 {
			t.Fatalf("%+v", x)
		}
		sb, err := r.Recover(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		finds(t, sb, done)
		if err := sb.Delete(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if rep := sweep(t, c); rep.Entries != 0 || rep.Kept != 0 {
		t.Errorf("there is something to sweep still: %+v", rep)
	}
	if left := append(sessions(t, c), groupsOf(t, id)...); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	eventually(t, "its programs to go", func() bool { return sleepers(t) == before })
}

// finds looks for the programs of which a host has said that they run: the last 16
// that have ended, and one that runs still.
func finds(t *testing.T, sb isolation.Sandbox, done []string) {
	t.Helper()
	var short []string
	for _, w := range done {
		if strings.HasPrefix(w, "short-") {
			short = append(short, w)
		}
	}
	if len(short) > 0 {
		// The last one may run still, and the one before it was pushed out by then.
		short = short[max(0, len(short)-16):]
	}
	a, _ := isolation.As[isolation.Attacher](sb)
	for _, w := range short {
		var out bytes.Buffer
		p, err := a.Attach(t.Context(), w, isolation.Offsets{}, isolation.Stdio{Stdout: &out})
		if err != nil {
			t.Errorf("%s: %v", w, err)
			continue
		}
		want, _ := strconv.Atoi(strings.TrimPrefix(w, "short-"))
		if e := wait(t, p); e.Reason != isolation.ReasonExited || e.Code != want || out.String() != w+"\n" {
			t.Errorf("%s: %v, %q", w, e, &out)
		}
	}
	if slices.Contains(done, "long") {
		var out bytes.Buffer
		p, err := a.Attach(t.Context(), "long", isolation.Offsets{}, isolation.Stdio{Stdout: &out})
		if err != nil {
			t.Fatalf("long: %v", err)
		}
		if err := p.Kill(t.Context(), isolation.SIGKILL); err != nil {
			t.Error(err)
		}
		if e := wait(t, p); e.Signal != isolation.SIGKILL || out.String() != "long\n" || e.Survivors < 1 {
			t.Errorf("long: %v, %q", e, &out)
		}
	}
}

// abandon makes a detached sandbox, runs a script in it, and leaves both.
func abandon(t *testing.T, c oci.Config, spec isolation.Spec, p isolation.ProcessSpec, script string) (id string) {
	t.Helper()
	d, err := oci.New(c)
	if err != nil {
		t.Fatal(err)
	}
	spec.Detached = true
	if spec.Requirement == 0 {
		spec.Requirement = isolation.Shell
	}
	id = nextID()
	sb, err := d.Create(t.Context(), id, spec)
	if err != nil {
		t.Fatal(err)
	}
	p.ExecID, p.Args, p.Env = "left", []string{"/bin/sh", "-c", script}, []string{"PATH=/usr/bin:/bin"}
	started := make(chan struct{})
	if _, err := sb.Exec(t.Context(), p, isolation.Stdio{Stdout: writes(func(b []byte) (int, error) { close(started); return 0, io.ErrClosedPipe })}); err != nil {
		t.Fatal(err)
	}
	<-started
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	return id
}

type writes func(b []byte) (int, error)

func (w writes) Write(b []byte) (int, error) { return w(b) }

// found recovers a sandbox and attaches to the program in it.
func found(t *testing.T, c oci.Config, id string) (isolation.Sandbox, isolation.Process, *bytes.Buffer) {
	t.Helper()
	d := newDriver(t, c)
	r, _ := isolation.As[isolation.Recoverer](d)
	sb, err := r.Recover(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sb.Delete(context.Background()); err != nil {
			t.Error(err)
		}
	})
	out := new(bytes.Buffer)
	a, _ := isolation.As[isolation.Attacher](sb)
	p, err := a.Attach(t.Context(), "left", isolation.Offsets{}, isolation.Stdio{Stdout: out})
	if err != nil {
		t.Fatal(err)
	}
	return sb, p, out
}

// TestDetachedTruth has programs run into limits, and end, while nobody has their
// sandbox. Who recovers it is told so.
func TestDetachedTruth(t *testing.T) {
	c := detached(t, oci.Config{})
	c.Guest = guestProgram
	probe, err := newDriver(t, c).Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// Everything goes on only when nobody is there: a file says when.
	for _, x := range []struct {
		name   string
		res    isolation.Resources
		limits isolation.Limits
		script string
		needs  isolation.Limit
		check  func(e isolation.Exit) bool
	}{
		{name: "signal", script: "echo x; sleep 0.3; kill -SEGV $$",
			check: func(e isolation.Exit) bool {
				return e.Reason == isolation.ReasonSignaled && e.Signal == isolation.SIGSEGV
			}},
		{name: "cpu", limits: isolation.Limits{CPU: 500 * time.Millisecond}, script: "echo x; while :; do :; done", needs: isolation.LimitCPUTime,
			check: func(e isolation.Exit) bool { return e.Reason == isolation.ReasonTimeoutCPU }},
		{name: "memory", res: isolation.Resources{MemoryBytes: 32 << 20}, script: "echo x; sleep 0.3; head -c 100000000 /dev/zero | tail -c 100000000 | wc -c; exit 3", needs: isolation.LimitMemory,
			check: func(e isolation.Exit) bool { return e.Reason == isolation.ReasonOOM && hits(e, isolation.LimitMemory) }},
		{name: "pids", res: isolation.Resources{Pids: 20}, script: "echo x; sleep 0.3; i=0; while [ $i -lt 40 ]; do (sleep 60 &) 2>/dev/null; i=$((i+1)); done; exit 4", needs: isolation.LimitPids,
			check: func(e isolation.Exit) bool { return hits(e, isolation.LimitPids) }},
		{name: "output", limits: isolation.Limits{OutputBytes: 1 << 20}, script: "echo x; sleep 0.3; yes",
			check: func(e isolation.Exit) bool {
				return e.Reason == isolation.ReasonOutputLimit && e.Stdout.Bytes > 1<<20 && e.Stdout.Dropped == e.Stdout.Bytes-1<<20
			}},
	} {
		t.Run(x.name, func(t *testing.T) {
			if x.needs != "" && !probe.Enforcement(x.needs).Enforced {
				t.Skipf("the host cannot enforce the limit %s", x.needs)
			}
			id := abandon(t, c, isolation.Spec{Resources: x.res}, isolation.ProcessSpec{Limits: x.limits}, x.script)
			time.Sleep(700 * time.Millisecond) // so that most of it happens now; it need not
			_, p, out := found(t, c, id)
			if e := wait(t, p); !x.check(e) || !strings.HasPrefix(out.String(), "x\n") {
				t.Errorf("%+v, %v, %.20q", e, e.LimitsHit, out)
			}
		})
	}
	if left := append(leftovers(t), sessions(t, c)...); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

func hits(e isolation.Exit, l isolation.Limit) bool {
	return slices.ContainsFunc(e.LimitsHit, func(h isolation.LimitHit) bool { return h.Limit == l && h.Count > 0 })
}

// TestDetachedTerminal finds a shell on a terminal again: its size can be set, and it
// takes input.
func TestDetachedTerminal(t *testing.T) {
	c := detached(t, oci.Config{})
	c.Guest = guestProgram
	d, err := oci.New(c)
	if err != nil {
		t.Fatal(err)
	}
	id := nextID()
	sb, err := d.Create(t.Context(), id, isolation.Spec{Requirement: isolation.Shell, Detached: true})
	if err != nil {
		t.Fatal(err)
	}
	in, feed := io.Pipe()
	ready := make(chan struct{}, 100)
	spec := isolation.ProcessSpec{
		ExecID: "left", Args: []string{"/bin/sh", "-c", `stty -echo; echo ready; read a; stty size; echo "got $a"; exit 5`},
		Env: []string{"PATH=/usr/bin:/bin"}, Terminal: true, Size: isolation.TerminalSize{Rows: 10, Cols: 20},
	}
	if _, err := sb.Exec(t.Context(), spec, isolation.Stdio{Stdin: in, Stdout: writes(func(b []byte) (int, error) { ready <- struct{}{}; return len(b), nil })}); err != nil {
		t.Fatal(err)
	}
	<-ready
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	feed.Close()
	sb, p, out := found(t, c, id)
	r, ok := isolation.As[isolation.Resizer](p)
	if !ok {
		t.Fatal("no Resizer")
	}
	if err := r.Resize(t.Context(), isolation.TerminalSize{Rows: 33, Cols: 44}); err != nil {
		t.Fatal(err)
	}
	a, _ := isolation.As[isolation.Attacher](sb)
	if _, err := a.Attach(t.Context(), "left", isolation.Offsets{Stdin: -1}, isolation.Stdio{Stdin: strings.NewReader("word\n")}); err != nil {
		t.Fatal(err)
	}
	if e := wait(t, p); e.Code != 5 || !strings.Contains(out.String(), "33 44\r\ngot word\r\n") {
		t.Errorf("%v, %q", e, out)
	}
}

// TestDetachedRecord has records that somebody has changed: no crash, a clear error,
// and nothing is touched.
func TestDetachedRecord(t *testing.T) {
	c := detached(t, oci.Config{})
	c.Guest = guestProgram
	id := abandon(t, c, isolation.Spec{}, isolation.ProcessSpec{}, "echo x; sleep 86397")
	file := filepath.Join(c.SessionDir, "builtin", id, "record.json")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(filepath.Dir(file), "socket")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the guest's socket: %v, %v", info, err)
	}
	for _, name := range []string{file, filepath.Join(filepath.Dir(file), "note-left")} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	change := func(what string, f func(m, data map[string]any)) []byte {
		m := map[string]any{}
		if err := json.Unmarshal(good, &m); err != nil {
			t.Fatal(err)
		}
		f(m, m["data"].(map[string]any))
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		return b
	}
	d := newDriver(t, c)
	r, _ := isolation.As[isolation.Recoverer](d)
	for what, bad := range map[string][]byte{
		"empty":           {},
		"half":            good[:len(good)/2],
		"not an object":   []byte(`[1]`),
		"null":            []byte(`null`),
		"another version": change("v", func(m, _ map[string]any) { m["version"] = 2 }),
		"another id":      change("id", func(m, _ map[string]any) { m["id"] = "x" }),
		"process 1":       change("pid", func(m, _ map[string]any) { m["main"].(map[string]any)["pid"] = 1 }),
		"another process": change("pid", func(m, _ map[string]any) {
			m["main"] = map[string]any{"kind": "process", "pid": os.Getpid(), "start": startTime(t)}
		}),
		"no data":          change("data", func(m, _ map[string]any) { delete(m, "data") }),
		"not detached":     change("spec", func(_, d map[string]any) { d["spec"].(map[string]any)["detached"] = false }),
		"another brand":    change("brand", func(_, d map[string]any) { d["brand"] = 1 }),
		"another protocol": change("protocol", func(_, d map[string]any) { d["protocol"] = 99 }),
		"another group": change("group", func(_, d map[string]any) {
			d["group"] = map[string]any{"dirs": map[string]any{"pids": "/sys/fs/cgroup/pids"}, "list": "/sys/fs/cgroup/pids"}
		}),
	} {
		if err := os.WriteFile(file, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Recover(t.Context(), id); isolation.Class(err) != isolation.ErrFailedPrecondition {
			t.Errorf("%s: %v", what, err)
		}
		k, err := journal.OpenKeep(c.SessionDir)
		if err != nil {
			t.Fatal(err)
		}
		if rep := k.Sweep(); rep.Entries != 0 || len(rep.Removed) != 0 {
			t.Errorf("%s: the sweep touched something: %+v", what, rep)
		}
		if n := marked(t, "sleep\x0086397"); n != 1 {
			t.Fatalf("%s: %d sleepers", what, n)
		}
		if _, err := d.Create(t.Context(), id, isolation.Spec{Requirement: isolation.Shell, Detached: true}); isolation.Class(err) != isolation.ErrAlreadyExists {
			t.Errorf("%s: Create: %v", what, err)
		}
	}
	// A program of which nobody knows the limits is ended.
	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(file), "note-left"), []byte(`{"limits": 7`), 0o600); err != nil {
		t.Fatal(err)
	}
	sb, err := r.Recover(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the program without a record to end", func() bool { return marked(t, "sleep\x0086397") == 0 })
	if st, err := sb.State(t.Context()); err != nil || st.Status != isolation.StatusCreated {
		t.Errorf("%+v, %v", st, err)
	}
	if err := sb.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	if left := append(leftovers(t), sessions(t, c)...); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// TestDetachedIsDiscarded: what cannot be recovered can be removed, unless somebody
// has it or nobody can say what it is.
func TestDetachedIsDiscarded(t *testing.T) {
	c := detached(t, oci.Config{})
	c.Guest = guestProgram
	id := abandon(t, c, isolation.Spec{}, isolation.ProcessSpec{}, "echo x; sleep 86395")
	file := filepath.Join(c.SessionDir, "builtin", id, "record.json")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	d, other := newDriver(t, c), newDriver(t, c)
	r, _ := isolation.As[isolation.Recoverer](other)
	x, ok := isolation.As[isolation.Discarder](d)
	if !ok {
		t.Fatal("the driver is no Discarder")
	}
	if err := x.Discard(t.Context(), "nobody"); isolation.Class(err) != isolation.ErrNotFound {
		t.Errorf("of nothing: %v", err)
	}
	if _, err := r.Recover(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := x.Discard(t.Context(), id); isolation.Class(err) != isolation.ErrFailedPrecondition {
		t.Errorf("of another's: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, good[:10], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := x.Discard(t.Context(), id); isolation.Class(err) != isolation.ErrFailedPrecondition || marked(t, "sleep\x0086395") != 1 {
		t.Errorf("of one that cannot be read: %v", err)
	}
	if err := os.WriteFile(file, bytes.Replace(good, []byte(`"protocol":`), []byte(`"protocol":9`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := x.Discard(t.Context(), id); err != nil {
		t.Errorf("of one whose guest speaks another protocol: %v", err)
	}
	if left := append(leftovers(t), sessions(t, c)...); len(left) > 0 || marked(t, "sleep\x0086395") != 0 {
		t.Errorf("left: %q", left)
	}
}

func startTime(t *testing.T) uint64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	n, err := strconv.ParseUint(f[22-3], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestDetachedIDs: a range of user ids stays taken while nobody has the sandbox.
func TestDetachedIDs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: an ordinary user gives no ranges")
	}
	c := detached(t, oci.Config{})
	c.Guest = guestProgram
	id := abandon(t, c, isolation.Spec{}, isolation.ProcessSpec{}, "echo x; sleep 86396")
	var rec struct {
		Main struct{ PID int }
	}
	b, err := os.ReadFile(filepath.Join(c.SessionDir, "builtin", id, "record.json"))
	if err == nil {
		err = json.Unmarshal(b, &rec)
	}
	if err != nil {
		t.Fatal(err)
	}
	if b, err = os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", rec.Main.PID)); err != nil {
		t.Fatal(err)
	}
	var first, base int
	if _, err := fmt.Sscan(string(b), &first, &base); err != nil {
		t.Fatal(err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat("/run/axo/ids.lock", &st); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf(":%d %d %d", st.Ino, base>>16, base>>16)
	locked := func() bool {
		b, err := os.ReadFile("/proc/locks")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(b), want)
	}
	if !locked() {
		t.Error("nobody has the range of the sandbox's ids")
	}
	sb, _, _ := found(t, c, id)
	if err := sb.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	if locked() {
		t.Error("the range is taken still")
	}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited 20 s for %s", what)
		}
	}
}
