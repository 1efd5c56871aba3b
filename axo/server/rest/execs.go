package rest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/axo/telemetry"
)

func bytesReader(b []byte) io.Reader {
	if len(b) == 0 {
		return nil
	}
	return bytes.NewReader(b)
}

func (s *Server) registerExecs() {
	huma.Register(s.api, op("exec", "POST", "/v1/sandboxes/{id}/execs", "Start a program; its output is the answer if a stream is accepted", "programs", large, created, streams), s.exec)
	huma.Register(s.api, op("list-execs", "GET", "/v1/sandboxes/{id}/execs", "The programs that are known, ended ones too", "programs", anyTenant), s.execs)
	huma.Register(s.api, op("get-exec", "GET", "/v1/sandboxes/{id}/execs/{exec}", "What is known of a program", "programs", anyTenant), s.getExec)
	huma.Register(s.api, op("wait-exec", "GET", "/v1/sandboxes/{id}/execs/{exec}/wait", "Wait for its end", "programs"), s.wait)
	huma.Register(s.api, op("follow-exec", "GET", "/v1/sandboxes/{id}/execs/{exec}/stream", "Its output from offsets on, as it comes, and how it ended", "programs", streams), s.follow)
	huma.Register(s.api, op("kill-exec", "POST", "/v1/sandboxes/{id}/execs/{exec}/kill", "Send it a signal", "programs", anyTenant), s.kill)
	huma.Register(s.api, op("resize-exec", "POST", "/v1/sandboxes/{id}/execs/{exec}/resize", "Tell its terminal the size", "programs"), s.resize)
	s.raw(op("write-stdin", "POST", "/v1/sandboxes/{id}/execs/{exec}/stdin", "Give it input, as it comes; with end=true it is the last", "programs", func(o *huma.Operation) {
		o.Parameters = append(o.Parameters, query("end", "The input ends with this", huma.TypeBoolean),
			query("from", "Where in the whole input this begins; what was given already is skipped; -1, or not there: where it ends by now", huma.TypeInteger))
		o.RequestBody = &huma.RequestBody{Content: map[string]*huma.MediaType{"application/octet-stream": {}}}
	}), s.stdin)
}

func query(name, doc, typ string) *huma.Param {
	return &huma.Param{Name: name, In: "query", Description: doc, Schema: &huma.Schema{Type: typ}}
}

// streams tells of the other forms of the answer.
func streams(o *huma.Operation) { streamsOf(o, "Process") }

