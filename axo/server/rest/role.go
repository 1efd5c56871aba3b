package rest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/axo/tenant"
)

// Extensions of an operation in the document: the least role that it takes, and whether
// an admin may ask it about another tenant's things.
const (
	roleExtension   = "x-axo-role"
	tenantExtension = "x-axo-tenant"
)

// What tenantExtension says.
const (
	oneTenant  = "any" // of the tenant that the parameter tenant names
	allTenants = "all" // of that, or with * of every one
	itself     = "own" // the operation has a parameter tenant of its own
)

// everyone is the tenant that stands for all of them.
const everyone = "*"

func extend(o *huma.Operation, name, value string) {
	if o.Extensions == nil {
		o.Extensions = map[string]any{}
	}
	o.Extensions[name] = value
}

// takes has an operation be for keys of that role, and of those above it.
func takes(least tenant.Role) func(*huma.Operation) {
	return func(o *huma.Operation) { extend(o, roleExtension, string(least)) }
}

func admins(o *huma.Operation) { takes(tenant.RoleAdmin)(o) }

// anyTenant lets admins ask an operation about another tenant's things: what there is,
// and to end it. What tenants have in their sandboxes (files, output, ports) is not for
// admins.
func anyTenant(o *huma.Operation) {
	extend(o, tenantExtension, oneTenant)
	o.Parameters = append(o.Parameters, query("tenant", "Whose it is, if it is not the key's tenant; for admins", huma.TypeString))
}

// everyTenant is the same of a list.
func everyTenant(o *huma.Operation) {
	extend(o, tenantExtension, allTenants)
	o.Parameters = append(o.Parameters, query("tenant", "Of this tenant, or with * of all; for admins", huma.TypeString))
}

func ownTenant(o *huma.Operation) { extend(o, tenantExtension, itself) }

// rule is who may ask an operation, and about whom. The zero rule lets nobody.
type rule struct {
	least  tenant.Role
	tenant string // as tenantExtension has it
}

// rulesOf are those of the document's operations, by the patterns that they are served by.
func rulesOf(doc *huma.OpenAPI) map[string]rule {
	rules := map[string]rule{}
	for path, item := range doc.Paths {
		for method, o := range map[string]*huma.Operation{
			http.MethodGet: item.Get, http.MethodPut: item.Put, http.MethodPost: item.Post, http.MethodDelete: item.Delete, http.MethodPatch: item.Patch,
		} {
			if o == nil {
				continue
			}
			role, _ := o.Extensions[roleExtension].(string)
			whose, _ := o.Extensions[tenantExtension].(string)
			rules[method+" "+path] = rule{tenant.Role(role), whose}
		}
	}
	// It is served for every method, and what is after the ? is not for the daemon.
	rules[proxyPattern] = rule{tenant.RoleUser, itself}
	return rules
}

// check returns whose things a request is about, and why its key is not enough for it.
func (r rule) check(k tenant.Key, pattern string, q url.Values) (whose string, err error) {
	whose = k.Tenant
	if pattern == "" {
		return whose, nil // there is no such thing, as the answer says
	}
	if !k.Role.May(r.least) {
		return whose, fmt.Errorf("this takes a key of the role %s; this one has %s: %w", cmp.Or(r.least, "nobody has"), k.Role, isolation.ErrPermissionDenied)
	}
	asked := q.Get("tenant")
	switch {
	case !q.Has("tenant") || r.tenant == itself || asked == k.Tenant:
		return whose, nil
	case k.Role != tenant.RoleAdmin:
		return whose, fmt.Errorf("to ask about another tenant takes a key of an admin's: %w", isolation.ErrPermissionDenied)
	case r.tenant == "":
		return whose, fmt.Errorf("tenant: this cannot be asked about another tenant, nor by an admin: %w", isolation.ErrPermissionDenied)
	case r.tenant == allTenants && asked == everyone:
		return everyone, nil
	}
	if err := isolation.ValidateID(asked); err != nil {
		return whose, fmt.Errorf("tenant: %w", err)
	}
	return asked, nil
}

// stranger returns the tenant of a caller who asks about another's things.
func stranger(ctx context.Context) (by string, ok bool) {
	k, _ := ctx.Value(keyOf{}).(tenant.Key)
	return k.Tenant, k.Tenant != caller(ctx).Tenant
}

// eachTenant calls f for the tenant that a list is about, or for all.
func (s *Server) eachTenant(ctx context.Context, f func(who string)) error {
	who := caller(ctx).Tenant
	if who != everyone {
		f(who)
		return nil
	}
	names, err := s.tenantNames()
	for _, who := range names {
		f(who)
	}
	return err
}

// tenantNames are those who have a key, a quota, or something here, in order.
func (s *Server) tenantNames() ([]string, error) {
	all := map[string]bool{}
	for _, name := range slices.Concat(s.config.Sessions.Tenants(), s.config.Runs.Tenants()) {
		all[name] = true
	}
	if s.config.Keys != nil {
		keys, err := s.config.Keys.List()
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			all[k.Tenant] = true
		}
	}
	if s.config.Quotas != nil {
		quotas, err := s.config.Quotas.All()
		if err != nil {
			return nil, err
		}
		for name := range quotas {
			all[name] = true
		}
	}
	return slices.Sorted(maps.Keys(all)), nil
}

// sandboxOf, snapshotOf, runOf and processOf are what a caller may know of one: of another
// tenant's whose it is, and not its environment and output.
func sandboxOf(ctx context.Context, sn *session.Session) api.Sandbox {
	i := sn.Info()
	if _, other := stranger(ctx); other {
		i.Tenant = sn.Tenant()
	}
	return i
}

func snapshotOf(ctx context.Context, who string, i api.Snapshot) api.Snapshot {
	if _, other := stranger(ctx); other {
		i.Tenant = who
	}
	return i
}

func runOf(ctx context.Context, who string, i api.RunStatus) api.RunStatus {
	if _, other := stranger(ctx); other {
		i = bare(i)
		i.Tenant, i.Process.Env = who, nil
	}
	return i
}

func processOf(ctx context.Context, p api.Process) api.Process {
	if _, other := stranger(ctx); other {
		p.Process.Env = nil
	}
	return p
}
