package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/admission"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/driver/mem"
	"github.com/axocoatl/isolation/engine"
	"github.com/axocoatl/isolation/pool"
)

// busy is a Telemetry in which every family has a series.
func busy(t *testing.T) *Telemetry {
	t.Helper()
	traces, err := OpenTraces(t.Context(), TraceConfig{Endpoint: "http://127.0.0.1:1", Sample: 0})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = traces.Close(context.Background()) })
	tel := New(Config{Version: "v0", Tenants: 2, Traces: traces})
	reg := isolation.Registry{}
	reg.Add(isolation.TierOCI, mem.New(mem.Config{Features: func(f *isolation.Features) { f.Tier = isolation.TierOCI }}))
	e, err := engine.New(engine.Config{Registry: reg, Observer: tel.Engine(), OnEvent: tel.EngineEvent})
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
	r := engine.Request{Spec: isolation.Spec{Requirement: isolation.Arbitrary, Tenant: "t/x"}, Process: isolation.ProcessSpec{Args: []string{"echo", "x"}}}
	if _, err := tel.Run(t.Context(), r.Spec.Tenant, "run-1", func(ctx context.Context) (*engine.Result, error) { return e.Run(ctx, r) }); err != nil {
		t.Fatal(err)
	}
	sn, err := m.Create(t.Context(), "t", session.Request{Spec: r.Spec})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sn.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"sleep", "3600"}}, false, false); err != nil {
		t.Fatal(err)
	}
	end := func(name session.OperationName, end session.OperationEnd) {
		_, done := tel.Sessions().Begin(t.Context(), session.Operation{Name: name})
		done(end)
	}
	end(session.OpPause, session.OperationEnd{Err: errors.New("x")})
	end(session.OpProgram, session.OperationEnd{Exit: &isolation.Exit{Reason: isolation.ReasonOOM, LimitsHit: []isolation.LimitHit{{Limit: isolation.LimitMemory}}}})
	_ = tel.Wait(t.Context(), "t", "runs", func(context.Context) error { return nil })
	tel.Refused("t", admission.ReasonQuota)
	tel.EngineEvent(engine.Event{Kind: engine.EventEgress, Fields: map[string]string{"allowed": "true"}})
	tel.SessionEvent(session.Event{Kind: "lost"})
	tel.MCP("ping", "", false)
	tel.HTTP("rest", http.NotFoundHandler()).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	tel.metrics.streams.WithLabelValues("rest")
	tel.Watch(Sources{
		Sessions: m, Queues: map[string]interface{ Counts() (taken, waiting int) }{"runs": admission.NewQueue(admission.QueueConfig{})},
		Pools: func() []Pool {
			return []Pool{{Engine: "mem", Tier: isolation.TierOCI, Stats: pool.Stats{Made: 2, MakeTime: time.Second}}}
		},
		Audit: func() (int64, int64) { return 1, 0 },
	})
	return tel
}

// The documents have what the registry has, and its names are as Prometheus wants them.
func TestFamilies(t *testing.T) {
	tel := busy(t)
	documented := map[string]family{}
	for _, f := range tel.metrics.families {
		documented[f.name] = f
	}
	all, err := tel.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if !strings.HasPrefix(f.GetName(), "axo_") {
			continue // Go's and the process's own
		}
		want, ok := documented[f.GetName()]
		delete(documented, f.GetName())
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		slices.Sort(labels)
		if sorted := slices.Sorted(slices.Values(want.labels)); !ok || strings.ToLower(f.GetType().String()) != want.kind || !slices.Equal(labels, sorted) {
			t.Errorf("%s is a %s with %v, in the documents a %s with %v", f.GetName(), f.GetType(), labels, want.kind, want.labels)
		}
	}
	for name := range documented {
		t.Errorf("%s is in the documents alone", name)
	}
	problems, err := testutil.GatherAndLint(tel.Gatherer())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// The table in the tree is that of the metrics: AXO_UPDATE=1 writes it anew.
func TestDocuments(t *testing.T) {
	const file, begin, end = "../../docs/OPERATIONS.md", "<!-- The metrics: made from axo/telemetry. -->\n\n", "\n<!-- The end of the metrics. -->"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), begin)
	table, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the metrics", file)
	}
	if table == Markdown() {
		return
	}
	if os.Getenv("AXO_UPDATE") == "" {
		t.Fatalf("%s is not what the metrics are: AXO_UPDATE=1 go test ./telemetry", file)
	}
	if err := os.WriteFile(file, []byte(before+begin+Markdown()+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

// What is not known has no label of its own.
func TestBoundedLabels(t *testing.T) {
	tel := New(Config{Tenants: 3})
	for i := range 1000 {
		text := fmt.Sprintf("evil-%d", i)
		_, _ = tel.Run(t.Context(), text+"/"+text, text, func(context.Context) (*engine.Result, error) {
			return &engine.Result{Tier: isolation.TierOCI, Engine: "mem", Exit: isolation.Exit{Reason: isolation.Reason(text), LimitsHit: []isolation.LimitHit{{Limit: isolation.Limit(text)}}}}, nil
		})
		tel.Refused(text, admission.ReasonRate)
		tel.MCP(text, "registered", true)
		tel.SessionEvent(session.Event{Kind: "deleted", Fields: map[string]string{"reason": text}})
	}
	all, err := tel.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	series, named := 0, map[string]bool{}
	for _, f := range all {
		if !strings.HasPrefix(f.GetName(), "axo_") {
			continue
		}
		for _, m := range f.GetMetric() {
			series++
			for _, l := range m.GetLabel() {
				if strings.Contains(l.GetValue(), "evil") {
					named[l.GetValue()] = true
				}
			}
		}
	}
	if len(named) != 3 || series > 60 {
		t.Errorf("%d series, with %v", series, named)
	}
}

// A fault of a handler's ends its request, and is told.
func TestAFaultIsTold(t *testing.T) {
	var log strings.Builder
	tel := New(Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	s := httptest.NewServer(tel.HTTP("rest", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("broken\nline") })))
	s.Config.ErrorLog = nil
	if resp, err := http.Get(s.URL); err == nil {
		resp.Body.Close()
		t.Errorf("it was answered: %s", resp.Status)
	}
	s.Close() // the handler has ended
	if n := testutil.ToFloat64(tel.metrics.panics); n != 1 {
		t.Errorf("%v faults", n)
	}
	if got := log.String(); !strings.Contains(got, "ran into a fault") || !strings.Contains(got, `broken\nline`) || !strings.Contains(got, "telemetry_test.go") {
		t.Errorf("%q", got)
	}
	if n := testutil.ToFloat64(tel.metrics.requests.WithLabelValues("rest", "other", "aborted")); n != 1 {
		t.Errorf("%v requests were cut off", n)
	}
}
