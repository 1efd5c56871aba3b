package server_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/server"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/axo/telemetry"
	"github.com/axocoatl/isolation/axo/tenant"
	"github.com/axocoatl/isolation/client"
	"github.com/axocoatl/isolation/driver/mem"
	"github.com/axocoatl/isolation/engine"

	"github.com/axocoatl/isolation/internal/testprog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// daemon is one that runs.
type daemon struct {
	addresses []string
	stop      func() error
	telemetry *telemetry.Telemetry
}

func run(t *testing.T, dir string, host *mem.Host, change ...func(*server.Config)) *daemon {
	t.Helper()
	return runWith(t, dir, host, telemetry.Config{Version: "v0-test"}, change...)
}

func runWith(t *testing.T, dir string, host *mem.Host, tc telemetry.Config, change ...func(*server.Config)) *daemon {
	t.Helper()
	var reg isolation.Registry
	reg.Add(isolation.TierOCI, mem.New(mem.Config{
		Host: host, Features: func(f *isolation.Features) { f.Tier = isolation.TierOCI },
		Programs: map[string]mem.Program{"count": count, "say": say},
	}))
	tel := telemetry.New(tc)
	e, err := engine.New(engine.Config{Registry: reg, Observer: tel.Engine(), OnEvent: tel.EngineEvent})
	if err != nil {
		t.Fatal(err)
	}
	ready := make(chan []string, 1)
	c := server.Config{StateDir: dir, Engine: e, Telemetry: tel, Listen: "127.0.0.1:0", Drain: 5 * time.Second, Ready: func(a []string) { ready <- a }}
	for _, f := range change {
		f(&c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx, c) }()
	d := &daemon{telemetry: tel, stop: sync.OnceValue(func() error { cancel(); return <-ended })}
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Error(err)
		}
	})
	select {
	case d.addresses = <-ready:
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
	}
	return d
}

// count writes numbered lines, slowly.
func count(c *mem.Proc) int {
	for i := range 300 {
		if _, err := fmt.Fprintf(c.Stdout(), "line %d\n", i); err != nil {
			return 1
		}
		time.Sleep(2 * time.Millisecond)
	}
	return 0
}

// say writes a few bytes to each stream.
func say(c *mem.Proc) int {
	if _, err := io.WriteString(c.Stdout(), "four"); err != nil {
		return 1
	}
	if _, err := io.WriteString(c.Stderr(), "seven.."); err != nil {
		return 1
	}
	return 0
}

