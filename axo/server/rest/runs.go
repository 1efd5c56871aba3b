package rest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/engine"
)

// InRun names a run.
type InRun struct {
	Run string `path:"run" doc:"Of the run"`
}

func (s *Server) registerRuns() {
	const run = "Run one program in a sandbox of its own. The answer is its result when it has ended; with async, or an Idempotency-Key, " +
		"or a stream accepted, it goes on also when nobody waits for it"
	huma.Register(s.api, op("run", "POST", "/v1/runs", run, "runs", large, func(o *huma.Operation) {
		streamsOf(o, "Result")
		o.Responses["202"] = &huma.Response{
			Description: "It has begun, and goes on by itself", Content: map[string]*huma.MediaType{"application/json": {Schema: &huma.Schema{Ref: "#/components/schemas/RunStatus"}}},
		}
		o.Responses["200"].Content["application/json"] = &huma.MediaType{Schema: s.api.OpenAPI().Components.Schemas.Schema(typeOf[engine.Result](), true, "")}
	}), s.run)
	huma.Register(s.api, op("list-runs", "GET", "/v1/runs", "The tenant's runs that go on by themselves, and those that ended a while ago, the oldest first", "runs", everyTenant), s.runs)
	huma.Register(s.api, op("get-run", "GET", "/v1/runs/{run}", "What is known of a run", "runs", anyTenant), s.getRun)
	huma.Register(s.api, op("wait-run", "GET", "/v1/runs/{run}/wait", "Wait for its end", "runs"), s.waitRun)
	huma.Register(s.api, op("follow-run", "GET", "/v1/runs/{run}/stream", "Its output from offsets on, as it comes, and how it ended", "runs", func(o *huma.Operation) {
		streamsOf(o, "RunStatus")
	}), s.followRun)
	huma.Register(s.api, op("cancel-run", "POST", "/v1/runs/{run}/cancel", "End it; its result says so", "runs", anyTenant), s.cancelRun)
	huma.Register(s.api, op("delete-run", "DELETE", "/v1/runs/{run}", "End it, and forget it", "runs", anyTenant), s.deleteRun)
}

// maxKey bounds an idempotency key.
const maxKey = 256

func (s *Server) run(ctx context.Context, in *struct {
	Accept string `header:"Accept"`
	Key    string `header:"Idempotency-Key" doc:"What a repetition of the request is told by, which is answered with the first one's result: any text that is new for each run"`
	Body   api.Run
}) (*answer, error) {
	fail := func(err error) (*answer, error) {
		return nil, problem(&isolation.Error{Op: "run", Outcome: isolation.NotStarted, Err: err})
	}
	r, err := s.request(ctx, in.Body)
	if err != nil {
		return fail(err)
	}
	if len(in.Key) > maxKey {
		return fail(fmt.Errorf("the key has %d bytes, at most %d are taken: %w", len(in.Key), maxKey, isolation.ErrInvalidArgument))
	}
	streamed := wants(in.Accept, api.StreamType) || wants(in.Accept, "text/event-stream")
	if !in.Body.Async && !streamed && in.Key == "" {
		res, err := s.config.Engine.Run(ctx, r)
		if err != nil {
			return nil, problem(err)
		}
		return write(http.StatusOK, nil, res), nil
	}
	// What no engine may run is told at once.
	if _, err := s.config.Engine.Explain(ctx, r); err != nil {
		return fail(err)
	}
	digest, err := digestOf(in.Body)
	if err != nil {
		return fail(err)
	}
	run, again, err := s.config.Runs.Start(ctx, caller(ctx).Tenant, in.Key, digest, r, streamed, in.Body.Async || in.Key != "")
	if err != nil {
		return nil, problem(err)
	}
	header := map[string]string{"Location": "/v1/runs/" + run.ID()}
	if again {
		header["Idempotent-Replayed"] = "true"
	}
	switch {
	case streamed:
		st := s.answerWith(s.followed(run), in.Accept, isolation.Offsets{}, http.StatusOK)
		return &answer{func(c huma.Context) {
			for k, v := range header {
				c.SetHeader(k, v)
			}
			st.Body(c)
		}}, nil
	case in.Body.Async:
		return write(http.StatusAccepted, header, run.Info()), nil
	}
	res, err := run.Wait(ctx)
	if err != nil {
		return nil, problem(err)
	}
	return write(http.StatusOK, header, res), nil
}

