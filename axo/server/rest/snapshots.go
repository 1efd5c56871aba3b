package rest

import (
	"context"
	"fmt"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/session"
)

// InSnapshot names a snapshot.
type InSnapshot struct {
	Name string `path:"snapshot" doc:"Of the snapshot, or its id"`
}

func (s *Server) registerSnapshots() {
	huma.Register(s.api, op("take-snapshot", "POST", "/v1/sandboxes/{id}/snapshots", "Write it whole, with what runs in it; it goes on", "snapshots", created), s.snapshot)
	huma.Register(s.api, op("fork-sandbox", "POST", "/v1/sandboxes/{id}/fork", "Make copies of it, with what runs in it; it goes on", "snapshots", created), s.fork)
	huma.Register(s.api, op("list-snapshots", "GET", "/v1/snapshots", "The tenant's snapshots, the oldest first", "snapshots", everyTenant), s.snapshots)
	huma.Register(s.api, op("get-snapshot", "GET", "/v1/snapshots/{snapshot}", "What is known of a snapshot", "snapshots", anyTenant), s.getSnapshot)
	huma.Register(s.api, op("delete-snapshot", "DELETE", "/v1/snapshots/{snapshot}", "Remove it; what was made of it goes on", "snapshots", anyTenant), s.removeSnapshot)
	huma.Register(s.api, op("restore-snapshot", "POST", "/v1/snapshots/{snapshot}/restore", "Make a sandbox of it, in which what ran goes on", "snapshots", created), s.restore)
}

func copyOf(c api.Copy) session.Request {
	return session.Request{
		ID: c.ID, Metadata: c.Metadata, Idle: time.Duration(c.IdleMS) * time.Millisecond, Life: time.Duration(c.LifeMS) * time.Millisecond,
	}
}

// open refuses what would be new while the daemon is about to end.
func (s *Server) open(op string) error {
	if !s.config.Draining() {
		return nil
	}
	return &isolation.Error{
		Op: op, Outcome: isolation.NotStarted, Err: fmt.Errorf("the daemon is about to end; retry later: %w", isolation.ErrUnavailable),
	}
}

func (s *Server) snapshot(ctx context.Context, in *struct {
	InBox
	Body api.TakeSnapshot
}) (*body[api.Snapshot], error) {
	sn, err := s.session(ctx, in.ID)
	if err == nil {
		err = s.open("snapshot")
	}
	var x *session.Snapshot
	if err == nil {
		x, err = sn.Snapshot(ctx, in.Body.Name)
	}
	if err != nil {
		return nil, problem(err)
	}
	return &body[api.Snapshot]{x.Info()}, nil
}

func (s *Server) fork(ctx context.Context, in *struct {
	InBox
	Body api.Fork
}) (*body[api.Sandboxes], error) {
	sn, err := s.session(ctx, in.ID)
	if err == nil {
		err = s.open("fork")
	}
	if err != nil {
		return nil, problem(err)
	}
	var requests []session.Request
	for _, c := range in.Body.Copies {
		requests = append(requests, copyOf(c))
	}
	copies, err := sn.Fork(ctx, requests)
	if err != nil {
		return nil, problem(err)
	}
	out := api.Sandboxes{Sandboxes: []api.Sandbox{}}
	for _, c := range copies {
		out.Sandboxes = append(out.Sandboxes, c.Info())
	}
	return &body[api.Sandboxes]{out}, nil
}

func (s *Server) snapshots(ctx context.Context, _ *none) (*body[api.Snapshots], error) {
	out := api.Snapshots{Snapshots: []api.Snapshot{}}
	err := s.eachTenant(ctx, func(who string) {
		for _, x := range s.config.Sessions.Snapshots(who) {
			out.Snapshots = append(out.Snapshots, snapshotOf(ctx, who, x.Info()))
		}
	})
	if err != nil {
		return nil, problem(err)
	}
	return &body[api.Snapshots]{out}, nil
}

func (s *Server) getSnapshot(ctx context.Context, in *InSnapshot) (*body[api.Snapshot], error) {
	x, err := s.config.Sessions.FindSnapshot(caller(ctx).Tenant, in.Name)
	if err != nil {
		return nil, problem(err)
	}
	return &body[api.Snapshot]{snapshotOf(ctx, caller(ctx).Tenant, x.Info())}, nil
}

func (s *Server) removeSnapshot(ctx context.Context, in *InSnapshot) (*none, error) {
	x, err := s.config.Sessions.FindSnapshot(caller(ctx).Tenant, in.Name)
	if err != nil {
		return nil, problem(err)
	}
	// It goes on when the caller does not wait for it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return nil, problem(x.Delete(ctx))
}

func (s *Server) restore(ctx context.Context, in *struct {
	InSnapshot
	Body api.Copy
}) (*body[api.Sandbox], error) {
	err := s.open("restore")
	var sn *session.Session
	if err == nil {
		sn, err = s.config.Sessions.Restore(ctx, caller(ctx).Tenant, in.Name, copyOf(in.Body))
	}
	if err != nil {
		return nil, problem(err)
	}
	return &body[api.Sandbox]{sn.Info()}, nil
}
