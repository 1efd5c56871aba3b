package mcp

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/axo/tenant"
	"github.com/axocoatl/isolation/driver/mem"
	"github.com/axocoatl/isolation/engine"
)

// withKey sends a key.
type withKey string

func (k withKey) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+string(k))
	return http.DefaultTransport.RoundTrip(r)
}

// TestRoles: of all tools that there are for a user, who only looks sees those that run
// and change nothing, and can call no other.
func TestRoles(t *testing.T) {
	var reg isolation.Registry
	reg.Add(isolation.TierOCI, mem.New(mem.Config{Features: func(f *isolation.Features) { f.Tier = isolation.TierOCI }}))
	e, err := engine.New(engine.Config{Registry: reg})
	if err != nil {
		t.Fatal(err)
	}
	m, err := session.Open(t.Context(), session.Config{Engine: e, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.Background()
		for _, s := range m.All() {
			if err := s.Delete(ctx); err != nil {
				t.Error(err)
			}
		}
		if err := m.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	s, err := New(Config{Engine: e, Sessions: m})
	if err != nil {
		t.Fatal(err)
	}
	find := func(secret string) (tenant.Key, error) {
		if role := tenant.Role(secret); role.May(tenant.RoleViewer) {
			return tenant.Key{Tenant: "a", Role: role}, nil
		}
		return tenant.Key{}, isolation.ErrUnauthenticated
	}
	h := httptest.NewServer(s.Handler(find, nil))
	t.Cleanup(h.Close)
	connect := func(role tenant.Role) *sdk.ClientSession {
		c, err := sdk.NewClient(&sdk.Implementation{Name: "test", Version: "1"}, nil).Connect(t.Context(),
			&sdk.StreamableClientTransport{Endpoint: h.URL, HTTPClient: &http.Client{Transport: withKey(role)}, DisableStandaloneSSE: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	user, viewer := connect(tenant.RoleUser), connect(tenant.RoleViewer)
	all, err := user.ListTools(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	// What a viewer may call, by all names that there are.
	may := map[string]bool{
		"run_python": false, "run_shell": false, "run_wasm": false, "explain": true,
		"create_sandbox": false, "list_sandboxes": true, "delete_sandbox": false, "exec": false, "read_file": true, "write_file": false, "list_files": true,
	}
	sees := map[string]bool{}
	list, err := viewer.ListTools(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range list.Tools {
		sees[x.Name] = true
	}
	if len(all.Tools) != len(may) {
		t.Errorf("%d tools, and the test knows %d", len(all.Tools), len(may))
	}
	for _, x := range all.Tools {
		want, known := may[x.Name]
		if !known {
			t.Errorf("%s: the test does not know whether a viewer may call it; add it to may", x.Name)
			continue
		}
		if sees[x.Name] != want {
			t.Errorf("a viewer sees %s: %v", x.Name, sees[x.Name])
		}
		for name, c := range map[string]*sdk.ClientSession{"user": user, "viewer": viewer} {
			r, err := c.CallTool(t.Context(), &sdk.CallToolParams{Name: x.Name, Arguments: map[string]any{}})
			refused := strings.Contains(fmt.Sprint(err), "takes a key of the role")
			if refused != (name == "viewer" && !want) {
				t.Errorf("%s as %s: %v %v", x.Name, name, r, err)
			}
		}
	}
	if n := len(m.All()); n != 1 {
		t.Errorf("%d sandboxes, want the user's one", n)
	}
}
