package rest_test

import (
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/client"
)

// least is which role each operation takes. What runs, changes or opens something takes a
// user, what is the host's or everybody's an admin.
var least = map[string][]string{
	"viewer": {
		"list-tiers", "explain", "list-sandboxes", "get-sandbox", "stat-sandbox", "list-execs", "get-exec", "wait-exec", "follow-exec",
		"read-file", "stat-file", "list-files", "watch-files", "get-egress", "list-snapshots", "get-snapshot", "list-tools", "list-images", "list-templates",
		"list-runs", "get-run", "wait-run", "follow-run", "list-audit",
	},
	"user": {
		"create-sandbox", "touch-sandbox", "delete-sandbox", "pause-sandbox", "resume-sandbox", "hold-sandbox", "exec", "kill-exec", "resize-exec", "write-stdin",
		"write-file", "remove-file", "make-directory", "rename-file", "dial-port", "proxy-port", "take-snapshot", "fork-sandbox", "delete-snapshot",
		"restore-snapshot", "call-tool", "run", "cancel-run", "delete-run",
	},
	"admin": {
		"pull-image", "remove-image", "build-template", "remove-template", "list-pools", "list-tenants", "set-quota", "remove-quota",
		"list-keys", "add-key", "remove-key",
	},
}

// others are the operations that an admin may ask about another tenant: they tell what
// there is, and end it.
var others = []string{
	"list-sandboxes", "get-sandbox", "stat-sandbox", "delete-sandbox", "pause-sandbox", "resume-sandbox", "list-execs", "get-exec", "kill-exec", "get-egress",
	"list-snapshots", "get-snapshot", "delete-snapshot", "list-runs", "get-run", "cancel-run", "delete-run",
}

// TestRoles asks every operation of the document with a key of every role, about oneself
// and about another tenant. One that the tables do not have fails it.
func TestRoles(t *testing.T) {
	s := start(t)
	role := map[string]string{}
	for r, ids := range least {
		for _, id := range ids {
			role[id] = r
		}
	}
	order := []string{"viewer", "user", "admin"}
	keys := map[string]string{"viewer": "viewer", "user": "a", "admin": "admin"}
	refused := func(t *testing.T, who, method, url string) bool {
		t.Helper()
		var b []byte
		st := s.call(t, who, method, url, nil, &b, "Upgrade", "axo-tcp", "Connection", "Upgrade")
		var p api.Problem
		return st == http.StatusForbidden && json.Unmarshal(b, &p) == nil && p.Class == "permission_denied"
	}
	asked := map[string]bool{}
	for path, methods := range s.operations(t) {
		for method, o := range methods {
			if o.ID == "health" { // everybody's, without a key
				continue
			}
			asked[o.ID] = true
			want, known := role[o.ID]
			if !known {
				t.Errorf("%s: the test does not know which role it takes; add it to least", o.ID)
				continue
			}
			if o.Role != want {
				t.Errorf("%s: the document says %q, want %q", o.ID, o.Role, want)
			}
			method := strings.ToUpper(method)
			url := path
			for url != "" && strings.Contains(url, "{") { // of nothing that there is
				before, rest, _ := strings.Cut(url, "{")
				_, after, _ := strings.Cut(rest, "}")
				url = before + "7" + after
			}
			for _, r := range order {
				may := slices.Index(order, r) >= slices.Index(order, want)
				if got := !refused(t, keys[r], method, url); got != may {
					t.Errorf("%s as %s: allowed %v, want %v", o.ID, r, got, may)
				}
				if o.ID == "list-audit" || o.ID == "proxy-port" || want == "admin" { // theirs is another parameter
					continue
				}
				may = r == "admin" && slices.Contains(others, o.ID)
				if got := !refused(t, keys[r], method, url+"?tenant=b"); got != may {
					t.Errorf("%s of another tenant as %s: allowed %v, want %v", o.ID, r, got, may)
				}
			}
			if want == "viewer" || method != http.MethodGet && method != http.MethodPost {
				continue
			}
			// HEAD is no way around, nor another method on the path.
			for _, m := range []string{"PUT", "PATCH", "OPTIONS"} {
				var b []byte
				if st := s.call(t, keys["viewer"], m, url, nil, &b); st < 400 {
					t.Errorf("%s %s as a viewer: %d %s", m, path, st, b)
				}
			}
		}
	}
	for _, id := range slices.Concat(slices.Collect(maps.Keys(role)), others) {
		if !asked[id] {
			t.Errorf("%s is none of the document's", id)
		}
	}
}

