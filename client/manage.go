package client

import (
	"context"
	"net/url"
	"strconv"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/engine"
)

// Health asks whether the daemon answers.
func (d *Driver) Health(ctx context.Context) (h api.Health, err error) {
	return h, d.get(ctx, "health", "/v1/health", nil, &h)
}

// Sandboxes lists the tenant's sandboxes that have all of the metadata, the oldest
// first.
func (d *Driver) Sandboxes(ctx context.Context, metadata map[string]string) ([]api.Sandbox, error) {
	q := url.Values{}
	for k, v := range metadata {
		q.Add("metadata", k+"="+v)
	}
	var out api.Sandboxes
	err := d.get(ctx, "list", "/v1/sandboxes", q, &out)
	return out.Sandboxes, err
}

// Inspect tells what is known of a sandbox.
func (d *Driver) Inspect(ctx context.Context, id string) (s api.Sandbox, err error) {
	if err := isolation.ValidateID(id); err != nil {
		return s, d.fail("inspect", id, "", err)
	}
	return s, d.get(ctx, "inspect", "/v1/sandboxes/"+id, nil, &s)
}

// Processes lists the programs of a sandbox that are known, the first started
// first.
func (d *Driver) Processes(ctx context.Context, id string) ([]api.Process, error) {
	if err := isolation.ValidateID(id); err != nil {
		return nil, d.fail("list programs", id, "", err)
	}
	var out api.Processes
	err := d.get(ctx, "list programs", "/v1/sandboxes/"+id+"/execs", nil, &out)
	return out.Execs, err
}

// Make makes a sandbox with all that the daemon can be asked for. Unlike one of
// Create it stays when the driver is closed.
func (d *Driver) Make(ctx context.Context, c api.Create) (s api.Sandbox, err error) {
	if err := d.remote.call(ctx, "POST", "/v1/sandboxes", nil, nil, c, &s); err != nil {
		return s, d.fail("create", c.ID, "", err)
	}
	return s, nil
}

func (d *Driver) get(ctx context.Context, op, path string, q url.Values, out any) error {
	if err := d.remote.call(ctx, "GET", path, q, nil, nil, out); err != nil {
		return d.fail(op, "", "", err)
	}
	return nil
}

// Kill sends a signal to a program of a sandbox.
func (d *Driver) Kill(ctx context.Context, id, execID string, sig isolation.Signal) error {
	for _, v := range []string{id, execID} {
		if err := isolation.ValidateID(v); err != nil {
			return d.fail("kill", id, "", err)
		}
	}
	if err := d.remote.call(ctx, "POST", "/v1/sandboxes/"+id+"/execs/"+execID+"/kill", nil, nil, api.Kill{Signal: strconv.Itoa(int(sig))}, nil); err != nil {
		return d.fail("kill", id, "", err)
	}
	return nil
}

// Tenants lists who has a key, a quota, or something at the daemon. This and the next are
// for admins.
func (d *Driver) Tenants(ctx context.Context) ([]api.Tenant, error) {
	var out api.Tenants
	err := d.get(ctx, "list tenants", "/v1/tenants", nil, &out)
	return out.Tenants, err
}

// SetQuota says what a tenant may have at once; nil: what the daemon gives to others.
func (d *Driver) SetQuota(ctx context.Context, tenant string, q *api.Quota) error {
	if err := isolation.ValidateID(tenant); err != nil {
		return d.fail("set quota", tenant, "", err)
	}
	method, in := "DELETE", any(nil)
	if q != nil {
		method, in = "PUT", q
	}
	if err := d.remote.call(ctx, method, "/v1/tenants/"+tenant+"/quota", nil, nil, in, nil); err != nil {
		return d.fail("set quota", tenant, "", err)
	}
	return nil
}

// Keys lists the daemon's keys, without what they are.
func (d *Driver) Keys(ctx context.Context) ([]api.Key, error) {
	var out api.Keys
	err := d.get(ctx, "list keys", "/v1/keys", nil, &out)
	return out.Keys, err
}

// AddKey makes a key for a tenant, of the role api.RoleViewer, RoleUser or RoleAdmin. What
// it is is told once.
func (d *Driver) AddKey(ctx context.Context, tenant, role string) (k api.NewKey, err error) {
	if err := d.remote.call(ctx, "POST", "/v1/keys", nil, nil, api.AddKey{Tenant: tenant, Role: role}, &k); err != nil {
		return k, d.fail("add key", "", "", err)
	}
	return k, nil
}

// RemoveKey makes a key worthless, by its id.
func (d *Driver) RemoveKey(ctx context.Context, id string) error {
	if err := isolation.ValidateID(id); err != nil {
		return d.fail("remove key", id, "", err)
	}
	if err := d.remote.call(ctx, "DELETE", "/v1/keys/"+id, nil, nil, nil, nil); err != nil {
		return d.fail("remove key", id, "", err)
	}
	return nil
}

// Egress tells what a sandbox asked for of the network.
func (d *Driver) Egress(ctx context.Context, id string) (out engine.EgressReport, err error) {
	if err := isolation.ValidateID(id); err != nil {
		return out, d.fail("egress", id, "", err)
	}
	if err = d.remote.call(ctx, "GET", "/v1/sandboxes/"+id+"/egress", nil, nil, nil, &out); err != nil {
		return out, d.fail("egress", id, "", err)
	}
	return out, nil
}