func streamsOf(o *huma.Operation, schema string) {
	o.Responses = map[string]*huma.Response{strconv.Itoa(max(o.DefaultStatus, 200)): {
		Description: "What is known of it; or, as the Accept header wants it, frames or events of its output, and what is known last",
		Content: map[string]*huma.MediaType{
			api.StreamType:      {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary", Description: "Frames: one byte of kind (1 stdout, 2 stderr, 3 process, 4 problem, 5 nothing, 6 run), four of length, big-endian, the payload"}},
			"text/event-stream": {Schema: &huma.Schema{Type: huma.TypeString, Description: "Events stdout and stderr with base64 data, process or run and problem with JSON; ids are offsets STDOUT:STDERR"}},
			"application/json":  {Schema: &huma.Schema{Ref: "#/components/schemas/" + schema}},
		},
	}}
}

// start answers a started program as JSON, or as a stream.
type start struct {
	Body func(huma.Context)
}

func (s *Server) exec(ctx context.Context, in *struct {
	InBox
	Accept string `header:"Accept"`
	Body   api.Exec
}) (*start, error) {
	sn, err := s.session(ctx, in.ID)
	if err != nil {
		return nil, problem(err)
	}
	p := in.Body.Process
	if len(in.Body.RawArgs) > 0 {
		p.Args = texts(in.Body.RawArgs)
	}
	if len(in.Body.RawEnv) > 0 {
		p.Env = texts(in.Body.RawEnv)
	}
	stdin := in.Body.Stdin || len(in.Body.Input) > 0
	streamed := wants(in.Accept, api.StreamType) || wants(in.Accept, "text/event-stream")
	e, err := sn.Exec(ctx, p, stdin, streamed)
	if err != nil {
		return nil, problem(err)
	}
	if stdin && (len(in.Body.Input) > 0 || !in.Body.Stdin) {
		// A program that reads nothing does not hold up the answer.
		give := context.WithoutCancel(ctx)
		go func() {
			if err := e.GiveStdin(give, bytes.NewReader(in.Body.Input), 0, !in.Body.Stdin); err != nil {
				s.config.Logger.DebugContext(give, "the program did not take all of its input", "exec", e.ID(), "error", err)
			}
		}()
	}
	return s.answer(e, in.Accept, isolation.Offsets{}, http.StatusCreated), nil
}

func texts(list [][]byte) []string {
	out := make([]string, len(list))
	for i, b := range list {
		out[i] = string(b)
	}
	return out
}

func (s *Server) answer(e *session.Exec, accept string, from isolation.Offsets, status int) *start {
	return s.answerWith(followed{
		program: e, kind: api.FrameProcess, info: func() any { return e.Info() },
		end: func(ctx context.Context) (any, error) {
			_, err := e.Wait(ctx)
			return e.Info(), err
		},
	}, accept, from, status)
}

// followed is a program whose output is an answer.
type followed struct {
	program interface {
		Follow(context.Context, isolation.Offsets, func(session.Stream, []byte) error) error
		Unfollow()
	}
	kind api.FrameKind                      // of what tells of it
	info func() any                         // what is known of it
	end  func(context.Context) (any, error) // what is known when it has ended
}

func (s *Server) answerWith(f followed, accept string, from isolation.Offsets, status int) *start {
	begin := func(c huma.Context, contentType string) io.Writer {
		c.SetHeader("Content-Type", contentType)
		c.SetStatus(status)
		return c.BodyWriter()
	}
	switch {
	case wants(accept, api.StreamType):
		return &start{func(c huma.Context) { s.serve(c, f, from, &frames{begin(c, api.StreamType)}) }}
	case wants(accept, "text/event-stream"):
		return &start{func(c huma.Context) { s.serve(c, f, from, &events{begin(c, "text/event-stream"), from}) }}
	}
	return &start{func(c huma.Context) { _ = json.NewEncoder(begin(c, "application/json")).Encode(f.info()) }}
}

// stream is a form in which output is sent.
type stream interface {
	output(session.Stream, []byte) error
	value(api.FrameKind, any) error
	alive() error
}

// aliveEvery is how often a stream without output says that it is there. A client
// that is gone is found out by it.
const aliveEvery = 15 * time.Second

// serve sends a program's output until it ends or nobody listens.
func (s *Server) serve(c huma.Context, f followed, from isolation.Offsets, out stream) {
	defer f.program.Unfollow()
	ctx, cancel := context.WithCancel(c.Context())
	defer cancel()
	flush := func() {}
	if f, ok := c.BodyWriter().(http.Flusher); ok {
		flush = f.Flush
	}
	if out.value(f.kind, f.info()) != nil {
		return
	}
	flush()
	// Output and signs of life come from two goroutines; one at a time writes.
	var writing sync.Mutex
	over := false // guarded by writing: this has returned, or is about to
	ended := make(chan error, 1)
	go func() {
		ended <- f.program.Follow(ctx, from, func(from session.Stream, p []byte) error {
			writing.Lock()
			defer writing.Unlock()
			if over {
				return errStopping
			}
			err := out.output(from, p)
			flush()
			return err
		})
	}()
	defer func() {
		writing.Lock()
		defer writing.Unlock()
		over = true
	}()
	tick := time.NewTicker(aliveEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.config.Stopping:
			writing.Lock()
			over = true
			_ = out.value(api.FrameProblem, api.ProblemOf(errStopping))
			flush()
			writing.Unlock()
			return
		case <-tick.C:
			writing.Lock()
			if out.alive() != nil {
				cancel()
			}
			flush()
			writing.Unlock()
		case err := <-ended:
			var last any
			if err == nil {
				last, err = f.end(ctx)
			}
			switch {
			case err == nil:
				_ = out.value(f.kind, last)
			case ctx.Err() == nil:
				p := api.ProblemOf(err)
				told(telemetry.CallOf(c.Context()), p)
				_ = out.value(api.FrameProblem, p)
			}
			flush()
			return
		}
	}
}

var errStopping = fmt.Errorf("the daemon is about to end; ask the next one for the rest: %w", isolation.ErrUnavailable)

type frames struct{ w io.Writer }

func (f *frames) output(s session.Stream, p []byte) error {
	return api.WriteFrame(f.w, api.FrameKind(s), p)
}
func (f *frames) value(k api.FrameKind, v any) error { return api.WriteJSONFrame(f.w, k, v) }
func (f *frames) alive() error                       { return api.WriteFrame(f.w, api.FrameAlive, nil) }

// events are server-sent events. Their ids are the offsets from which the stream
// goes on after them.
type events struct {
	w  io.Writer
	at isolation.Offsets
}

func (e *events) event(name, data string) error {
	_, err := fmt.Fprintf(e.w, "event: %s\nid: %d:%d\ndata: %s\n\n", name, e.at.Stdout, e.at.Stderr, data)
	return err
}

func (e *events) output(s session.Stream, p []byte) error {
	name := "stdout"
	if s == session.Stderr {
		name = "stderr"
		e.at.Stderr += int64(len(p))
	} else {
		e.at.Stdout += int64(len(p))
	}
	return e.event(name, base64.StdEncoding.EncodeToString(p))
}

