package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/engine"
)

// keyHeader is where a request says what a repetition of it is told by.
func keyHeader(key string) http.Header {
	if key == "" {
		return http.Header{}
	}
	return http.Header{"Idempotency-Key": {key}}
}

// RunOnce runs a program in a sandbox of its own and waits for its end. With a key
// that is new for each run it may be called again when the answer did not come: the
// program runs once.
func (d *Driver) RunOnce(ctx context.Context, r api.Run, key string) (*engine.Result, error) {
	r.Async = false
	var res engine.Result
	if err := d.remote.call(ctx, "POST", "/v1/runs", nil, keyHeader(key), r, &res); err != nil {
		return nil, d.fail("run", "", isolation.OutcomeOf(err), err)
	}
	return &res, nil
}

// StartRun begins a run that goes on by itself. The key is as for RunOnce.
func (d *Driver) StartRun(ctx context.Context, r api.Run, key string) (s api.RunStatus, err error) {
	r.Async = true
	if err := d.remote.call(ctx, "POST", "/v1/runs", nil, keyHeader(key), r, &s); err != nil {
		return s, d.fail("run", "", isolation.OutcomeOf(err), err)
	}
	return s, nil
}

// Runs lists the tenant's runs, the oldest first, without their output.
func (d *Driver) Runs(ctx context.Context) ([]api.RunStatus, error) {
	var out api.RunStatuses
	err := d.get(ctx, "list runs", "/v1/runs", nil, &out)
	return out.Runs, err
}

func (d *Driver) onRun(ctx context.Context, op, method, id, path string, q url.Values, out any) error {
	err := isolation.ValidateID(id)
	if err == nil {
		err = d.remote.call(ctx, method, "/v1/runs/"+id+path, q, nil, nil, out)
	}
	if err != nil {
		return d.fail(op, id, "", err)
	}
	return nil
}

// WaitRun waits for a run's end.
func (d *Driver) WaitRun(ctx context.Context, id string) (s api.RunStatus, err error) {
	for s.Running = true; s.Running && err == nil; {
		s = api.RunStatus{}
		err = d.onRun(ctx, "wait", "GET", id, "/wait", nil, &s)
	}
	return s, err
}

// CancelRun ends a run; its result says so.
func (d *Driver) CancelRun(ctx context.Context, id string) error {
	return d.onRun(ctx, "cancel", "POST", id, "/cancel", nil, nil)
}

// DeleteRun ends a run, and has it forgotten.
func (d *Driver) DeleteRun(ctx context.Context, id string) error {
	return d.onRun(ctx, "delete", "DELETE", id, "", nil, nil)
}

// FollowRun writes the output of a run from offsets on as it comes, and returns what
// is known when it has ended, without the output. When the connection breaks it goes
// on where it was. nil writers take nothing.
func (d *Driver) FollowRun(ctx context.Context, id string, from isolation.Offsets, stdout, stderr io.Writer) (api.RunStatus, error) {
	if err := isolation.ValidateID(id); err != nil {
		return api.RunStatus{}, d.fail("follow", id, "", err)
	}
	until := time.Now().Add(comeBack)
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		at := from
		last, err := d.followRun(ctx, id, &from, stdout, stderr)
		if from != at {
			until = time.Now().Add(comeBack)
		}
		var own writeError
		switch {
		case err == nil:
			return last, nil
		case errors.As(err, &own), !errors.Is(err, isolation.ErrUnavailable), time.Now().After(until):
			return last, d.fail("follow", id, "", err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return last, d.fail("follow", id, "", context.Cause(ctx))
		}
	}
}

// writeError is of the caller's writer.
type writeError struct{ error }

func (e writeError) Unwrap() error { return e.error }

func (d *Driver) followRun(ctx context.Context, id string, from *isolation.Offsets, stdout, stderr io.Writer) (last api.RunStatus, err error) {
	resp, err := d.remote.send(ctx, "GET", "/v1/runs/"+id+"/stream", url.Values{
		"stdout": {strconv.FormatInt(from.Stdout, 10)}, "stderr": {strconv.FormatInt(from.Stderr, 10)},
	}, nil, http.Header{"Accept": {api.StreamType}})
	if err != nil {
		return last, err
	}
	defer resp.Body.Close()
	var buf []byte
	for {
		k, b, err := api.ReadFrame(resp.Body, buf)
		if cause := context.Cause(ctx); err != nil && cause != nil {
			return last, cause
		} else if err != nil {
			return last, fmt.Errorf("the stream broke off: %w: %w", err, isolation.ErrUnavailable)
		}
		buf = b[:0]
		switch k {
		case api.FrameStdout, api.FrameStderr:
			w, at := stdout, &from.Stdout
			if k == api.FrameStderr {
				w, at = stderr, &from.Stderr
			}
			n := len(b)
			if w != nil {
				if n, err = w.Write(b); err != nil {
					return last, writeError{err}
				}
			}
			*at += int64(n)
		case api.FrameRun:
			last = api.RunStatus{}
			if err := json.Unmarshal(b, &last); err != nil {
				return last, fmt.Errorf("the daemon's answer: %w", err)
			}
			if !last.Running {
				return last, nil
			}
		case api.FrameProblem:
			var p api.Problem
			if err := json.Unmarshal(b, &p); err != nil {
				return last, fmt.Errorf("the daemon's answer: %w", err)
			}
			return last, p.Err()
		}
	}
}

// Explain says what would run something, and why. The error is an
// *engine.RefusedError when no engine may run it.
func (d *Driver) Explain(ctx context.Context, r api.Run) (x engine.Decision, err error) {
	if err := d.remote.call(ctx, "POST", "/v1/explain", nil, nil, r, &x); err != nil {
		return x, d.fail("explain", "", isolation.NotStarted, err)
	}
	return x, nil
}

// Tiers tells what each engine of the daemon's can do; by fresh they are probed anew,
// which takes an admin's key.
func (d *Driver) Tiers(ctx context.Context, fresh bool) ([]engine.EngineReport, error) {
	var out api.Tiers
	err := d.get(ctx, "tiers", "/v1/tiers", url.Values{"fresh": {strconv.FormatBool(fresh)}}, &out)
	return out.Engines, err
}

// Images lists the daemon's images.
func (d *Driver) Images(ctx context.Context) ([]api.Image, error) {
	var out api.Images
	err := d.get(ctx, "list images", "/v1/images", nil, &out)
	return out.Images, err
}

// Templates lists the daemon's templates of virtual machines.
func (d *Driver) Templates(ctx context.Context) ([]api.Template, error) {
	var out api.Templates
	err := d.get(ctx, "list templates", "/v1/templates", nil, &out)
	return out.Templates, err
}

// Pools tells of the sandboxes that the daemon has ready.
func (d *Driver) Pools(ctx context.Context) ([]api.Pool, error) {
	var out api.Pools
	err := d.get(ctx, "list pools", "/v1/pools", nil, &out)
	return out.Pools, err
}
