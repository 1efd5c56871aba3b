package engine_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/mem"
	"github.com/axocoatl/isolation/engine"
)

// ask is a program that has the proxy get each of the URLs that it is given, and
// prints the status of the answers.
func ask(c *mem.Proc) int {
	for _, u := range c.Args()[1:] {
		conn, err := c.Dial(engine.ProxyPort)
		if err != nil {
			fmt.Fprintln(c.Stdout(), "no proxy")
			continue
		}
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", u)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			fmt.Fprintln(c.Stdout(), err)
			continue
		}
		b, _ := io.ReadAll(resp.Body)
		fmt.Fprintf(c.Stdout(), "%d %.20s\n", resp.StatusCode, b)
		conn.Close()
	}
	return 0
}

// online makes an engine whose programs can ask, and a server.
func online(t *testing.T, host *mem.Host, c engine.Config) (e *engine.Engine, address string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "served") }))
	t.Cleanup(s.Close)
	c.Registry.Add(isolation.TierOCI, mem.New(mem.Config{
		Name: "builtin", Host: host, Programs: map[string]mem.Program{"ask": ask}, Features: func(f *isolation.Features) { f.Tier = isolation.TierOCI },
	}))
	e, err := engine.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e, s.Listener.Addr().String()
}

func asking(allow []string, urls ...string) engine.Request {
	return engine.Request{
		Spec: isolation.Spec{Requirement: isolation.Arbitrary}, Process: isolation.ProcessSpec{Args: append([]string{"ask"}, urls...)},
		Egress: engine.Egress{Allow: allow}, Capture: engine.DefaultCapture,
	}
}

