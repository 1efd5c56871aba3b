package client

import (
	"context"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
)

// Snapshot writes a sandbox whole, with what runs in it. "": the daemon makes a
// name.
func (d *Driver) Snapshot(ctx context.Context, id, name string) (x api.Snapshot, err error) {
	return x, d.post(ctx, "snapshot", id, "/v1/sandboxes/"+id+"/snapshots", api.TakeSnapshot{Name: name}, &x)
}

// Snapshots lists the tenant's snapshots, the oldest first.
func (d *Driver) Snapshots(ctx context.Context) ([]api.Snapshot, error) {
	var out api.Snapshots
	err := d.get(ctx, "list snapshots", "/v1/snapshots", nil, &out)
	return out.Snapshots, err
}

// RemoveSnapshot removes one, by its name or id. What was made of it goes on.
func (d *Driver) RemoveSnapshot(ctx context.Context, name string) error {
	err := isolation.ValidateID(name)
	if err == nil {
		err = d.remote.call(ctx, "DELETE", "/v1/snapshots/"+name, nil, nil, nil, nil)
	}
	if err != nil {
		return d.fail("remove snapshot", name, "", err)
	}
	return nil
}

// Restore makes a sandbox of a snapshot, in which what ran goes on. It stays when
// the driver is closed.
func (d *Driver) Restore(ctx context.Context, snapshot string, c api.Copy) (s api.Sandbox, err error) {
	return s, d.post(ctx, "restore", snapshot, "/v1/snapshots/"+snapshot+"/restore", c, &s)
}

// Fork makes copies of a sandbox, with what runs in it. They stay when the driver is
// closed.
func (d *Driver) Fork(ctx context.Context, id string, copies ...api.Copy) ([]api.Sandbox, error) {
	var out api.Sandboxes
	err := d.post(ctx, "fork", id, "/v1/sandboxes/"+id+"/fork", api.Fork{Copies: copies}, &out)
	return out.Sandboxes, err
}

// post sends something to do with what has an id.
func (d *Driver) post(ctx context.Context, op, id, path string, in, out any) error {
	err := isolation.ValidateID(id)
	if err == nil {
		err = d.remote.call(ctx, "POST", path, nil, nil, in, out)
	}
	if err != nil {
		return d.fail(op, id, "", err)
	}
	return nil
}