// TestAdminAndAnotherTenant: an admin finds another tenant's things, looks at them without
// what is in them, and ends them; all of that is told in that tenant's audit log.
func TestAdminAndAnotherTenant(t *testing.T) {
	s := start(t)
	const secret = "SECRET=of-a"
	sb := s.create(t, "a", api.Create{ID: "box"})
	s.create(t, "b", api.Create{ID: "box"})
	var p api.Process
	if st := s.call(t, "a", "POST", "/v1/sandboxes/box/execs", api.Exec{Process: isolation.ProcessSpec{Args: []string{"sleep", "100"}, Env: []string{secret}}}, &p); st != 201 {
		t.Fatal(st)
	}
	var run api.RunStatus
	ask := api.Run{Spec: isolation.Spec{Requirement: isolation.Arbitrary}, Process: isolation.ProcessSpec{Args: []string{"sleep", "100"}, Env: []string{secret}}, Async: true}
	if st := s.call(t, "a", "POST", "/v1/runs", ask, &run); st != 202 {
		t.Fatal(st)
	}

	var all api.Sandboxes
	if st := s.call(t, "admin", "GET", "/v1/sandboxes?tenant=*", nil, &all); st != 200 || len(all.Sandboxes) != 2 || all.Sandboxes[0].Tenant != "a" || all.Sandboxes[1].Tenant != "b" {
		t.Errorf("%d %+v", st, all)
	}
	if st := s.call(t, "admin", "GET", "/v1/sandboxes", nil, &all); st != 200 || len(all.Sandboxes) != 0 {
		t.Errorf("his own: %d %+v", st, all)
	}
	var tenants api.Tenants
	if st := s.call(t, "admin", "GET", "/v1/tenants", nil, &tenants); st != 200 || len(tenants.Tenants) != 4 || tenants.Tenants[0] != (api.Tenant{Name: "a", Keys: 2, Sandboxes: 1, Runs: 1}) {
		t.Errorf("%d %+v", st, tenants)
	}
	var one api.Sandbox
	if st := s.call(t, "admin", "GET", "/v1/sandboxes/box?tenant=a", nil, &one); st != 200 || one.Instance != sb.Instance || one.Tenant != "a" {
		t.Errorf("%d %+v", st, one)
	}
	var b []byte
	for _, path := range []string{"/v1/sandboxes/box/execs?tenant=a", "/v1/sandboxes/box/execs/" + p.ID + "?tenant=a", "/v1/runs?tenant=*", "/v1/runs/" + run.ID + "?tenant=a"} {
		if st := s.call(t, "admin", "GET", path, nil, &b); st != 200 || strings.Contains(string(b), secret) || !strings.Contains(string(b), "sleep") {
			t.Errorf("%s: %d %s", path, st, b)
		}
		own, _, _ := strings.Cut(path, "?")
		if st := s.call(t, "a", "GET", own, nil, &b); st != 200 || !strings.Contains(string(b), secret) {
			t.Errorf("%s to whose it is: %d %s", own, st, b)
		}
	}
	for _, c := range []struct {
		path string
		want int
	}{{"/v1/sandboxes/box?tenant=", 400}, {"/v1/sandboxes/box?tenant=*", 400}, {"/v1/sandboxes/box?tenant=../b", 400}, {"/v1/sandboxes/box?tenant=c", 404}, {"/v1/sandboxes/box/files?tenant=a&path=/etc/passwd", 403}} {
		if st := s.call(t, "admin", "GET", c.path, nil, &b); st != c.want {
			t.Errorf("%s: %d %s, want %d", c.path, st, b, c.want)
		}
	}

	for _, c := range []struct{ method, path string }{
		{"POST", "/v1/sandboxes/box/execs/" + p.ID + "/kill?tenant=a"}, {"POST", "/v1/runs/" + run.ID + "/cancel?tenant=a"},
		{"DELETE", "/v1/runs/" + run.ID + "?tenant=a"}, {"DELETE", "/v1/sandboxes/box?tenant=a"},
	} {
		if st := s.call(t, "admin", c.method, c.path, api.Kill{}, &b); st >= 300 {
			t.Errorf("%s %s: %d %s", c.method, c.path, st, b)
		}
	}
	if st := s.call(t, "a", "GET", "/v1/sandboxes/box", nil, nil); st != 404 {
		t.Errorf("it is still there: %d", st)
	}
	if st := s.call(t, "b", "GET", "/v1/sandboxes/box", nil, nil); st != 200 {
		t.Errorf("another's of the same id: %d", st)
	}

	var log api.AuditEntries
	if st := s.call(t, "a", "GET", "/v1/audit?kind=request", nil, &log); st != 200 {
		t.Fatal(st)
	}
	done := map[string]int{}
	for _, e := range log.Entries {
		if e.Tenant != "a" {
			t.Errorf("%+v", e)
		}
		if e.Fields["by"] == "admin" && e.Key != "" {
			done[e.Fields["operation"]+" "+e.Subject]++
		}
	}
	for _, want := range []string{
		"GET /v1/sandboxes/{id} box", "GET /v1/sandboxes/{id}/execs/{exec} box", "GET /v1/runs/{run} " + run.ID,
		"POST /v1/sandboxes/{id}/execs/{exec}/kill box", "POST /v1/runs/{run}/cancel " + run.ID, "DELETE /v1/sandboxes/{id} box",
	} {
		if done[want] != 1 {
			t.Errorf("%s is %d times in the audit log: %v", want, done[want], done)
		}
	}
}

