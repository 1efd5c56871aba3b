package telemetry

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/axocoatl/isolation"
)

// TraceConfig says where spans go.
type TraceConfig struct {
	// Endpoint is a collector's URL for OTLP over HTTP, such as http://127.0.0.1:4318;
	// empty: what OpenTelemetry's environment variables say.
	Endpoint string
	// Sample is the part of the traces that are kept, of those that begin here: 0 to 1.
	// Negative: what the environment says, else all.
	Sample  float64
	Version string
	Queue   int           // spans that wait to be sent, at most; 0: 4096
	Every   time.Duration // how often they are sent; 0: 5 s
	Logger  *slog.Logger  // nil: silent
}

// TracesWanted reports whether OpenTelemetry's environment variables name a collector.
func TracesWanted() bool {
	return !strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") && os.Getenv("OTEL_TRACES_EXPORTER") != "none" &&
		cmp.Or(os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT")) != ""
}

// Traces sends spans to a collector. One that is slow or not there holds up nothing:
// what does not fit into the queue is dropped, and counted.
type Traces struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
	q        *spanQueue
}

func endpoint(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, fmt.Errorf("trace.endpoint %.80q: want a URL such as http://127.0.0.1:4318: %w", s, isolation.ErrInvalidArgument)
	}
	return u, nil
}

// CheckEndpoint refuses, as InvalidArgument, what is no collector's URL; "" is none.
func CheckEndpoint(s string) error {
	if s == "" {
		return nil
	}
	_, err := endpoint(s)
	return err
}

// OpenTraces makes a Traces. Close it.
func OpenTraces(ctx context.Context, c TraceConfig) (*Traces, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	options := []otlptracehttp.Option{otlptracehttp.WithTimeout(10 * time.Second)}
	if c.Endpoint != "" {
		u, err := endpoint(c.Endpoint)
		if err != nil {
			return nil, err
		}
		if u.Path == "" || u.Path == "/" {
			u = u.JoinPath("v1/traces")
		}
		options = append(options, otlptracehttp.WithEndpointURL(u.String()))
	}
	to, err := otlptracehttp.New(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	// What the SDK itself has to say is said once for each batch that cannot be sent.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(error) {}))
	q := &spanQueue{to: to, bound: int64(cmp.Or(c.Queue, 4096)), logger: c.Logger}
	q.SpanProcessor = sdktrace.NewBatchSpanProcessor(countedExporter{q},
		sdktrace.WithMaxQueueSize(int(q.bound)), sdktrace.WithMaxExportBatchSize(min(512, int(q.bound))), sdktrace.WithBatchTimeout(cmp.Or(c.Every, 5*time.Second)))
	res, err := resource.New(ctx, resource.WithTelemetrySDK(),
		resource.WithAttributes(attribute.String("service.name", "axo"), attribute.String("service.version", cmp.Or(c.Version, "unknown"))), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	po := []sdktrace.TracerProviderOption{sdktrace.WithSpanProcessor(q), sdktrace.WithResource(res)}
	switch {
	case c.Sample >= 0:
		po = append(po, sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(c.Sample))))
	case os.Getenv("OTEL_TRACES_SAMPLER") == "":
		po = append(po, sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.AlwaysSample())))
	}
	p := sdktrace.NewTracerProvider(po...)
	return &Traces{provider: p, tracer: p.Tracer("github.com/axocoatl/isolation/axo"), q: q}, nil
}

// Close sends what waits, for as long as ctx has.
func (t *Traces) Close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	return t.provider.Shutdown(ctx)
}

// spanQueue lets as many spans through to the SDK's queue as that has room for, so that
// what is dropped is known.
type spanQueue struct {
	sdktrace.SpanProcessor
	to     sdktrace.SpanExporter
	bound  int64
	logger *slog.Logger

	waiting               atomic.Int64
	sent, dropped, failed atomic.Int64
}

// OnEnd implements sdktrace.SpanProcessor.
func (q *spanQueue) OnEnd(s sdktrace.ReadOnlySpan) {
	if !s.SpanContext().IsSampled() {
		return // the SDK's takes no notice of it
	}
	if q.waiting.Add(1) > q.bound {
		q.waiting.Add(-1)
		q.dropped.Add(1)
		return
	}
	q.SpanProcessor.OnEnd(s)
}

