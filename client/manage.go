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
