package telemetry

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"go.opentelemetry.io/otel/trace"
)

// Keys of lines that belong to something.
const (
	keyRequest = "request"
	keyTenant  = "tenant"
	keyKey     = "key"
	keySandbox = "sandbox"
	keyExec    = "exec"
	keyRun     = "run"
	keyTrace   = "trace"
)

// LogConfig says how the daemon's log is.
type LogConfig struct {
	Format string // text or json; empty: text
	Level  slog.Level
	// TenantRate is how many lines of one tenant there are in a second, and four times
	// as many at once; 0: no bound.
	TenantRate float64
	Now        func() time.Time // nil: time.Now
}

// Log is the daemon's log. Lines of a request have its id, its trace and what it is of;
// what callers and sandboxes say in one cannot pass for another line or a terminal's
// commands.
type Log struct {
	*slog.Logger
	dropped atomic.Int64
}

// Dropped is how many lines were left out, since their tenant had too many.
func (l *Log) Dropped() int64 {
	if l == nil {
		return 0
	}
	return l.dropped.Load()
}

// maxText bounds what one value of a line has.
const maxText = 16 << 10

// NewLog makes a log.
func NewLog(w io.Writer, c LogConfig) (*Log, error) {
	o := &slog.HandlerOptions{Level: c.Level}
	var h slog.Handler
	switch c.Format {
	case "", "text":
		// It quotes what cannot be printed.
		o.ReplaceAttr = func(_ []string, a slog.Attr) slog.Attr { return cleaned(a, clip) }
		h = slog.NewTextHandler(w, o)
	case "json":
		o.ReplaceAttr = func(_ []string, a slog.Attr) slog.Attr { return cleaned(a, escape) }
		h = slog.NewJSONHandler(w, o)
	default:
		return nil, fmt.Errorf("log.format is %.80q: want text or json", c.Format)
	}
	l := &Log{}
	if c.Now == nil {
		c.Now = time.Now
	}
	l.Logger = slog.New(&logHandler{next: h, bound: &lineBound{rate: c.TenantRate, now: c.Now, log: l, tenants: map[string]*lines{}}})
	return l, nil
}

// cleaned is an attribute whose texts are as f makes them.
func cleaned(a slog.Attr, f func(string) string) slog.Attr {
	switch v := a.Value; v.Kind() {
	case slog.KindString:
		a.Value = slog.StringValue(f(v.String()))
	case slog.KindAny:
		switch x := v.Any().(type) {
		case error:
			a.Value = slog.StringValue(f(x.Error()))
		case []string:
			list := make([]string, len(x))
			for i, s := range x {
				list[i] = f(s)
			}
			a.Value = slog.AnyValue(list)
		case fmt.Stringer:
			a.Value = slog.StringValue(f(x.String()))
		}
	}
	return a
}

// clip bounds a text.
func clip(s string) string {
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText], "") + fmt.Sprintf("... (%d bytes more)", len(s)-maxText)
}

// escape bounds a text, and shows what JSON takes as it is and a terminal would act on:
// C1 controls, marks that turn the direction, and the like.
func escape(s string) string {
	s = clip(s)
	if !strings.ContainsFunc(s, hidden) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if hidden(r) {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func hidden(r rune) bool { return r >= 0x7f && r != utf8.RuneError && !unicode.IsPrint(r) }

// logHandler adds to a line what its context knows, and holds tenants to their bound.
type logHandler struct {
	next   slog.Handler
	bound  *lineBound
	tenant string
	keys   []string // that all lines have
}

// Enabled implements slog.Handler.
func (h *logHandler) Enabled(ctx context.Context, l slog.Level) bool { return h.next.Enabled(ctx, l) }

// WithAttrs implements slog.Handler.
func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.next, c.keys = h.next.WithAttrs(attrs), slices.Clone(h.keys)
	for _, a := range attrs {
		c.keys = append(c.keys, a.Key)
		if a.Key == keyTenant {
			c.tenant = a.Value.String()
		}
	}
	return &c
}

// WithGroup implements slog.Handler.
func (h *logHandler) WithGroup(name string) slog.Handler {
	c := *h
	c.next = h.next.WithGroup(name)
	return &c
}

// Handle implements slog.Handler.
func (h *logHandler) Handle(ctx context.Context, r slog.Record) error {
	tenant, has := h.tenant, slices.Clone(h.keys)
	r.Attrs(func(a slog.Attr) bool {
		has = append(has, a.Key)
		if a.Key == keyTenant {
			tenant = a.Value.String()
		}
		return true
	})
	add := func(key, value string) {
		if value != "" && !slices.Contains(has, key) {
			r.AddAttrs(slog.String(key, value))
		}
	}
	if c := CallOf(ctx); c != nil {
		c.mu.Lock()
		fields := c.fields
		c.mu.Unlock()
		if tenant == "" {
			tenant = fields[FieldTenant]
		}
		add(keyRequest, c.id)
		for f, key := range [numFields]string{FieldTenant: keyTenant, FieldSandbox: keySandbox, FieldExec: keyExec, FieldRun: keyRun, FieldKey: keyKey} {
			add(key, fields[f])
		}
	}
	if s := trace.SpanContextFromContext(ctx); s.HasTraceID() {
		add(keyTrace, s.TraceID().String())
	}
	left, ok := h.bound.take(tenantOf(tenant))
	if left > 0 {
		more := slog.NewRecord(r.Time, slog.LevelWarn, "lines of a tenant were left out", 0)
		more.AddAttrs(slog.String(keyTenant, tenant), slog.Int64("lines", left))
		if err := h.next.Handle(ctx, more); err != nil {
			return err
		}
	}
	if !ok {
		return nil
	}
	return h.next.Handle(ctx, r)
}

// lineBound bounds the lines of tenants.
type lineBound struct {
	rate float64
	now  func() time.Time
	log  *Log

	mu      sync.Mutex
	tenants map[string]*lines // guarded by mu
}

type lines struct {
	tokens float64
	at     time.Time
	left   int64 // out, since the last that was not
}

const (
	lineBurst = 4
	// maxLineTenants is how many tenants are remembered at least before those that say
	// nothing are forgotten.
	maxLineTenants = 1024
)

// take counts a line. left is how many were left out before it, where it is the first
// that is not.
func (b *lineBound) take(tenant string) (left int64, ok bool) {
	if b.rate <= 0 || tenant == "" {
		return 0, true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	most := b.rate * lineBurst
	l := b.tenants[tenant]
	if l == nil {
		if len(b.tenants) >= maxLineTenants {
			b.forgetLocked(now, most)
		}
		l = &lines{tokens: most, at: now}
		b.tenants[tenant] = l
	}
	l.tokens = min(most, l.tokens+b.rate*max(now.Sub(l.at), 0).Seconds())
	l.at = now
	if l.tokens < 1 {
		l.left++
		b.log.dropped.Add(1)
		return 0, false
	}
	l.tokens--
	left, l.left = l.left, 0
	return left, true
}

// forgetLocked forgets the tenants that would have all their tokens again.
func (b *lineBound) forgetLocked(now time.Time, most float64) {
	for name, l := range b.tenants {
		if l.left == 0 && l.tokens+b.rate*now.Sub(l.at).Seconds() >= most {
			delete(b.tenants, name)
		}
	}
}
