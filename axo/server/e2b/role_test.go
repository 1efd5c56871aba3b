package e2b

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestRoles asks everything that takes a key with one that only looks. What is GET tells,
// but for the link by which files are sent; all else is refused, and changes nothing.
func TestRoles(t *testing.T) {
	s := start(t)
	made := s.create(t, "a", nil)
	if made.EnvdAccessToken == "" {
		t.Fatalf("%+v", made)
	}
	if len(s.h.patterns) < 30 {
		t.Fatalf("%d patterns: %q", len(s.h.patterns), s.h.patterns)
	}
	looked := 0
	for _, p := range s.h.patterns {
		method, path, _ := strings.Cut(p, " ")
		if path == "" {
			continue // what is not there
		}
		path = strings.NewReplacer("{id}", made.SandboxID, "{build}", "x", "{hash}", strings.Repeat("0", 64), "{what}", "tags").Replace(path)
		for who, may := range map[string]bool{"viewer": method == "GET" && p != "GET /templates/{id}/files/{hash}", "b": true} {
			r, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("X-API-Key", s.keys[who])
			resp, err := s.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil {
				t.Fatal(err)
			}
			refused := resp.StatusCode == http.StatusForbidden && strings.Contains(string(b), "takes a key of the role")
			if refused == may {
				t.Errorf("%s as %s: %d %s", p, who, resp.StatusCode, b)
			}
			if who == "viewer" && strings.Contains(string(b), "ccessToken") {
				t.Errorf("%s tells a viewer what opens the sandbox: %s", p, b)
			}
			if who == "viewer" && may && resp.StatusCode == http.StatusOK {
				looked++
			}
		}
	}
	if looked < 4 {
		t.Errorf("a viewer saw %d things", looked)
	}
	var got sandbox
	if r := s.call(t, "a", "GET", "/sandboxes/"+made.SandboxID, nil, &got); r.StatusCode != http.StatusOK || got.EnvdAccessToken != made.EnvdAccessToken || got.State != "running" {
		t.Errorf("to whose it is: %d %+v", r.StatusCode, got)
	}
}
