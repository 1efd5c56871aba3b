package rest

import (
	"cmp"
	"context"
	"fmt"

	"github.com/danielgtaylor/huma/v2"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/audit"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/axo/tenant"
)

// Keys are the daemon's; *tenant.Keys has them.
type Keys interface {
	List() ([]tenant.Key, error)
	Add(name string, role tenant.Role) (secret string, _ tenant.Key, err error)
	Remove(id string) error
}

// Quotas are what tenants may have; *tenant.Quotas has them.
type Quotas interface {
	All() (map[string]session.Quota, error)
	Set(name string, quota *session.Quota) error
}

func (s *Server) registerTenants() {
	huma.Register(s.api, op("list-tenants", "GET", "/v1/tenants", "Who has a key, a quota, or something here; for admins", "tenants", admins), s.listTenants)
	huma.Register(s.api, op("set-quota", "PUT", "/v1/tenants/{tenant}/quota", "Say what a tenant may have; for admins. What is not named has no bound", "tenants", admins, ownTenant), s.setQuota)
	huma.Register(s.api, op("remove-quota", "DELETE", "/v1/tenants/{tenant}/quota", "Let it have what the daemon gives to others; for admins", "tenants", admins, ownTenant), s.removeQuota)
	huma.Register(s.api, op("list-keys", "GET", "/v1/keys", "The keys, without what they are; for admins", "tenants", admins), s.listKeys)
	huma.Register(s.api, op("add-key", "POST", "/v1/keys", "Make a key for a tenant; for admins", "tenants", admins, created), s.addKey)
	huma.Register(s.api, op("remove-key", "DELETE", "/v1/keys/{key}", "Make a key worthless, by its id; for admins", "tenants", admins), s.removeKey)
}

func (s *Server) listTenants(context.Context, *none) (*body[api.Tenants], error) {
	names, err := s.tenantNames()
	if err != nil {
		return nil, problem(err)
	}
	keys := map[string]int{}
	if s.config.Keys != nil {
		list, err := s.config.Keys.List()
		if err != nil {
			return nil, problem(err)
		}
		for _, k := range list {
			keys[k.Tenant]++
		}
	}
	var quotas map[string]session.Quota
	if s.config.Quotas != nil {
		if quotas, err = s.config.Quotas.All(); err != nil {
			return nil, problem(err)
		}
	}
	out := api.Tenants{Tenants: []api.Tenant{}}
	for _, name := range names {
		t := api.Tenant{
			Name: name, Keys: keys[name], Sandboxes: len(s.config.Sessions.List(name, nil)),
			Snapshots: len(s.config.Sessions.Snapshots(name)), Runs: len(s.config.Runs.List(name)),
		}
		if q, ok := quotas[name]; ok {
			q := api.Quota(q)
			t.Quota = &q
		}
		out.Tenants = append(out.Tenants, t)
	}
	return &body[api.Tenants]{out}, nil
}

// InTenant names a tenant.
type InTenant struct {
	Tenant string `path:"tenant" doc:"Its name"`
}

func (s *Server) setQuota(_ context.Context, in *struct {
	InTenant
	Body api.Quota
}) (*body[api.Quota], error) {
	if s.config.Quotas == nil {
		return nil, problem(missing("quotas"))
	}
	q := session.Quota(in.Body)
	if err := s.config.Quotas.Set(in.Tenant, &q); err != nil {
		return nil, problem(err)
	}
	return &body[api.Quota]{in.Body}, nil
}

func (s *Server) removeQuota(_ context.Context, in *InTenant) (*none, error) {
	if s.config.Quotas == nil {
		return nil, problem(missing("quotas"))
	}
	return nil, problem(s.config.Quotas.Set(in.Tenant, nil))
}

func keyFor(k tenant.Key) api.Key {
	return api.Key{ID: k.ID, Tenant: k.Tenant, Role: string(k.Role), Created: k.Created}
}

func (s *Server) listKeys(context.Context, *none) (*body[api.Keys], error) {
	if s.config.Keys == nil {
		return nil, problem(missing("keys"))
	}
	list, err := s.config.Keys.List()
	if err != nil {
		return nil, problem(err)
	}
	out := api.Keys{Keys: []api.Key{}}
	for _, k := range list {
		out.Keys = append(out.Keys, keyFor(k))
	}
	return &body[api.Keys]{out}, nil
}

// addKey has a key made known to nobody before it is written down whose it is.
func (s *Server) addKey(ctx context.Context, in *body[api.AddKey]) (*body[api.NewKey], error) {
	if s.config.Keys == nil {
		return nil, problem(missing("keys"))
	}
	secret, k, err := s.config.Keys.Add(in.Body.Tenant, tenant.Role(cmp.Or(in.Body.Role, api.RoleUser)))
	if err != nil {
		return nil, problem(err)
	}
	if s.config.Audit != nil {
		by := caller(ctx)
		err = s.config.Audit.Record(ctx, audit.Entry{
			Kind: "key_added", Tenant: k.Tenant, Key: by.ID, Subject: k.ID, Fields: map[string]string{"role": string(k.Role), "by": by.Tenant},
		})
		if err != nil {
			if rerr := s.config.Keys.Remove(k.ID); rerr != nil {
				s.config.Logger.ErrorContext(ctx, "remove a key that nobody has", "key", k.ID, "error", rerr)
			}
			return nil, problem(fmt.Errorf("no key is made that is not written down: %w", err))
		}
	}
	return &body[api.NewKey]{api.NewKey{Key: keyFor(k), Secret: secret}}, nil
}

// removeKey does not take the key that asks for it: who removed his last one by mistake
// would need the host to get another.
func (s *Server) removeKey(ctx context.Context, in *struct {
	Key string `path:"key" doc:"Its id"`
}) (*none, error) {
	if s.config.Keys == nil {
		return nil, problem(missing("keys"))
	}
	if in.Key == caller(ctx).ID {
		return nil, problem(fmt.Errorf("this is the key of the request itself; remove it by another: %w", isolation.ErrFailedPrecondition))
	}
	return nil, problem(s.config.Keys.Remove(in.Key))
}
