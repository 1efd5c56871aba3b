package telemetry

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func newLog(t *testing.T, c LogConfig) (*Log, *strings.Builder) {
	t.Helper()
	var b strings.Builder
	l, err := NewLog(&b, c)
	if err != nil {
		t.Fatal(err)
	}
	return l, &b
}

// What is said in a line is one line, and nothing that a terminal acts on.
func TestHostileText(t *testing.T) {
	evil := "a\nlevel=ERROR msg=forged\r\x1b[2J\x9b31m\u202egnp.exe\u2028\xff\x00" + strings.Repeat("x", 100<<10)
	for _, format := range []string{"text", "json"} {
		l, b := newLog(t, LogConfig{Format: format})
		l.With("tenant", evil).Error("message "+evil, "text", evil, "error", errors.New(evil), "list", []string{evil}, "bytes", 7)
		line := b.String()
		if strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") {
			t.Errorf("%s: %d lines", format, strings.Count(line, "\n"))
		}
		for _, bad := range []string{"\r", "\x1b", "\x9b", "\u009b", "\u202e", "\u2028", "\xff", "\x00"} {
			if strings.Contains(line, bad) {
				t.Errorf("%s has %q", format, bad)
			}
		}
		if len(line) > 5*(maxText+100) {
			t.Errorf("%s: %d bytes", format, len(line))
		}
		if format == "json" && !json.Valid([]byte(line)) {
			t.Errorf("no JSON: %.200s", line)
		}
	}
	if _, err := NewLog(&strings.Builder{}, LogConfig{Format: "xml"}); err == nil {
		t.Error("a format that is none")
	}
}

// A line that belongs to a request has its id and what it is of, once.
func TestLinesHaveIDs(t *testing.T) {
	l, b := newLog(t, LogConfig{Format: "json", Level: slog.LevelDebug})
	tel := New(Config{Logger: l.Logger})
	tel.HTTP("rest", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := CallOf(r.Context())
		c.SetRoute("GET /{id}")
		c.Set(FieldTenant, "t")
		c.Set(FieldKey, "k1")
		c.Set(FieldSandbox, "box")
		c.Set(FieldExec, "x")
		l.WarnContext(r.Context(), "inside", "tenant", "t")
		CallFor(w).Fail(errors.New("broken"))
		w.WriteHeader(http.StatusInternalServerError)
	})).ServeHTTP(httptest.NewRecorder(), func() *http.Request {
		r := httptest.NewRequest("GET", "/box", nil)
		r.Header.Set("X-Request-Id", "mine")
		return r
	}())
	tel.HTTP("rest", http.NotFoundHandler()).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("EVIL", "/%0a", nil))
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(lines) != 3 {
		t.Fatalf("%q", lines)
	}
	for i, want := range []map[string]any{
		{"level": "WARN", "msg": "inside", "request": "mine", "tenant": "t", "sandbox": "box", "exec": "x", "key": "k1"},
		{"level": "ERROR", "msg": "request failed", "error": "broken", "route": "GET /{id}", "request": "mine", "tenant": "t", "sandbox": "box", "exec": "x", "key": "k1"},
		{"level": "DEBUG", "msg": "request", "route": "other", "status": 404.0, "method": "_OTHER"},
	} {
		var have map[string]any
		if err := json.Unmarshal([]byte(lines[i]), &have); err != nil {
			t.Fatal(err)
		}
		for k, v := range want {
			if have[k] != v {
				t.Errorf("line %d: %s is %v, want %v", i, k, have[k], v)
			}
			if n := strings.Count(lines[i], `"`+k+`":`); n != 1 {
				t.Errorf("line %d has %s %d times", i, k, n)
			}
		}
	}
}

// A tenant has so many lines and no more; others have theirs.
func TestATenantCannotFlood(t *testing.T) {
	now := time.Unix(0, 0)
	l, b := newLog(t, LogConfig{TenantRate: 10, Now: func() time.Time { return now }})
	flood := func(n int) {
		for i := range n {
			l.Info("flood", "tenant", "loud/inner", "n", i)
		}
	}
	flood(1000)
	if n := strings.Count(b.String(), "msg=flood"); n != 40 || l.Dropped() != 960 {
		t.Errorf("%d lines, %d left out", n, l.Dropped())
	}
	b.Reset()
	l.Info("other", "tenant", "quiet")
	l.With("tenant", "quiet").Info("other")
	l.Info("of the daemon")
	if n := strings.Count(b.String(), "\n"); n != 3 {
		t.Errorf("others: %d lines", n)
	}
	b.Reset()
	now = now.Add(time.Second)
	flood(100)
	if n := strings.Count(b.String(), "msg=flood"); n != 10 || !strings.Contains(b.String(), "lines=960") {
		t.Errorf("a second later: %d lines: %s", n, b.String())
	}
	// Many tenants are not remembered for ever.
	for i := range 5000 {
		l.Info("one", "tenant", fmt.Sprint(i))
		now = now.Add(time.Minute)
	}
	if h, ok := l.Handler().(*logHandler); !ok || len(h.bound.tenants) > maxLineTenants+1 {
		t.Error("tenants are remembered for ever")
	}
}
