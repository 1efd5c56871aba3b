package rest_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
)

// TestAudit: what changes something is written down before it is done, with who asked
// for it; everybody sees his own.
func TestAudit(t *testing.T) {
	s := start(t)
	s.create(t, "a", api.Create{ID: "box"})
	s.call(t, "a", "GET", "/v1/sandboxes/box", nil, nil) // changes nothing
	s.call(t, "a", "PUT", "/v1/sandboxes/box/files?path=/tmp/x", "text", nil)
	s.call(t, "a", "POST", "/v1/sandboxes/box/execs/none/kill", api.Kill{}, nil)
	s.call(t, "b", "DELETE", "/v1/sandboxes/box", nil, nil)
	s.call(t, "", "DELETE", "/v1/sandboxes/box", nil, nil)
	read := func(who, query string) (out []string, l api.AuditEntries) {
		t.Helper()
		if st := s.call(t, who, "GET", "/v1/audit"+query, nil, &l); st != 200 {
			t.Fatal(st)
		}
		for _, e := range l.Entries {
			if len(e.Key) == 0 || len(e.Hash) != 64 {
				t.Errorf("%+v", e)
			}
			line := []string{e.Kind, e.Tenant, e.Subject, e.Exec, e.Fields["operation"], e.Fields["path"], e.Fields["status"]}
			out = append(out, strings.Join(strings.Fields(strings.Join(line, " ")), " "))
		}
		return out, l
	}
	own := []string{
		"request a POST /v1/sandboxes",
		"request a box PUT /v1/sandboxes/{id}/files /tmp/x",
		"request a box none POST /v1/sandboxes/{id}/execs/{exec}/kill",
		"refused a box none POST /v1/sandboxes/{id}/execs/{exec}/kill 404",
	}
	others := []string{"request b box DELETE /v1/sandboxes/{id}", "refused b box DELETE /v1/sandboxes/{id} 404"}
	if got, _ := read("a", ""); !slices.Equal(got, own) {
		t.Errorf("a sees\n%s", strings.Join(got, "\n"))
	}
	if got, _ := read("b", ""); !slices.Equal(got, others) {
		t.Errorf("b sees\n%s", strings.Join(got, "\n"))
	}
	if got, _ := read("admin", ""); !slices.Equal(got, slices.Concat(own, others)) {
		t.Errorf("an admin sees\n%s", strings.Join(got, "\n"))
	}
	if got, _ := read("admin", "?tenant=b&kind=refused"); !slices.Equal(got, others[1:]) {
		t.Errorf("of b\n%s", strings.Join(got, "\n"))
	}
	if st := s.call(t, "a", "GET", "/v1/audit?tenant=b", nil, nil); st != 403 {
		t.Errorf("another's: %d", st)
	}
	got, page := read("a", "?limit=3")
	if !slices.Equal(got, own[:3]) || !page.More {
		t.Errorf("%v, %+v", got, page)
	}
	if got, page = read("a", fmt.Sprintf("?limit=3&after=%d", page.Entries[2].Seq)); !slices.Equal(got, own[3:]) || page.More {
		t.Errorf("%v, %+v", got, page)
	}
	if _, err := s.audit.Verify(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestAuditIsClosed: while nothing can be written down nothing is begun, and what is
// there can be ended.
func TestAuditIsClosed(t *testing.T) {
	s := start(t)
	s.create(t, "a", api.Create{ID: "old"})
	if err := s.audit.Close(); err != nil {
		t.Fatal(err)
	}
	var p api.Problem
	st := s.call(t, "a", "POST", "/v1/sandboxes", api.Create{ID: "box", Spec: isolation.Spec{Requirement: isolation.Arbitrary}}, &p)
	if st != 503 || p.Class != "unavailable" || !strings.Contains(p.Detail, "is not written down") {
		t.Errorf("%d, %+v", st, p)
	}
	if st := s.call(t, "a", "GET", "/v1/sandboxes/box", nil, nil); st != 404 {
		t.Errorf("it was made: %d", st)
	}
	for _, c := range []struct{ method, path string }{{"DELETE", "/v1/sandboxes/old/files?path=/x"}, {"PUT", "/v1/sandboxes/old/files?path=/x"}, {"POST", "/v1/sandboxes/old/execs"}} {
		if st := s.call(t, "a", c.method, c.path, api.Exec{Process: isolation.ProcessSpec{Args: []string{"exit0"}}}, nil); st != 503 {
			t.Errorf("%s %s: %d", c.method, c.path, st)
		}
	}
	if st := s.call(t, "a", "DELETE", "/v1/sandboxes/old", nil, nil); st != 204 {
		t.Errorf("delete: %d", st)
	}
}
