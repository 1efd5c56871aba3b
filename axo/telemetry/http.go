package telemetry

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"
)

// HTTP measures the requests to an interface, gives each an id, and tells of those that
// failed by a fault of the daemon's. What a request is of, and its route, its handler
// says by CallOf.
func (t *Telemetry) HTTP(face string, next http.Handler) http.Handler {
	running := t.metrics.requestsRunning.WithLabelValues(face)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		call := &Call{id: idOf(r), face: face}
		w.Header().Set(HeaderRequestID, call.id)
		began := time.Now()
		ctx, span := t.serverSpan(r, call, began)
		ctx = context.WithValue(ctx, callKey{}, call)
		a := &answer{ResponseWriter: w, t: t, call: call}
		running.Inc()
		defer func() {
			running.Dec()
			fault := recover()
			t.answered(ctx, call, r, a, began, span, fault)
			if fault != nil {
				panic(http.ErrAbortHandler) // the answer is cut off, or there is none
			}
		}()
		next.ServeHTTP(a, r.WithContext(ctx))
	})
}

// answered counts a request that is over.
func (t *Telemetry) answered(ctx context.Context, c *Call, r *http.Request, a *answer, began time.Time, span trace.Span, fault any) {
	ended := time.Now()
	took := ended.Sub(began)
	status := a.status
	if status == 0 {
		status = http.StatusOK // nothing was written
	}
	class := fmt.Sprintf("%dxx", status/100)
	if fault != nil {
		class = statusAborted
	}
	c.endServerSpan(span, r.Method, class, status, ended)
	c.mu.Lock()
	route, err := c.route, c.err
	c.mu.Unlock()
	if route == "" {
		route = "other"
	}
	m := t.metrics
	if a.stream {
		m.streams.WithLabelValues(c.face).Dec()
	} else {
		m.requestDuration.WithLabelValues(c.face).Observe(took.Seconds())
	}
	m.requests.WithLabelValues(c.face, route, class).Inc()
	switch {
	case fault != nil && fault != http.ErrAbortHandler: //nolint:errorlint // it is what handlers panic with
		m.panics.Inc()
		t.config.Logger.ErrorContext(ctx, "request ran into a fault", "interface", c.face, "route", route, "fault", fmt.Sprint(fault), "stack", string(debug.Stack()))
	case status == http.StatusInternalServerError || outcomeOf(err) == outcomeInternal:
		t.config.Logger.ErrorContext(ctx, "request failed", "interface", c.face, "route", route, "error", err)
	default:
		if !t.config.Logger.Enabled(ctx, slog.LevelDebug) {
			return
		}
		args := []any{"interface", c.face, "method", knownMethod(r.Method), "route", route, "status", status, "ms", took.Milliseconds()}
		if err != nil {
			args = append(args, "error", err)
		}
		t.config.Logger.DebugContext(ctx, "request", args...)
	}
}

// statusAborted is in the place of the status of an answer that was cut off.
const statusAborted = "aborted"

// answer remembers how a request was answered.
type answer struct {
	http.ResponseWriter
	t      *Telemetry
	call   *Call
	status int
	stream bool
}

// streamTypes are the beginnings of the types of content that go on.
var streamTypes = []string{"text/event-stream", "application/vnd.axo.stream", "application/connect+", "application/grpc"}

// begin takes note of the status, at first.
func (a *answer) begin(status int) {
	if a.status >= 200 || a.status == http.StatusSwitchingProtocols {
		return
	}
	a.status = status
	a.stream = status == http.StatusSwitchingProtocols
	kind := a.Header().Get("Content-Type")
	for _, p := range streamTypes {
		a.stream = a.stream || strings.HasPrefix(kind, p)
	}
	if a.stream {
		a.t.metrics.streams.WithLabelValues(a.call.face).Inc()
	}
}

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(status int) {
	a.begin(status)
	a.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (a *answer) Write(p []byte) (int, error) {
	a.begin(http.StatusOK)
	return a.ResponseWriter.Write(p)
}

// Flush sends what there is by now.
func (a *answer) Flush() {
	a.begin(http.StatusOK)
	_ = http.NewResponseController(a.ResponseWriter).Flush() // as http.Flusher has it
}

// CallFor is CallOf where the answer alone is at hand.
func CallFor(w http.ResponseWriter) *Call {
	for {
		if a, ok := w.(*answer); ok {
			return a.call
		}
		u, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return nil
		}
		w = u.Unwrap()
	}
}

// Hijack implements http.Hijacker: what the client and the handler say to each other
// from now on is theirs.
func (a *answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(a.ResponseWriter).Hijack()
	if err == nil {
		a.begin(http.StatusSwitchingProtocols)
	}
	return c, rw, err
}

// Unwrap lets http.ResponseController be used.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }
