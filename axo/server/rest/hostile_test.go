package rest_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
)

// operation is what the document says of one.
type operation struct {
	ID         string `json:"operationId"`
	Parameters []struct {
		Name, In string
		Required bool
	}
	RequestBody *struct{}
	Role        string `json:"x-axo-role"`
	Tenant      string `json:"x-axo-tenant"`
	Security    []map[string][]string
}

// operations is the document that is served: paths, methods and what they are.
func (s *server) operations(t *testing.T) map[string]map[string]operation {
	t.Helper()
	var doc struct {
		Paths map[string]map[string]operation
	}
	if st := s.call(t, "", "GET", "/openapi.json", nil, &doc); st != 200 {
		t.Fatal(st)
	}
	if len(doc.Paths) < 20 {
		t.Fatalf("the document has %d paths", len(doc.Paths))
	}
	return doc.Paths
}

// TestAnotherTenantSeesNothing is a tenant who has found out all ids of another, and
// asks every operation of the document about them. One that the test does not know how
// to ask fails it.
func TestAnotherTenantSeesNothing(t *testing.T) {
	s := start(t)
	const secret = "what-only-a-knows"
	sb := s.create(t, "a", api.Create{ID: "victim", Metadata: map[string]string{"k": secret}})
	var p api.Process
	if st := s.call(t, "a", "POST", "/v1/sandboxes/victim/execs", api.Exec{Process: isolation.ProcessSpec{Args: []string{"sleep", "100", secret}}}, &p); st != 201 {
		t.Fatal(st)
	}
	other := s.create(t, "a", api.Create{ID: "other"})
	var sn api.Snapshot
	if st := s.call(t, "a", "POST", "/v1/sandboxes/other/snapshots", api.TakeSnapshot{Name: "theirs"}, &sn); st != 201 {
		t.Fatal(st)
	}
	var run api.RunStatus
	ask := api.Run{Spec: isolation.Spec{Requirement: isolation.Arbitrary}, Process: isolation.ProcessSpec{Args: []string{"sleep", "100", secret}}, Async: true}
	if st := s.call(t, "a", "POST", "/v1/runs", ask, &run, "Idempotency-Key", "theirs"); st != 202 {
		t.Fatal(st)
	}

	theirs := map[string]string{"id": sb.ID, "exec": p.ID, "snapshot": sn.Name, "run": run.ID, "port": "80", "path": "x", "name": "nothing"}
	nobodys := map[string]string{"id": "nothing", "exec": "x-0123456789abcdef0123", "snapshot": "nothing", "run": "run-0123456789abcdef0123", "port": "80", "path": "x", "name": "nothing"}
	bodies := map[string]any{
		"touch-sandbox": api.Touch{}, "exec": api.Exec{Process: isolation.ProcessSpec{Args: []string{"exit0"}}}, "kill-exec": api.Kill{},
		"resize-exec": isolation.TerminalSize{}, "write-stdin": "x", "write-file": "x", "make-directory": api.Mkdir{Path: "/x"},
		"rename-file": api.Rename{From: "/a", To: "/b"}, "fork-sandbox": api.Fork{Copies: []api.Copy{{}}}, "take-snapshot": api.TakeSnapshot{},
		"restore-snapshot": api.Copy{}, "call-tool": api.ToolCall{Input: map[string]any{}},
	}
	asked := 0
	for path, methods := range s.operations(t) {
		for method, o := range methods {
			method = strings.ToUpper(method)
			if !strings.Contains(path, "{") || o.Role == "admin" { // TestRoles has those
				continue
			}
			body, known := bodies[o.ID]
			if o.RequestBody != nil && !known {
				t.Errorf("%s: the test does not know what to ask; add it to bodies", o.ID)
			}
			fill := func(ids map[string]string) string {
				url := path
				query := []string{}
				for _, q := range o.Parameters {
					switch {
					case q.In == "path":
						if ids[q.Name] == "" {
							t.Fatalf("%s: the test does not know any {%s} of another's", o.ID, q.Name)
						}
						url = strings.ReplaceAll(url, "{"+q.Name+"}", ids[q.Name])
					case q.In == "query" && q.Required:
						query = append(query, q.Name+"=/x")
					}
				}
				if len(query) > 0 {
					url += "?" + strings.Join(query, "&")
				}
				return url
			}
			var got, none []byte
			upgrade := []string{"Upgrade", "axo-tcp", "Connection", "Upgrade"} // of dial-port
			st := s.call(t, "b", method, fill(theirs), body, &got, upgrade...)
			st2 := s.call(t, "b", method, fill(nobodys), body, &none, upgrade...)
			// It is told apart from one that never was by nothing.
			text := string(got)
			for _, k := range []string{"id", "exec", "snapshot", "run"} {
				v := theirs[k]
				text = strings.ReplaceAll(text, v, nobodys[k])
			}
			if st != 404 || st2 != 404 || text != string(none) {
				t.Errorf("%s %s: %d %s, of none %d %s", method, path, st, got, st2, none)
			}
			if st := s.call(t, "", method, fill(theirs), body, nil); st != 401 {
				t.Errorf("%s %s without a key: %d", method, path, st)
			}
			asked++
		}
	}
	if asked < 30 {
		t.Errorf("%d operations were asked", asked)
	}

	// What lists lists one's own, and what makes does not meet what another has.
	own := api.Run{Spec: ask.Spec, Process: isolation.ProcessSpec{Args: []string{"exit0"}}}
	creates := map[string]any{
		"create-sandbox": api.Create{ID: "victim", Spec: isolation.Spec{Requirement: isolation.Arbitrary}},
		"run":            own, "explain": own, "pull-image": api.Pull{Reference: "x"}, "build-template": api.BuildTemplate{Name: "x"}, "add-key": api.AddKey{Tenant: "a"},
	}
	for path, methods := range s.operations(t) {
		for method, o := range methods {
			if strings.Contains(path, "{") || o.ID == "list-audit" { // what it asked is there: TestAudit
				continue
			}
			body, known := creates[o.ID]
			if o.RequestBody != nil && !known {
				t.Errorf("%s: the test does not know what to ask; add it to creates", o.ID)
			}
			url := path
			if method == "delete" {
				url += "?reference=x&name=x"
			}
			var got []byte
			st := s.call(t, "b", strings.ToUpper(method), url, body, &got, "Idempotency-Key", "theirs")
			if st == 409 || strings.Contains(string(got), secret) || strings.Contains(string(got), run.ID) || strings.Contains(string(got), sn.ID) {
				t.Errorf("%s %s: %d %s", method, path, st, got)
			}
			if len(o.Security) == 0 || len(o.Security[0]) > 0 {
				if st := s.call(t, "", strings.ToUpper(method), url, body, nil); st != 401 {
					t.Errorf("%s %s without a key: %d", method, path, st)
				}
			}
		}
	}
	var mine api.Sandbox
	if s.call(t, "b", "GET", "/v1/sandboxes/victim", nil, &mine); mine.Instance == sb.Instance || mine.Metadata["k"] == secret {
		t.Errorf("an id that another has, too: %+v", mine)
	}

	// All is as it was.
	if s.call(t, "a", "GET", "/v1/sandboxes/victim", nil, &sb); sb.Status != api.StatusRunning || !slices.Equal(sb.Execs, []string{p.ID}) || other.ID == "" {
		t.Errorf("%+v", sb)
	}
	if s.call(t, "a", "GET", "/v1/runs/"+run.ID, nil, &run); !run.Running {
		t.Errorf("%+v", run)
	}
	if s.call(t, "a", "GET", "/v1/snapshots/theirs", nil, &sn); sn.Status != api.SnapshotReady {
		t.Errorf("%+v", sn)
	}
}

// TestAdminsOnly: what changes the host, or shows what all tenants do, takes an admin's
// key.
func TestAdminsOnly(t *testing.T) {
	s := start(t)
	for _, c := range []struct {
		method, path string
		body         any
	}{
		{"POST", "/v1/images", api.Pull{Reference: "x"}}, {"DELETE", "/v1/images?reference=x", nil},
		{"POST", "/v1/templates", api.BuildTemplate{Name: "x"}}, {"DELETE", "/v1/templates?name=x", nil},
		{"GET", "/v1/pools", nil}, {"GET", "/v1/tiers?fresh=true", nil},
	} {
		var p api.Problem
		if st := s.call(t, "a", c.method, c.path, c.body, &p); st != http.StatusForbidden || p.Class != "permission_denied" {
			t.Errorf("%s %s as a user: %d %+v", c.method, c.path, st, p)
		}
		var b []byte
		if st := s.call(t, "admin", c.method, c.path, c.body, &b); st >= 300 {
			t.Errorf("%s %s as an admin: %d %s", c.method, c.path, st, b)
		}
	}
	var l api.Templates
	if st := s.call(t, "a", "GET", "/v1/templates", nil, &l); st != 200 || len(l.Templates) != 1 || l.Templates[0].Name != "default" {
		t.Errorf("%d %+v", st, l)
	}
	if st := s.call(t, "admin", "GET", "/v1/templates", nil, &l); st != 200 || len(l.Templates) != 3 {
		t.Errorf("%d %+v", st, l)
	}
	var im api.Images
	if st := s.call(t, "a", "GET", "/v1/images", nil, &im); st != 200 || len(im.Images) != 1 || im.Images[0].Names[0] != "docker.io/library/x:latest" {
		t.Errorf("%d %+v", st, im)
	}
	if st := s.call(t, "a", "GET", "/v1/images?reference=none", nil, nil); st != 404 {
		t.Errorf("%d", st)
	}
	var events []byte
	s.call(t, "admin", "POST", "/v1/images", api.Pull{Reference: "x"}, &events, "Accept", "text/event-stream")
	if !bytes.Contains(events, []byte("event: progress\ndata: {\"stage\":\"download\"")) || !bytes.HasPrefix(events[bytes.LastIndex(events, []byte("event: ")):], []byte("event: image\n")) {
		t.Errorf("%s", events)
	}
	s.call(t, "admin", "POST", "/v1/images", api.Pull{Reference: "none"}, &events, "Accept", "text/event-stream")
	last := events[bytes.LastIndex(events, []byte("data: "))+6:]
	var p api.Problem
	if err := json.Unmarshal(last, &p); err != nil || p.Class != "not_found" {
		t.Errorf("%s: %v", events, err)
	}
}