// digestOf tells requests apart.
func digestOf(r api.Run) (string, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return "", err
	}
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:]), nil
}

// answer is one whose status and form depend.
type answer struct {
	Body func(huma.Context)
}

func write(status int, header map[string]string, v any) *answer {
	return &answer{func(c huma.Context) {
		c.SetHeader("Content-Type", "application/json")
		for k, v := range header {
			c.SetHeader(k, v)
		}
		c.SetStatus(status)
		_ = json.NewEncoder(c.BodyWriter()).Encode(v)
	}}
}

// followed is a run whose output is an answer. Its last words are without the output:
// whoever follows has that.
func (s *Server) followed(r *session.Run) followed {
	return followed{
		program: r, kind: api.FrameRun, info: func() any { return bare(r.Info()) },
		end: func(ctx context.Context) (any, error) {
			if _, err := r.Wait(ctx); err != nil && ctx.Err() != nil {
				return nil, err
			}
			return bare(r.Info()), nil
		},
	}
}

func bare(i api.RunStatus) api.RunStatus {
	if i.Result != nil {
		res := *i.Result
		res.Stdout, res.Stderr = engine.Text{}, engine.Text{}
		i.Result = &res
	}
	return i
}

func (s *Server) findRun(ctx context.Context, in *InRun) (*session.Run, error) {
	return s.config.Runs.Get(caller(ctx).Tenant, in.Run)
}

func (s *Server) runs(ctx context.Context, _ *none) (*body[api.RunStatuses], error) {
	out := api.RunStatuses{Runs: []api.RunStatus{}}
	err := s.eachTenant(ctx, func(who string) {
		for _, r := range s.config.Runs.List(who) {
			out.Runs = append(out.Runs, runOf(ctx, who, bare(r.Info())))
		}
	})
	if err != nil {
		return nil, problem(err)
	}
	return &body[api.RunStatuses]{out}, nil
}

func (s *Server) getRun(ctx context.Context, in *InRun) (*body[api.RunStatus], error) {
	r, err := s.findRun(ctx, in)
	if err != nil {
		return nil, problem(err)
	}
	return &body[api.RunStatus]{runOf(ctx, caller(ctx).Tenant, r.Info())}, nil
}

func (s *Server) waitRun(ctx context.Context, in *struct {
	InRun
	InWait
}) (*body[api.RunStatus], error) {
	r, err := s.findRun(ctx, &in.InRun)
	if err != nil {
		return nil, problem(err)
	}
	wctx, cancel := context.WithTimeout(ctx, in.limit())
	defer cancel()
	_, _ = r.Wait(wctx) // what is known says all of it
	return &body[api.RunStatus]{r.Info()}, nil
}

// InWait is how long to wait.
type InWait struct {
	TimeoutMS int64 `query:"timeout_ms" minimum:"0" doc:"Answer after this time also if it runs on; 0: a minute"`
}

func (in InWait) limit() time.Duration {
	if in.TimeoutMS > 0 {
		return time.Duration(min(in.TimeoutMS, time.Hour.Milliseconds())) * time.Millisecond
	}
	return time.Minute
}

func (s *Server) followRun(ctx context.Context, in *struct {
	InRun
	InStream
}) (*start, error) {
	r, err := s.findRun(ctx, &in.InRun)
	var from isolation.Offsets
	if err == nil {
		from, err = in.offsets()
	}
	if err == nil {
		err = r.Holds(from)
	}
	if err != nil {
		return nil, problem(err)
	}
	return s.answerWith(s.followed(r), in.Accept, from, http.StatusOK), nil
}

func (s *Server) cancelRun(ctx context.Context, in *InRun) (*none, error) {
	r, err := s.findRun(ctx, in)
	if err == nil {
		r.Cancel()
	}
	return nil, problem(err)
}

func (s *Server) deleteRun(ctx context.Context, in *InRun) (*none, error) {
	r, err := s.findRun(ctx, in)
	if err != nil {
		return nil, problem(err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return nil, problem(r.Delete(ctx))
}
