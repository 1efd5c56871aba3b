package rest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/audit"
	"github.com/axocoatl/isolation/axo/server/rest"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/axo/tenant"
	"github.com/axocoatl/isolation/driver/mem"
	"github.com/axocoatl/isolation/engine"
)

type server struct {
	*httptest.Server
	keys   map[string]string // by tenant
	audit  *audit.Log
	socket string // the same, on a unix socket
	stop   func() error
}

func start(t testing.TB, change ...func(*session.Config)) *server {
	t.Helper()
	var reg isolation.Registry
	reg.Add(isolation.TierOCI, mem.New(mem.Config{Programs: map[string]mem.Program{"web": web}, Features: func(f *isolation.Features) { f.Tier = isolation.TierOCI }}))
	e, err := engine.New(engine.Config{Registry: reg})
	if err != nil {
		t.Fatal(err)
	}
	sc := session.Config{Engine: e, Dir: t.TempDir()}
	for _, f := range change {
		f(&sc)
	}
	m, err := session.Open(t.Context(), sc)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	keys, err := tenant.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{keys: map[string]string{}}
	for _, who := range []string{"a", "b"} {
		if s.keys[who], _, err = keys.Add(who, tenant.RoleUser); err != nil {
			t.Fatal(err)
		}
	}
	for who, role := range map[string]tenant.Role{"admin": tenant.RoleAdmin, "viewer": tenant.RoleViewer} {
		of := map[string]string{"admin": "admin", "viewer": "a"}[who]
		if s.keys[who], _, err = keys.Add(of, role); err != nil {
			t.Fatal(err)
		}
	}
	quotas, err := tenant.OpenQuotas(dir)
	if err != nil {
		t.Fatal(err)
	}
	runs, err := session.OpenRuns(session.RunsConfig{Engine: e, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if s.audit, err = audit.Open(filepath.Join(dir, "audit.db")); err != nil {
		t.Fatal(err)
	}
	s.Server = httptest.NewUnstartedServer(rest.New(rest.Config{
		Audit:    s.audit,
		Sessions: m, Runs: runs, Engine: e, Images: fakeImages{}, Templates: fakeTemplates{}, Find: keys.Find, Keys: keys, Quotas: quotas, Version: "test",
		Pools: func() []api.Pool { return []api.Pool{{Engine: "mem", Shelves: []api.Shelf{}}} },
	}))
	s.socket = filepath.Join(dir, "socket")
	l, err := net.Listen("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	go s.Config.Serve(l) // ends with stop
	s.Start()
	s.stop = sync.OnceValue(func() error {
		s.CloseClientConnections()
		s.Close()
		_ = s.Config.Close() // the other listener
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		now, end := context.WithCancel(ctx)
		end()
		runs.Close(now)
		var errs []error
		for _, who := range []string{"a", "b"} {
			for _, sn := range m.List(who, nil) {
				errs = append(errs, sn.Delete(ctx))
			}
		}
		return errors.Join(append(errs, m.Close(ctx), s.audit.Close())...)
	})
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// call sends v as JSON, or a string as it is, and reads JSON into out, or all of
// it into a *[]byte.
func (s *server) call(t *testing.T, who, method, path string, v, out any, headers ...string) int {
	t.Helper()
	var in io.Reader
	switch v := v.(type) {
	case nil:
	case string:
		in = strings.NewReader(v)
	default:
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		in = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, in)
	if err != nil {
		t.Fatal(err)
	}
	if who != "" {
		r.Header.Set("Authorization", "Bearer "+s.keys[who])
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	resp, err := s.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	switch out := out.(type) {
	case nil:
	case *[]byte:
		*out = b
	default:
		if err := json.Unmarshal(b, out); err != nil {
			t.Fatalf("%s %s: %s: %v", method, path, b, err)
		}
	}
	return resp.StatusCode
}

func (s *server) create(t *testing.T, who string, c api.Create) api.Sandbox {
	t.Helper()
	if c.Spec.Requirement == 0 {
		c.Spec.Requirement = isolation.Arbitrary
	}
	var sb api.Sandbox
	if st := s.call(t, who, "POST", "/v1/sandboxes", c, &sb); st != 201 || sb.Status != api.StatusRunning {
		t.Fatalf("%d %+v", st, sb)
	}
	return sb
}

func TestSandboxOverHTTP(t *testing.T) {
	s := start(t)
	sb := s.create(t, "a", api.Create{Metadata: map[string]string{"k": "v"}})
	base := "/v1/sandboxes/" + sb.ID
	var p api.Process
	if st := s.call(t, "a", "POST", base+"/execs", api.Exec{Process: isolation.ProcessSpec{Args: []string{"exit7"}}}, &p); st != 201 || p.ID == "" {
		t.Fatalf("%d %+v", st, p)
	}
	if st := s.call(t, "a", "GET", base+"/execs/"+p.ID+"/wait", nil, &p); st != 200 || p.Exit == nil || p.Exit.Code != 7 {
		t.Errorf("%d %+v", st, p)
	}
	// The output in frames, with input.
	var stream []byte
	in := api.Exec{Process: isolation.ProcessSpec{Args: []string{"echo"}}, Input: []byte("hello")}
	if st := s.call(t, "a", "POST", base+"/execs", in, &stream, "Accept", api.StreamType); st != 201 {
		t.Fatalf("%d %s", st, stream)
	}
	var got string
	var last api.Process
	for r := bytes.NewReader(stream); ; {
		k, b, err := api.ReadFrame(r, nil)
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		switch k {
		case api.FrameStdout:
			got += string(b)
		case api.FrameProcess:
			if err := json.Unmarshal(b, &last); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got != "hello" || last.Exit == nil || last.Exit.Code != 0 {
		t.Errorf("%q %+v", got, last)
	}
	// As events, from an offset.
	var text []byte
	s.call(t, "a", "GET", base+"/execs/"+last.ID+"/stream", nil, &text, "Accept", "text/event-stream", "Last-Event-ID", "2:0")
	if !strings.Contains(string(text), "event: stdout\nid: 5:0\ndata: bGxv\n\n") || !strings.Contains(string(text), "event: process\n") {
		t.Errorf("%s", text)
	}
	// Files.
	if st := s.call(t, "a", "PUT", base+"/files?path=/tmp/d/f&parents=true", "content", nil); st != 204 {
		t.Errorf("write: %d", st)
	}
	var content []byte
	if st := s.call(t, "a", "GET", base+"/files?path=/tmp/d/f", nil, &content); st != 200 || string(content) != "content" {
		t.Errorf("read: %d %s", st, content)
	}
	var l api.Listing
	if st := s.call(t, "a", "GET", base+"/files/list?path=/tmp/d", nil, &l); st != 200 || len(l.Files) != 1 || l.Files[0].Base != "f" {
		t.Errorf("list: %d %+v", st, l)
	}
	if st := s.call(t, "a", "POST", base+"/files/rename", api.Rename{From: "/tmp/d/f", To: "/tmp/d/g"}, nil); st != 204 {
		t.Errorf("rename: %d", st)
	}
	if st := s.call(t, "a", "DELETE", base+"/files?path=/tmp/d&recursive=true", nil, nil); st != 204 {
		t.Errorf("remove: %d", st)
	}
	var all api.Sandboxes
	if st := s.call(t, "a", "GET", "/v1/sandboxes?metadata=k%3Dv", nil, &all); st != 200 || len(all.Sandboxes) != 1 {
		t.Errorf("%d %+v", st, all)
	}
	if st := s.call(t, "a", "POST", base+"/pause", nil, nil); st != 204 {
		t.Errorf("pause: %d", st)
	}
	if st := s.call(t, "a", "POST", base+"/resume", nil, nil); st != 204 {
		t.Errorf("resume: %d", st)
	}
	if st := s.call(t, "a", "PATCH", base, api.Touch{IdleMS: 1000_000}, &sb); st != 200 || sb.IdleMS != 1000_000 {
		t.Errorf("touch: %d %+v", st, sb)
	}
	if st := s.call(t, "a", "DELETE", base, nil, nil); st != 204 {
		t.Errorf("delete: %d", st)
	}
	if st := s.call(t, "a", "GET", base, nil, nil); st != 404 {
		t.Errorf("after delete: %d", st)
	}
}

func TestRunOverHTTP(t *testing.T) {
	s := start(t)
	var r engine.Result
	run := api.Run{Spec: isolation.Spec{Requirement: isolation.Arbitrary}, Process: isolation.ProcessSpec{Args: []string{"echo"}, Limits: isolation.Limits{Wall: 5 * time.Second}}, Input: []byte("in")}
	if st := s.call(t, "a", "POST", "/v1/runs", run, &r); st != 200 || string(r.Stdout.Head) != "in" || r.Exit.Reason != isolation.ReasonExited {
		t.Errorf("%d %+v", st, r)
	}
	var d engine.Decision
	if st := s.call(t, "a", "POST", "/v1/explain", run, &d); st != 200 || d.Engine != "mem" {
		t.Errorf("%d %+v", st, d)
	}
	run.Spec.Requirement = isolation.WasmCompiled
	var p api.Problem
	if st := s.call(t, "a", "POST", "/v1/runs", run, &p); st != 501 && st != 400 || p.Outcome != "not_started" {
		t.Errorf("%d %+v", st, p)
	}
	if st := s.call(t, "a", "GET", "/v1/tiers", nil, nil); st != 200 {
		t.Errorf("tiers: %d", st)
	}
}

func TestSnapshotsOverHTTP(t *testing.T) {
	s := start(t)
	sb := s.create(t, "a", api.Create{})
	base := "/v1/sandboxes/" + sb.ID
	s.call(t, "a", "PUT", base+"/files?path=/tmp/f", "then", nil)
	var x api.Snapshot
	if st := s.call(t, "a", "POST", base+"/snapshots", api.TakeSnapshot{Name: "one"}, &x); st != 201 || x.Name != "one" || x.Status != api.SnapshotReady {
		t.Fatalf("%d %+v", st, x)
	}
	s.call(t, "a", "PUT", base+"/files?path=/tmp/f", "now", nil)
	var all api.Snapshots
	if st := s.call(t, "a", "GET", "/v1/snapshots", nil, &all); st != 200 || len(all.Snapshots) != 1 || all.Snapshots[0].ID != x.ID {
		t.Errorf("%d %+v", st, all)
	}
	var copies api.Sandboxes
	if st := s.call(t, "a", "POST", base+"/fork", api.Fork{Copies: []api.Copy{{ID: "f1"}, {}}}, &copies); st != 201 || len(copies.Sandboxes) != 2 {
		t.Errorf("%d %+v", st, copies)
	}
	var back api.Sandbox
	if st := s.call(t, "a", "POST", "/v1/snapshots/one/restore", api.Copy{ID: "back"}, &back); st != 201 || back.From != x.ID {
		t.Errorf("%d %+v", st, back)
	}
	for id, want := range map[string]string{"back": "then", "f1": "now"} {
		var got []byte
		if s.call(t, "a", "GET", "/v1/sandboxes/"+id+"/files?path=/tmp/f", nil, &got); string(got) != want {
			t.Errorf("%s has %q", id, got)
		}
	}
	if st := s.call(t, "a", "POST", "/v1/snapshots/one/restore", api.Copy{ID: "back"}, nil); st != 409 {
		t.Errorf("an id in use: %d", st)
	}
	if st := s.call(t, "a", "DELETE", "/v1/snapshots/"+x.ID, nil, nil); st != 204 {
		t.Errorf("delete: %d", st)
	}
	if st := s.call(t, "a", "GET", "/v1/snapshots/one", nil, nil); st != 404 {
		t.Errorf("after delete: %d", st)
	}
}

func TestNothingOfTheHost(t *testing.T) {
	s := start(t)
	none := isolation.TierNone
	for name, c := range map[string]api.Create{
		"native": {Spec: isolation.Spec{Requirement: isolation.NativeTrusted}},
		"func":   {Spec: isolation.Spec{Requirement: isolation.Arbitrary, Func: "f"}},
		"tier":   {Spec: isolation.Spec{Requirement: isolation.Arbitrary}, Tier: &none},
		"mount":  {Spec: isolation.Spec{Requirement: isolation.Arbitrary, Mounts: []isolation.Mount{{Source: "/etc", Destination: "/x", ReadOnly: true}}}},
		"root":   {Spec: isolation.Spec{Requirement: isolation.Arbitrary, Root: isolation.Root{Path: "/"}}},
		"module": {Spec: isolation.Spec{Requirement: isolation.WasmCompiled, Module: isolation.Module{Path: "/etc/passwd"}}},
	} {
		var p api.Problem
		if st := s.call(t, "a", "POST", "/v1/sandboxes", c, &p); st != 403 || p.Class != "permission_denied" {
			t.Errorf("%s: create: %d %+v", name, st, p)
		}
		run := api.Run{Spec: c.Spec, Tier: c.Tier, Process: isolation.ProcessSpec{Args: []string{"exit0"}}}
		for _, path := range []string{"/v1/runs", "/v1/explain"} {
			if st := s.call(t, "a", "POST", path, run, &p); st != 403 {
				t.Errorf("%s: %s: %d %+v", name, path, st, p)
			}
		}
	}
}

func TestBadRequests(t *testing.T) {
	s := start(t)
	sb := s.create(t, "a", api.Create{})
	base := "/v1/sandboxes/" + sb.ID
	for _, c := range []struct {
		method, path, body string
		status             int
	}{
		{"POST", "/v1/sandboxes", `{`, 400},
		{"POST", "/v1/sandboxes", `{"spec":{"requirement":"Arbitrary"},"unknown":1}`, 400},
		{"POST", "/v1/sandboxes", `{"spec":{"requirement":"Nothing"}}`, 400},
		{"POST", "/v1/sandboxes", `{"spec":{"requirement":"Arbitrary"},"id":"../x"}`, 400},
		{"POST", "/v1/sandboxes", `{"spec":{"requirement":"Arbitrary"},"idle_ms":-5}`, 400},
		{"POST", base + "/execs", `{"process":{"args":[]}}`, 400},
		{"POST", base + "/execs", `{"process":{"args":["no such"]}}`, 404},
		{"GET", base + "/execs/none", ``, 404},
		{"GET", base + "/files?path=relative", ``, 400},
		{"GET", base + "/files?path=/none", ``, 404},
		{"PUT", base + "/files?path=/x&mode=9", `x`, 400},
		{"GET", "/v1/sandboxes?metadata=k", ``, 400},
		{"GET", "/v1/nothing", ``, 404},
	} {
		var b []byte
		if st := s.call(t, "a", c.method, c.path, c.body, &b, "Content-Type", "application/json"); st != c.status {
			t.Errorf("%s %s %s: %d %s, want %d", c.method, c.path, c.body, st, b, c.status)
		}
	}
	if st := s.call(t, "a", "POST", "/v1/sandboxes", api.Create{ID: sb.ID, Spec: isolation.Spec{Requirement: isolation.Arbitrary}}, nil); st != 409 {
		t.Errorf("the same id: %d", st)
	}
}

// Every class comes out of the client's side as what went in.
func TestErrorClassesGoBothWays(t *testing.T) {
	for _, class := range isolation.Classes() {
		p := api.ProblemOf(&isolation.Error{Op: "x", Outcome: isolation.NotStarted, Err: fmt.Errorf("words: %w", class)})
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var back api.Problem
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatal(err)
		}
		got := back.Err()
		if isolation.Class(got) != class || isolation.OutcomeOf(got) != isolation.NotStarted || !strings.Contains(got.Error(), "words") {
			t.Errorf("%v became %v", class, got)
		}
		back.Class = "" // of a proxy that keeps the status alone
		if isolation.Class(back.Err()) != class {
			t.Errorf("%v: by its status %d it is %v", class, back.Status, back.Err())
		}
	}
	refused := api.ProblemOf(fmt.Errorf("x: %w", &engine.RefusedError{Decision: engine.Decision{Skipped: []engine.Skip{{Tier: isolation.TierOCI, Reason: "because"}}}}))
	var re *engine.RefusedError
	if err := refused.Err(); !errors.As(err, &re) || re.Decision.Skipped[0].Reason != "because" {
		t.Errorf("%v", err)
	}
}

// The document in the tree is the one that is served: AXO_UPDATE=1 writes it anew.
func TestOpenAPIIsCheckedIn(t *testing.T) {
	const file = "openapi.yaml"
	got, err := rest.New(rest.Config{Version: "1"}).OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("AXO_UPDATE") != "" {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what is served: AXO_UPDATE=1 go test ./server/rest", file)
	}
}

// TestHold: what is to go with who made it goes when he does, also with a program in it.
func TestHold(t *testing.T) {
	s := start(t)
	s.create(t, "a", api.Create{ID: "left", Ephemeral: true, HoldMS: 100})
	s.create(t, "a", api.Create{ID: "held", Ephemeral: true, HoldMS: 100})
	ctx, release := context.WithCancel(t.Context())
	defer release()
	req, err := http.NewRequestWithContext(ctx, "GET", s.URL+"/v1/sandboxes/held/hold", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", s.keys["a"])
	resp, err := s.Client().Do(req)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	defer resp.Body.Close()
	for _, id := range []string{"left", "held"} {
		s.call(t, "a", "POST", "/v1/sandboxes/"+id+"/execs", api.Exec{Process: isolation.ProcessSpec{Args: []string{"sleep", "100"}}}, nil)
	}
	gone := func(id string) bool { return s.call(t, "a", "GET", "/v1/sandboxes/"+id, nil, nil) == 404 }
	eventually(t, "what nobody holds to go", func() bool { return gone("left") })
	if gone("held") {
		t.Error("what somebody holds is gone")
	}
	release()
	eventually(t, "what was held to go", func() bool { return gone("held") })
	if st := s.call(t, "a", "POST", "/v1/sandboxes", `{"spec":{"requirement":"Arbitrary"},"hold_ms":-1}`, nil, "Content-Type", "application/json"); st != 400 {
		t.Errorf("%d", st)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("waited in vain for " + what)
}
