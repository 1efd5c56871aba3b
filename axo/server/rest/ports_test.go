package rest_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/driver/mem"
	"github.com/axocoatl/isolation/engine"
)

// web is an HTTP server inside a sandbox. It tells what it was asked; /echo becomes
// a connection that sends back what it gets.
func web(c *mem.Proc) int {
	l, err := c.Listen(8000)
	if err != nil {
		return 1
	}
	_, _ = io.WriteString(c.Stdout(), "ready\n")
	_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/echo" {
			conn, buf, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			_, _ = io.Copy(conn, buf)
			return
		}
		b, _ := io.ReadAll(r.Body)
		http.SetCookie(w, &http.Cookie{Name: "k", Value: "v", Path: "/x", Domain: "127.0.0.1"})
		w.WriteHeader(http.StatusTeapot)
		_ = json.NewEncoder(w).Encode(map[string]any{
			"method": r.Method, "uri": r.RequestURI, "host": r.Host, "header": r.Header, "body": string(b),
		})
	}))
	return 1
}

func (s *server) web(t *testing.T, who string) (base string) {
	t.Helper()
	sb := s.create(t, who, api.Create{})
	base = "/v1/sandboxes/" + sb.ID
	if st := s.call(t, who, "POST", base+"/execs", api.Exec{Process: isolation.ProcessSpec{Args: []string{"web"}}}, nil); st != 201 {
		t.Fatalf("exec: %d", st)
	}
	for end := time.Now().Add(20 * time.Second); s.call(t, who, "GET", base+"/ports/8000/", nil, nil) != http.StatusTeapot; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the server inside does not answer")
		}
	}
	return base
}

func TestPortsOverHTTP(t *testing.T) {
	s := start(t)
	base := s.web(t, "a")
	type seen struct {
		Method, URI, Host, Body string
		Header                  http.Header
	}
	// The key is not for the program inside, whichever header it is in; what is
	// behind the port is passed on as it was.
	for _, headers := range [][]string{{"If-Match", `"app"`}, {"X-API-Key", s.keys["a"], "Authorization", "Bearer app", "If-Match", `"app"`}} {
		var got seen
		st := s.call(t, "a", "PUT", base+"/ports/8000/a%2Fb/c?x=%20;y", "content", &got, headers...)
		if st != http.StatusTeapot || got.Method != "PUT" || got.URI != "/a%2Fb/c?x=%20;y" || got.Host != "localhost:8000" || got.Body != "content" {
			t.Errorf("%d %+v", st, got)
		}
		if all := fmt.Sprint(got.Header); strings.Contains(all, s.keys["a"]) || got.Header.Get("If-Match") != `"app"` || got.Header.Get("X-Forwarded-For") == "" {
			t.Errorf("%v", all)
		}
		if want := len(headers) > 2; (got.Header.Get("Authorization") == "Bearer app") != want {
			t.Errorf("Authorization is %q", got.Header.Get("Authorization"))
		}
	}
	r, _ := http.NewRequestWithContext(t.Context(), "GET", s.URL+base+"/ports/8000/", nil)
	r.Header.Set("X-API-Key", s.keys["a"])
	resp, err := s.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if k := resp.Cookies(); len(k) != 1 || k[0].Path != base+"/ports/8000/x" || k[0].Domain != "" {
		t.Errorf("cookies are %v", k)
	}

	for path, want := range map[string]int{"/ports/8001/": 412, "/ports/0/": 400, "/ports/65536/": 400, "/ports/x/": 400} {
		if st := s.call(t, "a", "GET", base+path, nil, nil); st != want {
			t.Errorf("%s: %d, want %d", path, st, want)
		}
	}
	if st := s.call(t, "a", "POST", base+"/ports/8000", nil, nil); st != 400 {
		t.Errorf("a tunnel without an upgrade: %d", st)
	}
	for _, path := range []string{"/ports/8000/", "/ports/8000"} {
		if st := s.call(t, "b", "POST", base+path, nil, nil, "Upgrade", api.TunnelProtocol, "Connection", "Upgrade"); st != 404 {
			t.Errorf("%s of another tenant: %d", path, st)
		}
		if st := s.call(t, "", "POST", base+path, nil, nil); st != 401 {
			t.Errorf("%s of nobody: %d", path, st)
		}
	}

	// An upgrade by the program inside, and one to the port itself.
	for _, u := range []struct{ method, path, protocol, first string }{
		{"GET", "/ports/8000/echo", "echo", ""},
		{"POST", "/ports/8000", api.TunnelProtocol, "GET /echo HTTP/1.1\r\nHost: x\r\n\r\n"},
	} {
		c, err := net.Dial("unix", s.socket)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintf(c, "%s %s%s HTTP/1.1\r\nHost: localhost\r\nX-API-Key: %s\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", u.method, base, u.path, s.keys["a"], u.protocol)
		buf := bufio.NewReader(c)
		resp, err := http.ReadResponse(buf, nil)
		if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != u.protocol {
			t.Fatalf("%s: %+v, %v", u.path, resp, err)
		}
		if u.first != "" {
			_, _ = io.WriteString(c, u.first)
			if resp, err := http.ReadResponse(buf, nil); err != nil || resp.StatusCode != 101 {
				t.Fatalf("inside: %+v, %v", resp, err)
			}
		}
		fmt.Fprintln(c, "hello")
		if line, err := buf.ReadString('\n'); err != nil || line != "hello\n" {
			t.Errorf("%s: %q, %v", u.path, line, err)
		}
		c.Close()
	}
}

// TestEgressOverHTTP: what the policy does not grant is refused.
func TestEgressOverHTTP(t *testing.T) {
	s := start(t)
	egress := engine.Egress{Allow: []string{"example.org"}}
	spec := isolation.Spec{Requirement: isolation.Arbitrary}
	for path, in := range map[string]any{
		"/v1/sandboxes": api.Create{Spec: spec, Egress: egress},
		"/v1/runs":      api.Run{Spec: spec, Process: isolation.ProcessSpec{Args: []string{"exit0"}}, Egress: egress},
	} {
		var p api.Problem
		if st := s.call(t, "a", "POST", path, in, &p); st != 403 || !strings.Contains(p.Detail, "does not grant") {
			t.Errorf("%s: %d %+v", path, st, p)
		}
	}
	sb := s.create(t, "a", api.Create{})
	var r engine.EgressReport
	if st := s.call(t, "a", "GET", "/v1/sandboxes/"+sb.ID+"/egress", nil, &r); st != 200 || r.Allowed+r.Denied != 0 {
		t.Errorf("%d %+v", st, r)
	}
	if st := s.call(t, "b", "GET", "/v1/sandboxes/"+sb.ID+"/egress", nil, nil); st != 404 {
		t.Errorf("of another tenant: %d", st)
	}
}