// countedExporter counts what is sent.
type countedExporter struct{ q *spanQueue }

// ExportSpans implements sdktrace.SpanExporter.
func (e countedExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.q.to.ExportSpans(ctx, spans)
	n := int64(len(spans))
	e.q.waiting.Add(-n)
	if err == nil {
		e.q.sent.Add(n)
		return nil
	}
	e.q.failed.Add(n)
	e.q.logger.Warn("send spans to the collector", "spans", n, "error", err)
	return err
}

// Shutdown implements sdktrace.SpanExporter.
func (e countedExporter) Shutdown(ctx context.Context) error { return e.q.to.Shutdown(ctx) }

// Attributes of spans. They are ids, tiers, engines and kinds of ends: no code, no
// environment, no output.
const (
	attrRequest = attribute.Key("axo.request.id")
	attrRun     = attribute.Key("axo.run.id")
	attrSandbox = attribute.Key("axo.sandbox.id")
	attrExec    = attribute.Key("axo.exec.id")
	attrTier    = attribute.Key("axo.tier")
	attrEngine  = attribute.Key("axo.engine")
	attrOutcome = attribute.Key("axo.outcome")
	attrAhead   = attribute.Key("axo.made_ahead")
)

// maxAttr bounds an id: those of requests that are refused are their callers' words.
const maxAttr = 128

func id(k attribute.Key, v string) attribute.KeyValue {
	if len(v) > maxAttr {
		v = v[:maxAttr]
	}
	return k.String(strings.ToValidUTF8(v, "?"))
}

// span begins one; nil: there are no traces.
func (t *Telemetry) span(ctx context.Context, name string, at time.Time, attrs ...attribute.KeyValue) (context.Context, trace.Span) {
	if t.config.Traces == nil {
		return ctx, nil
	}
	return t.config.Traces.tracer.Start(ctx, name, trace.WithTimestamp(at), trace.WithAttributes(attrs...))
}

// endSpan ends one. Of an error its class is told: its text may quote a program.
func endSpan(s trace.Span, at time.Time, err error, attrs ...attribute.KeyValue) {
	if s == nil {
		return
	}
	if err != nil {
		s.SetStatus(codes.Error, outcomeOf(err))
	}
	s.SetAttributes(attrs...)
	s.End(trace.WithTimestamp(at))
}

// serverSpan begins the span of a request, which belongs to its client's trace if that
// has one.
func (t *Telemetry) serverSpan(r *http.Request, c *Call, at time.Time) (context.Context, trace.Span) {
	ctx := r.Context()
	if t.config.Traces == nil || r.URL.Path == "/v1/health" || r.URL.Path == "/health" {
		return ctx, nil
	}
	ctx = propagation.TraceContext{}.Extract(ctx, propagation.HeaderCarrier(r.Header))
	return t.config.Traces.tracer.Start(ctx, "request", trace.WithTimestamp(at), trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(id(attrRequest, c.id)))
}

// endServerSpan ends it, under the name of its route.
func (c *Call) endServerSpan(s trace.Span, method, status string, code int, at time.Time) {
	if s == nil {
		return
	}
	c.mu.Lock()
	route, fields := c.route, c.fields
	c.mu.Unlock()
	if !strings.Contains(route, " ") {
		route = knownMethod(method) + " " + cmp.Or(route, "other")
	}
	s.SetName(c.face + " " + route)
	s.SetAttributes(attribute.String("http.request.method", knownMethod(method)), attribute.String("http.route", route), attribute.Int("http.response.status_code", code))
	for k, v := range map[attribute.Key]string{attrSandbox: fields[FieldSandbox], attrExec: fields[FieldExec], attrRun: fields[FieldRun]} {
		if v != "" {
			s.SetAttributes(id(k, v))
		}
	}
	if code >= http.StatusInternalServerError || status == statusAborted {
		s.SetStatus(codes.Error, status)
	}
	s.End(trace.WithTimestamp(at))
}

func knownMethod(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return m
	}
	return "_OTHER"
}