// TestKeysAndQuotas: admins make keys and quotas, which hold at once, and are told of in
// the audit log.
func TestKeysAndQuotas(t *testing.T) {
	s := start(t)
	var k api.NewKey
	if st := s.call(t, "admin", "POST", "/v1/keys", api.AddKey{Tenant: "new"}, &k); st != 201 || k.Tenant != "new" || k.Role != "user" || k.Secret == "" {
		t.Fatalf("%d %+v", st, k)
	}
	s.keys["new"] = k.Secret
	if st := s.call(t, "new", "GET", "/v1/sandboxes", nil, nil); st != 200 {
		t.Errorf("with the new key: %d", st)
	}
	var list api.Keys
	var b []byte
	if st := s.call(t, "admin", "GET", "/v1/keys", nil, &b); st != 200 || strings.Contains(string(b), k.Secret) || json.Unmarshal(b, &list) != nil || len(list.Keys) != 6 {
		t.Errorf("%d %s", st, b)
	}
	i := slices.IndexFunc(list.Keys, func(k api.Key) bool { return k.Tenant == "admin" })
	if i < 0 {
		t.Fatalf("%+v", list)
	}
	for path, want := range map[string]int{"/v1/keys/" + list.Keys[i].ID: 412, "/v1/keys/nothing": 404} {
		if st := s.call(t, "admin", "DELETE", path, nil, &b); st != want {
			t.Errorf("DELETE %s: %d %s", path, st, b)
		}
	}
	for _, bad := range []api.AddKey{{Tenant: "../x"}, {Tenant: "x", Role: "root"}, {}} {
		if st := s.call(t, "admin", "POST", "/v1/keys", bad, &b); st < 400 || st >= 500 {
			t.Errorf("%+v: %d %s", bad, st, b)
		}
	}
	if st := s.call(t, "admin", "DELETE", "/v1/keys/"+k.ID, nil, nil); st != 204 {
		t.Errorf("%d", st)
	}
	if st := s.call(t, "new", "GET", "/v1/sandboxes", nil, nil); st != 401 {
		t.Errorf("with a key that was removed: %d", st)
	}
	q := api.Quota{Sandboxes: 3, CPUs: 1.5}
	if st := s.call(t, "admin", "PUT", "/v1/tenants/b/quota", q, &b); st != 200 {
		t.Errorf("%d %s", st, b)
	}
	var l api.Tenants
	s.call(t, "admin", "GET", "/v1/tenants", nil, &l)
	if i := slices.IndexFunc(l.Tenants, func(x api.Tenant) bool { return x.Name == "b" }); i < 0 || l.Tenants[i].Quota == nil || *l.Tenants[i].Quota != q {
		t.Errorf("%+v", l)
	}
	if st := s.call(t, "admin", "DELETE", "/v1/tenants/b/quota", nil, nil); st != 204 {
		t.Errorf("%d", st)
	}
	if st := s.call(t, "admin", "PUT", "/v1/tenants/b/quota", map[string]any{"cpus": -1}, &b); st != 422 && st != 400 {
		t.Errorf("%d %s", st, b)
	}
	// By the client that other programs use.
	d, err := client.New(client.Config{Address: "unix://" + s.socket, Key: s.keys["admin"]})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	k2, err := d.AddKey(t.Context(), "c", api.RoleViewer)
	if err != nil || k2.Role != api.RoleViewer {
		t.Errorf("%+v %v", k2, err)
	}
	if err := errors.Join(d.SetQuota(t.Context(), "c", &q), d.RemoveKey(t.Context(), k2.ID)); err != nil {
		t.Error(err)
	}
	if l, err := d.Tenants(t.Context()); err != nil || !slices.ContainsFunc(l, func(x api.Tenant) bool { return x.Name == "c" && x.Keys == 0 && x.Quota != nil }) {
		t.Errorf("%+v %v", l, err)
	}
	if err := d.SetQuota(t.Context(), "c", nil); err != nil {
		t.Error(err)
	}
	if l, err := d.Keys(t.Context()); err != nil || len(l) != 5 {
		t.Errorf("%+v %v", l, err)
	}
	viewer, err := client.New(client.Config{Address: "unix://" + s.socket, Key: s.keys["viewer"], Tenant: "b"})
	if err != nil {
		t.Fatal(err)
	}
	defer viewer.Close()
	if _, err := viewer.Sandboxes(t.Context(), nil); !errors.Is(err, isolation.ErrPermissionDenied) {
		t.Errorf("another tenant's, of a viewer: %v", err)
	}
	var log api.AuditEntries
	if st := s.call(t, "admin", "GET", "/v1/audit", nil, &log); st != 200 {
		t.Fatal(st)
	}
	var told []string
	for _, e := range log.Entries {
		told = append(told, e.Kind+" "+e.Tenant+" "+e.Subject+" "+e.Fields["tenant"]+" "+e.Fields["by"])
	}
	for _, want := range []string{"key_added new " + k.ID + "  admin", "request admin " + k.ID + "  ", "request admin  b "} {
		if !slices.Contains(told, want) {
			t.Errorf("no %q in the audit log: %q", want, told)
		}
	}
}