func TestEgress(t *testing.T) {
	var mu sync.Mutex
	var events []engine.Event
	e, address := online(t, nil, engine.Config{Policy: engine.Policy{Egress: engine.AnyHost()}, OnEvent: func(ev engine.Event) {
		mu.Lock()
		defer mu.Unlock()
		if ev.Kind == engine.EventEgress {
			events = append(events, ev)
		}
	}})
	_, port, _ := net.SplitHostPort(address)
	res, err := e.Run(t.Context(), asking([]string{address}, "http://"+address+"/", "http://localhost:"+port+"/", "http://127.0.0.1:1/"))
	if err != nil {
		t.Fatal(err)
	}
	if got := res.Stdout.String(); !strings.HasPrefix(got, "200 served\n403 ") || strings.Count(got, "403 ") != 2 {
		t.Errorf("%s", got)
	}
	r := res.Egress
	if r == nil || r.Allowed != 1 || r.Denied != 2 || len(r.Connections) != 3 || !r.Connections[0].Allowed || r.Connections[0].Host != address || r.Connections[0].Received == 0 ||
		r.Connections[1].Host != "localhost:"+port || r.Connections[1].Reason == "" {
		t.Errorf("%+v", r)
	}
	mu.Lock()
	if len(events) != 3 || events[0].Fields["host"] != address || events[0].Fields["allowed"] != "true" || events[1].Fields["allowed"] != "false" || events[1].RunID != res.ID {
		t.Errorf("%+v", events)
	}
	mu.Unlock()

	// Programs find it by their environment; what is set stays.
	for set, want := range map[string]string{"X=1": "http_proxy=http://127.0.0.1:3128", "HTTP_PROXY=mine": "HTTP_PROXY=mine"} {
		q := asking([]string{address})
		q.Process = isolation.ProcessSpec{Args: []string{"env"}, Env: []string{set}}
		res, err := e.Run(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		env := strings.Split(res.Stdout.String(), "\x00")
		has := func(v string) bool {
			for _, e := range env {
				if e == v {
					return true
				}
			}
			return false
		}
		if !has(want) || !has("https_proxy=http://127.0.0.1:3128") || !has("NO_PROXY=localhost,127.0.0.1,::1") || set == "HTTP_PROXY=mine" && has("http_proxy=http://127.0.0.1:3128") {
			t.Errorf("%q", env)
		}
	}
	// Without it there is nothing.
	res, err = e.Run(t.Context(), asking(nil, "http://"+address+"/"))
	if err != nil || res.Stdout.String() != "no proxy\n" || res.Egress != nil {
		t.Errorf("%v %+v", err, res)
	}
}

// TestEgressIsRefused where the policy does not grant it, where nobody can hold it,
// and where it makes no sense.
func TestEgressIsRefused(t *testing.T) {
	e, address := online(t, nil, engine.Config{Policy: engine.Policy{Egress: []string{"*.good.test", "*"}}})
	strict, _ := online(t, nil, engine.Config{})
	for _, c := range []struct {
		e     *engine.Engine
		allow []string
		want  error
	}{
		{strict, []string{"example.org"}, isolation.ErrPermissionDenied},
		{e, []string{"example.org"}, nil},
		{e, []string{"example.org:22"}, isolation.ErrPermissionDenied},
		{e, []string{"a.good.test", address}, isolation.ErrPermissionDenied},
		{e, []string{"*:*"}, isolation.ErrPermissionDenied},
		{e, []string{"http://x"}, isolation.ErrInvalidArgument},
		{e, make([]string, 300), isolation.ErrInvalidArgument},
	} {
		r := asking(c.allow)
		_, err := c.e.Run(t.Context(), r)
		if !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("run %v: %v, want %v", c.allow, err, c.want)
		}
		if err != nil && isolation.OutcomeOf(err) != isolation.NotStarted {
			t.Errorf("run %v: %v", c.allow, isolation.OutcomeOf(err))
		}
		sb, _, err := c.e.Create(t.Context(), r)
		if !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("create %v: %v, want %v", c.allow, err, c.want)
		}
		if sb != nil {
			if err := sb.Delete(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
	if _, err := e.Run(t.Context(), engine.Request{Spec: isolation.Spec{Requirement: isolation.Arbitrary}, Process: isolation.ProcessSpec{Args: []string{"exit0"}}, Egress: engine.Egress{MaxBytes: 5}}); !errors.Is(err, isolation.ErrInvalidArgument) {
		t.Errorf("a limit without hosts: %v", err)
	}
	// An engine without the ability.
	var reg isolation.Registry
	reg.Add(isolation.TierWASM, mem.New(mem.Config{Name: "wazero", Features: func(f *isolation.Features) { f.Tier, f.Abilities = isolation.TierWASM, nil }}))
	poor, err := engine.New(engine.Config{Registry: reg, Policy: engine.Policy{Egress: engine.AnyHost()}})
	if err != nil {
		t.Fatal(err)
	}
	defer poor.Close()
	r := request("exit0")
	r.Egress.Allow = []string{"example.org"}
	var refused *engine.RefusedError
	if _, err := poor.Run(t.Context(), r); !errors.As(err, &refused) || !strings.Contains(err.Error(), "--allow-host") {
		t.Errorf("%v", err)
	}
	if _, err := engine.New(engine.Config{Registry: isolation.Registry{}, Policy: engine.Policy{Egress: []string{"a b"}}}); !errors.Is(err, isolation.ErrInvalidArgument) {
		t.Errorf("a policy that is none: %v", err)
	}
}

// TestEgressThatIsGranted: a request may ask for all that it may have, whatever that is,
// and have a part of it denied.
func TestEgressThatIsGranted(t *testing.T) {
	e, address := online(t, nil, engine.Config{Policy: engine.Policy{Egress: engine.AnyHost()}})
	strict, _ := online(t, nil, engine.Config{})
	for name, c := range map[string]struct {
		e     *engine.Engine
		asks  engine.Egress
		wants string
	}{
		"all":              {e, engine.Egress{Granted: true}, "200 served\n"},
		"but this":         {e, engine.Egress{Granted: true, Deny: []string{"127.0.0.1"}}, "403 "},
		"but this network": {e, engine.Egress{Allow: []string{address}, Deny: []string{"127.0.0.0/8"}}, "403 "},
		"but another":      {e, engine.Egress{Allow: []string{address}, Deny: []string{"127.0.0.2", "::1", "fd00::/8"}}, "200 served\n"},
		"nothing":          {strict, engine.Egress{Granted: true}, "no proxy\n"},
	} {
		r := asking(nil, "http://"+address+"/")
		r.Egress = c.asks
		res, err := c.e.Run(t.Context(), r)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := res.Stdout.String(); !strings.HasPrefix(got, c.wants) {
			t.Errorf("%s: %q", name, got)
		}
	}
	for _, bad := range []engine.Egress{
		{Deny: []string{"127.0.0.1"}}, {Granted: true, Deny: []string{"example.org"}}, {Granted: true, Deny: []string{"1.2.3"}}, {Granted: true, Deny: make([]string, 300)},
	} {
		r := asking(nil)
		r.Egress = bad
		if _, err := e.Run(t.Context(), r); !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("%.60v: %v", bad, err)
		}
	}
}

// TestEgressOfASession goes on for all programs, over a recovery, in copies, and ends
// with the sandbox.
func TestEgressOfASession(t *testing.T) {
	host := mem.NewHost()
	e, address := online(t, host, engine.Config{Policy: engine.Policy{Egress: engine.AnyHost()}})
	r := asking([]string{address})
	r.ID, r.Spec.Detached = "s", true
	sb, d, err := e.Create(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	get := func(sb isolation.Sandbox) string {
		t.Helper()
		var out strings.Builder
		p, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"ask", "http://" + address + "/"}}, isolation.Stdio{Stdout: &out})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	for range 2 {
		if got := get(sb); got != "200 served\n" {
			t.Errorf("%q", got)
		}
	}
	reporter, ok := isolation.As[engine.EgressReporter](sb)
	if !ok || reporter.EgressReport().Allowed != 2 {
		t.Errorf("%v", ok)
	}
	f, ok := isolation.As[isolation.Forker](sb)
	if !ok {
		t.Fatal("it cannot be copied")
	}
	copies, err := f.Fork(t.Context(), []string{"copy"})
	if err != nil {
		t.Fatal(err)
	}
	if got := get(copies[0]); got != "200 served\n" {
		t.Errorf("in a copy: %q", got)
	}
	if r, ok := isolation.As[engine.EgressReporter](copies[0]); !ok || r.EgressReport().Allowed != 1 {
		t.Errorf("a copy's report: %v", ok)
	}
	if err := copies[0].Delete(t.Context()); err != nil {
		t.Error(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	// The next engine grants it as well; the one after does not.
	for _, next := range []struct {
		granted []string
		want    string
	}{{engine.AnyHost(), "200 served\n"}, {nil, "no proxy\n"}} {
		c := engine.Config{Policy: engine.Policy{Egress: next.granted}}
		e, _ = online(t, host, c)
		if sb, err = e.RecoverOne(t.Context(), d.Engine, r); err != nil {
			t.Fatal(err)
		}
		if got := get(sb); got != next.want {
			t.Errorf("recovered: %q, want %q", got, next.want)
		}
		if next.granted != nil {
			if err := e.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := sb.Delete(ctx); err != nil {
		t.Error(err)
	}
}