// secret is the key that the daemon has made.
func secret(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile(tenant.TokenPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func dial(t *testing.T, dir, address string) *client.Driver {
	t.Helper()
	d, err := client.New(client.Config{Address: address, Key: secret(t, dir)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestDaemonForItsOwnerAlone(t *testing.T) {
	dir := t.TempDir()
	d := run(t, dir, mem.NewHost())
	if len(d.addresses) != 2 {
		t.Fatalf("%v", d.addresses)
	}
	for _, f := range []string{"axo.sock", "admin.sock", "token", "keys.json"} {
		if info, err := os.Stat(filepath.Join(dir, f)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", f, info.Mode(), err)
		}
	}
	for _, a := range d.addresses {
		if _, err := dial(t, dir, a).Sandboxes(t.Context(), nil); err != nil {
			t.Errorf("%s: %v", a, err)
		}
		wrong, err := client.New(client.Config{Address: a, Key: "e2b_" + strings.Repeat("0", 40)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := wrong.Sandboxes(t.Context(), nil); !errors.Is(err, isolation.ErrUnauthenticated) {
			t.Errorf("%s with another key: %v", a, err)
		}
		wrong.Close()
	}
	// A page whose name leads here.
	for host, want := range map[string]int{"evil.example": http.StatusMisdirectedRequest, "localhost": 200, "127.0.0.1:1": 200, "[::1]": 200, "169.254.169.254": http.StatusMisdirectedRequest} {
		r, err := http.NewRequestWithContext(t.Context(), "GET", d.addresses[1]+"/v1/health", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("Host %s: %d, want %d", host, resp.StatusCode, want)
		}
	}
}

// An ordinary user of the host gets at nothing of a daemon that another has.
func TestAnotherUserCannotConnect(t *testing.T) {
	testprog.Root(t, "to become another user")
	// The directory itself is open, so that the files' own modes are what is tested.
	dir, err := os.MkdirTemp("", "axo-server-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, dir, mem.NewHost())
	try := func(uid int) map[string]error {
		errs := map[string]error{}
		done := make(chan struct{})
		go func() {
			defer close(done)
			// This thread is another user's, and ends with the goroutine.
			runtime.LockOSThread()
			if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); e != 0 {
				errs["become the user"] = e
				return
			}
			for _, f := range []string{"token", "keys.json", "serve"} {
				fd, err := syscall.Open(filepath.Join(dir, f), syscall.O_RDONLY, 0)
				if err == nil {
					syscall.Close(fd)
				}
				errs[f] = err
			}
			for _, f := range []string{"axo.sock", "admin.sock"} {
				fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
				if err == nil {
					err = syscall.Connect(fd, &syscall.SockaddrUnix{Name: filepath.Join(dir, f)})
					syscall.Close(fd)
				}
				errs[f] = err
			}
		}()
		<-done
		return errs
	}
	for what, err := range try(0) {
		if err != nil {
			t.Errorf("control: the owner: %s: %v", what, err)
		}
	}
	for what, err := range try(12345) {
		if !errors.Is(err, syscall.EACCES) {
			t.Errorf("another user: %s: %v", what, err)
		}
	}
}

func TestOneDaemonForAStateDirectory(t *testing.T) {
	dir := t.TempDir()
	first := run(t, dir, mem.NewHost())
	e, err := engine.New(engine.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Run(t.Context(), server.Config{StateDir: dir, Engine: e}); !errors.Is(err, isolation.ErrFailedPrecondition) {
		t.Errorf("a second one: %v", err)
	}
	if _, err := dial(t, dir, first.addresses[0]).Health(t.Context()); err != nil {
		t.Errorf("the first one after that: %v", err)
	}
	for _, bad := range []string{"0.0.0.0:0", "10.0.0.1:1", "nonsense"} {
		e, err := engine.New(engine.Config{})
		if err != nil {
			t.Fatal(err)
		}
		if err := server.Run(t.Context(), server.Config{StateDir: t.TempDir(), Engine: e, Listen: bad}); !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("listen on %s: %v", bad, err)
		}
	}
}

// A client that follows a program sees nothing of the daemon's restart: no byte is
// lost, none comes twice.
func TestClientsFollowThroughARestart(t *testing.T) {
	dir, host := t.TempDir(), mem.NewHost()
	first := run(t, dir, host)
	c := dial(t, dir, first.addresses[0])
	sb, err := c.Create(t.Context(), "s", isolation.Spec{Requirement: isolation.Arbitrary, Detached: true})
	if err != nil {
		t.Fatal(err)
	}
	var out safeBuffer
	p, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"count"}}, isolation.Stdio{Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; !strings.Contains(out.String(), "line 20\n"); i++ {
		if i > 1000 {
			t.Fatal("no output")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	second := run(t, dir, host)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	exit, err := p.Wait(ctx)
	if err != nil || !exit.Success() {
		t.Fatalf("%v %v", exit, err)
	}
	var want strings.Builder
	for i := range 300 {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	if out.String() != want.String() {
		t.Errorf("%d bytes, want %d, or others", len(out.String()), want.Len())
	}
	if exit.Stdout.Bytes != int64(want.Len()) || exit.Stdout.Dropped != 0 {
		t.Errorf("%+v", exit.Stdout)
	}
	if err := sb.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	if list, err := dial(t, dir, second.addresses[0]).Sandboxes(t.Context(), nil); err != nil || len(list) != 0 {
		t.Errorf("%v %v", list, err)
	}
}

func TestADaemonThatEndsFinishesWhatItBegan(t *testing.T) {
	dir := t.TempDir()
	d := run(t, dir, mem.NewHost())
	c := dial(t, dir, d.addresses[0])
	if _, err := c.Create(t.Context(), "s", isolation.Spec{Requirement: isolation.Arbitrary}); err != nil {
		t.Fatal(err)
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	// What may go with it went, and its name is free.
	if list, err := os.ReadDir(filepath.Join(dir, "serve")); err != nil || len(list) != 0 {
		t.Errorf("%v %v", list, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "axo.sock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket: %v", err)
	}
	if _, err := c.Health(t.Context()); !errors.Is(err, isolation.ErrUnavailable) || isolation.OutcomeOf(err) != isolation.NotStarted {
		t.Errorf("%v, %s", err, isolation.OutcomeOf(err))
	}
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// Who begins too much is told when to come back, in every form of the answer; another
// tenant is not held up by it.
func TestQuotaOfTheMoment(t *testing.T) {
	dir := t.TempDir()
	d := run(t, dir, mem.NewHost(), func(c *server.Config) {
		c.Sessions.Quota = func(tenant string) session.Quota {
			if tenant == "slow" {
				return session.Quota{Rate: 0.001, Burst: 2}
			}
			return session.Quota{}
		}
	})
	keys, err := tenant.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	secret, _, err := keys.Add("slow", tenant.RoleUser)
	if err != nil {
		t.Fatal(err)
	}
	slow, err := client.New(client.Config{Address: d.addresses[1], Key: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	spec := isolation.Spec{Requirement: isolation.Arbitrary}
	for i := range 2 {
		if _, err := slow.Create(t.Context(), fmt.Sprintf("box%d", i), spec); err != nil {
			t.Fatal(err)
		}
	}
	_, err = slow.Create(t.Context(), "box2", spec)
	after, ok := api.RetryAfter(err)
	if !errors.Is(err, isolation.ErrResourceExhausted) || isolation.OutcomeOf(err) != isolation.NotStarted || !ok || after < 900*time.Second || after > 1000*time.Second {
		t.Errorf("%v: try again after %v %v", err, after, ok)
	}
	r, err := http.NewRequestWithContext(t.Context(), "POST", d.addresses[1]+"/v1/runs", strings.NewReader(`{"spec":{"requirement":"Arbitrary"},"process":{"args":["count"]}}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-API-Key", secret)
	r.Header.Set("Content-Type", "application/json")
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); resp.StatusCode != http.StatusTooManyRequests || err != nil || s < 900 || s > 1000 {
		t.Errorf("%s, Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
	}
	if _, err := dial(t, dir, d.addresses[1]).Create(t.Context(), "box", spec); err != nil {
		t.Errorf("another tenant: %v", err)
	}
	if list, err := slow.Sandboxes(t.Context(), nil); err != nil || len(list) != 2 {
		t.Errorf("what was refused has left something: %v %v", list, err)
	}
}