func (e *events) value(k api.FrameKind, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return e.event(map[api.FrameKind]string{api.FrameProcess: "process", api.FrameRun: "run", api.FrameProblem: "problem"}[k], string(b))
}

func (e *events) alive() error {
	_, err := io.WriteString(e.w, ": alive\n\n")
	return err
}

func (s *Server) find(ctx context.Context, in *InExec) (*session.Exec, error) {
	sn, err := s.session(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return sn.FindExec(ctx, in.Exec)
}

func (s *Server) execs(ctx context.Context, in *InBox) (*body[api.Processes], error) {
	sn, err := s.session(ctx, in.ID)
	if err != nil {
		return nil, problem(err)
	}
	list, err := sn.Execs(ctx)
	if err != nil {
		return nil, problem(err)
	}
	out := api.Processes{Execs: []api.Process{}}
	for _, e := range list {
		out.Execs = append(out.Execs, processOf(ctx, e.Info()))
	}
	return &body[api.Processes]{out}, nil
}

func (s *Server) getExec(ctx context.Context, in *InExec) (*body[api.Process], error) {
	e, err := s.find(ctx, in)
	if err != nil {
		return nil, problem(err)
	}
	return &body[api.Process]{processOf(ctx, e.Info())}, nil
}

func (s *Server) wait(ctx context.Context, in *struct {
	InExec
	InWait
}) (*body[api.Process], error) {
	e, err := s.find(ctx, &in.InExec)
	if err != nil {
		return nil, problem(err)
	}
	wctx, cancel := context.WithTimeout(ctx, in.limit())
	defer cancel()
	if _, err := e.Wait(wctx); err != nil && wctx.Err() == nil {
		return nil, problem(err)
	}
	return &body[api.Process]{e.Info()}, nil
}

// InStream is where a stream is to begin, and its form.
type InStream struct {
	Accept string `header:"Accept"`
	Last   string `header:"Last-Event-ID" doc:"Go on after this event"`
	Stdout int64  `query:"stdout" minimum:"0" doc:"Offset to begin at"`
	Stderr int64  `query:"stderr" minimum:"0" doc:"Offset to begin at"`
}

func (in InStream) offsets() (isolation.Offsets, error) {
	from := isolation.Offsets{Stdout: in.Stdout, Stderr: in.Stderr}
	if in.Last == "" {
		return from, nil
	}
	out, errs, ok := strings.Cut(in.Last, ":")
	var err1, err2 error
	from.Stdout, err1 = strconv.ParseInt(out, 10, 64)
	from.Stderr, err2 = strconv.ParseInt(errs, 10, 64)
	if !ok || errors.Join(err1, err2) != nil || from.Stdout < 0 || from.Stderr < 0 {
		return from, fmt.Errorf("Last-Event-ID %.80q: want STDOUT:STDERR: %w", in.Last, isolation.ErrInvalidArgument)
	}
	return from, nil
}

func (s *Server) follow(ctx context.Context, in *struct {
	InExec
	InStream
}) (*start, error) {
	e, err := s.find(ctx, &in.InExec)
	if err != nil {
		return nil, problem(err)
	}
	from, err := in.offsets()
	if err == nil {
		err = e.Holds(from)
	}
	if err != nil {
		return nil, problem(err)
	}
	return s.answer(e, in.Accept, from, http.StatusOK), nil
}

func (s *Server) kill(ctx context.Context, in *struct {
	InExec
	Body api.Kill
}) (*none, error) {
	e, err := s.find(ctx, &in.InExec)
	if err != nil {
		return nil, problem(err)
	}
	sig := isolation.SIGKILL
	if in.Body.Signal != "" {
		if sig, err = isolation.ParseSignal(in.Body.Signal); err != nil {
			return nil, problem(err)
		}
	}
	return nil, problem(e.Kill(ctx, sig))
}

func (s *Server) resize(ctx context.Context, in *struct {
	InExec
	Body isolation.TerminalSize
}) (*none, error) {
	e, err := s.find(ctx, &in.InExec)
	if err != nil {
		return nil, problem(err)
	}
	return nil, problem(e.Resize(ctx, in.Body))
}

func (s *Server) stdin(w http.ResponseWriter, r *http.Request) error {
	e, err := s.find(r.Context(), &InExec{r.PathValue("id"), r.PathValue("exec")})
	if err != nil {
		return err
	}
	end, err := boolean(r, "end")
	if err != nil {
		return err
	}
	where := int64(-1)
	if v := r.URL.Query().Get("from"); v != "" {
		if where, err = strconv.ParseInt(v, 10, 64); err != nil {
			return fmt.Errorf("from %.80q: want an offset: %w", v, isolation.ErrInvalidArgument)
		}
	}
	if err := e.GiveStdin(r.Context(), r.Body, where, end); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
