package telemetry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	otlp "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/internal/collector"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/driver/mem"
	"github.com/axocoatl/isolation/engine"
)

// traced is an engine and sessions whose work is traced.
func traced(t *testing.T, c TraceConfig) (*Telemetry, *engine.Engine, *session.Manager) {
	t.Helper()
	traces, err := OpenTraces(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	tel := New(Config{Traces: traces})
	var reg isolation.Registry
	reg.Add(isolation.TierOCI, mem.New(mem.Config{Features: func(f *isolation.Features) { f.Tier = isolation.TierOCI }}))
	e, err := engine.New(engine.Config{Registry: reg, Observer: tel.Engine()})
	if err != nil {
		t.Fatal(err)
	}
	m, err := session.Open(t.Context(), session.Config{Engine: e, Dir: t.TempDir(), Observer: tel.Sessions()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return tel, e, m
}

func echo(tenant, text string) engine.Request {
	return engine.Request{
		ID: "run-x", Capture: engine.DefaultCapture, Stdin: strings.NewReader(text),
		Spec:    isolation.Spec{Requirement: isolation.Arbitrary, Tenant: tenant},
		Process: isolation.ProcessSpec{Args: []string{"echo", text}, Env: []string{"SECRET=" + text}},
	}
}

// A run's spans are below its request's, which is below its client's.
func TestSpans(t *testing.T) {
	col := collector.Start(t)
	tel, e, m := traced(t, TraceConfig{Endpoint: col.URL, Sample: 1})
	const (
		traceID = "4bf92f3577b34da6a3ce929d0e0e4736"
		client  = "00f067aa0ba902b7"
		secret  = "not-for-the-collector"
	)
	h := tel.HTTP("rest", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		CallOf(r.Context()).SetRoute("POST /v1/runs")
		q := echo("t", secret)
		res, err := tel.Run(r.Context(), "t", q.ID, func(ctx context.Context) (res *engine.Result, err error) {
			if err := tel.Wait(ctx, "t", "runs", func(context.Context) error { return nil }); err != nil {
				return nil, err
			}
			return e.Run(ctx, q)
		})
		if err != nil || string(res.Stdout.Head) != secret {
			t.Errorf("%v %v", res, err)
		}
		sn, err := m.Create(r.Context(), "t", session.Request{ID: "box", Spec: q.Spec})
		if err != nil {
			t.Error(err)
			return
		}
		x, err := sn.Exec(r.Context(), q.Process, false, false)
		if err == nil {
			_, err = x.Wait(r.Context())
		}
		if err = errors.Join(err, sn.Delete(r.Context())); err != nil {
			t.Error(err)
		}
	}))
	r := httptest.NewRequest("POST", "/v1/runs", nil)
	r.Header.Set("traceparent", "00-"+traceID+"-"+client+"-01")
	h.ServeHTTP(httptest.NewRecorder(), r)
	if err := tel.config.Traces.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	one := func(name string) *otlp.Span {
		t.Helper()
		list := col.Named(name)
		if len(list) != 1 {
			t.Fatalf("%d spans %q", len(list), name)
		}
		return list[0]
	}
	server := one("rest POST /v1/runs")
	if got := fmt.Sprintf("%x %x %s", server.TraceId, server.ParentSpanId, server.Kind); got != traceID+" "+client+" SPAN_KIND_SERVER" {
		t.Error(got)
	}
	below := func(child, parent *otlp.Span) {
		t.Helper()
		if string(child.ParentSpanId) != string(parent.SpanId) || fmt.Sprintf("%x", child.TraceId) != traceID {
			t.Errorf("%s is not below %s", child.Name, parent.Name)
		}
		if child.StartTimeUnixNano < parent.StartTimeUnixNano || child.EndTimeUnixNano < child.StartTimeUnixNano {
			t.Errorf("%s begins before %s, or ends before it begins", child.Name, parent.Name)
		}
	}
	run := one("run")
	below(run, server)
	if a := collector.Attributes(run); a["axo.run.id"] != "run-x" || a["axo.tier"] != "oci" || a["axo.engine"] != "mem" || a["axo.outcome"] != "exited" {
		t.Errorf("%v", a)
	}
	box := one("sandbox create")
	below(box, server)
	for _, name := range []string{"wait", "start", "exec", "drain", "delete"} {
		below(one(name), run)
	}
	for _, name := range []string{"admit", "decide", "create"} { // of the run, and of the sandbox
		list := col.Named(name)
		if len(list) != 2 {
			t.Fatalf("%d spans %q", len(list), name)
		}
		below(list[0], run)
		below(list[1], box)
	}
	for _, name := range []string{"sandbox start", "sandbox program", "sandbox delete"} {
		below(one(name), server)
	}
	if a := collector.Attributes(one("sandbox program")); a["axo.sandbox.id"] != "box" || a["axo.outcome"] != "exited" || !strings.HasPrefix(a["axo.exec.id"], "x-") {
		t.Errorf("%v", a)
	}
	if a, b := one("exec"), one("drain"); a.EndTimeUnixNano > b.StartTimeUnixNano {
		t.Error("the drain begins before the program ends")
	}
	if strings.Contains(col.Raw(), secret) {
		t.Error("code, environment or output went to the collector")
	}
}

// A collector that never answers holds up nothing; what it does not take is counted.
func TestADeadCollector(t *testing.T) {
	release := make(chan struct{})
	stuck := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer stuck.Close()
	defer close(release)
	tel, e, _ := traced(t, TraceConfig{Endpoint: stuck.URL, Sample: 1, Queue: 64, Every: time.Millisecond})
	const runs = 500
	for range runs {
		// Were one of them to wait for the collector this would not end.
		if _, err := tel.Run(t.Context(), "t", "run-x", func(ctx context.Context) (*engine.Result, error) { return e.Run(ctx, echo("t", "x")) }); err != nil {
			t.Fatal(err)
		}
	}
	q := tel.config.Traces.q
	const spans = runs * 8 // run, admit, decide, create, start, exec, drain, delete
	if q.sent.Load() != 0 || q.dropped.Load()+q.waiting.Load() != spans || q.waiting.Load() > 64 {
		t.Errorf("sent %d, dropped %d, waiting %d of %d", q.sent.Load(), q.dropped.Load(), q.waiting.Load(), spans)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := tel.config.Traces.Close(ctx); err == nil {
		t.Error("the end waited for a collector that never answers")
	}
}

// One that refuses is counted, and told once for each batch.
func TestACollectorThatRefuses(t *testing.T) {
	refuses := httptest.NewServer(http.NotFoundHandler())
	defer refuses.Close()
	log, text := newLog(t, LogConfig{})
	tel, e, _ := traced(t, TraceConfig{Endpoint: refuses.URL, Sample: 1, Every: time.Hour, Logger: log.Logger})
	if _, err := e.Run(t.Context(), echo("t", "x")); err != nil {
		t.Fatal(err)
	}
	_ = tel.config.Traces.Close(t.Context())
	q := tel.config.Traces.q
	if q.failed.Load() != 7 || q.sent.Load() != 0 || q.waiting.Load() != 0 || !strings.Contains(text.String(), "send spans to the collector") {
		t.Errorf("failed %d, sent %d, waiting %d: %s", q.failed.Load(), q.sent.Load(), q.waiting.Load(), text)
	}
}

func TestEndpoints(t *testing.T) {
	for _, bad := range []string{"127.0.0.1:4318", "grpc://host:1", "http://", "http://user:secret@host", "\x00"} {
		if _, err := OpenTraces(t.Context(), TraceConfig{Endpoint: bad}); !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
	if TracesWanted() {
		t.Error("traces that nobody wants")
	}
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	if !TracesWanted() {
		t.Error("the variable is not heeded")
	}
	t.Setenv("OTEL_SDK_DISABLED", "true")
	if TracesWanted() {
		t.Error("OTEL_SDK_DISABLED is not heeded")
	}
}

// The collector may be named by OpenTelemetry's own variable.
func TestTheCollectorOfTheEnvironment(t *testing.T) {
	col := collector.Start(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", col.URL)
	t.Setenv("OTEL_TRACES_SAMPLER", "always_on")
	tel, e, _ := traced(t, TraceConfig{Sample: -1})
	if _, err := e.Run(t.Context(), echo("t", "x")); err != nil {
		t.Fatal(err)
	}
	if err := tel.config.Traces.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(col.Named("create")) != 1 {
		t.Error("nothing came")
	}
}
