package server_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/audit"
	"github.com/axocoatl/isolation/axo/internal/collector"
	"github.com/axocoatl/isolation/axo/server"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/axo/telemetry"
	"github.com/axocoatl/isolation/axo/tenant"
	"github.com/axocoatl/isolation/driver/mem"
)

// ask sends a request to a unix socket, or to the address of a URL.
func ask(t *testing.T, socket, method, target, body string, header ...string) (status int, h http.Header, answer string) {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true}
	if socket != "" {
		tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}
	}
	r, err := http.NewRequestWithContext(t.Context(), method, target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := (&http.Client{Transport: tr}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

// scraped are the metrics as Prometheus reads them.
type scraped map[string]*dto.MetricFamily

func scrape(t *testing.T, dir string) scraped {
	t.Helper()
	status, _, text := ask(t, filepath.Join(dir, "admin.sock"), "GET", "http://axo/metrics", "")
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, text)
	}
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// of is the value of a series, or the count of a histogram's; labels are name and value
// in turn. All series that have them are added up.
func (s scraped) of(name string, labels ...string) (sum float64) {
	for _, m := range s[name].GetMetric() {
		has := map[string]string{}
		for _, l := range m.GetLabel() {
			has[l.GetName()] = l.GetValue()
		}
		matches := true
		for i := 0; i+1 < len(labels); i += 2 {
			v, ok := has[labels[i]]
			matches = matches && ok && v == labels[i+1]
		}
		if matches {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return sum
}

// eventually waits until a series has a value: what ends is counted just after its
// caller is told.
func eventually(t *testing.T, dir string, want float64, name string, labels ...string) {
	t.Helper()
	var got float64
	for range 600 {
		if got = scrape(t, dir).of(name, labels...); got == want {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("%s%v is %v, want %v", name, labels, got, want)
}

func TestMetricsTellWhatWasDone(t *testing.T) {
	dir := t.TempDir()
	log, err := audit.Open(audit.Path(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	d := run(t, dir, mem.NewHost(), func(c *server.Config) {
		c.E2B, c.Auditor = "127.0.0.1:0", &server.Auditor{Log: log}
		c.Sessions.Quota = func(tenant string) session.Quota {
			return map[string]session.Quota{"slow": {Rate: 0.001, Burst: 1}, "small": {Sandboxes: 1}}[tenant]
		}
	})
	c := dial(t, dir, d.addresses[0])
	sb, err := c.Create(t.Context(), "s", isolation.Spec{Requirement: isolation.Arbitrary, Detached: true})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		var out safeBuffer
		p, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"say"}}, isolation.Stdio{Stdout: &out, Stderr: &out})
		if err != nil {
			t.Fatal(err)
		}
		if exit, err := p.Wait(t.Context()); err != nil || !exit.Success() {
			t.Fatal(exit, err)
		}
	}
	files, ok := isolation.As[isolation.Files](sb)
	if !ok {
		t.Fatal("no files")
	}
	if err := files.WriteFile(t.Context(), "/f", 0o600, strings.NewReader("12345")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		r, err := files.ReadFile(t.Context(), "/f")
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(r); err != nil || string(b) != "12345" {
			t.Fatalf("%q %v", b, err)
		}
		r.Close()
	}
	keys, err := tenant.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	key := func(who string) string {
		secret, _, err := keys.Add(who, tenant.RoleUser)
		if err != nil {
			t.Fatal(err)
		}
		return secret
	}
	runs := d.addresses[1] + "/v1/runs"
	const good = `{"spec":{"requirement":"Arbitrary"},"process":{"args":["say"]}}`
	slow, small := key("slow"), key("small")
	for _, want := range []int{200, 429, 429} {
		if status, _, answer := ask(t, "", "POST", runs, good, "X-API-Key", slow, "Content-Type", "application/json"); status != want {
			t.Fatalf("%d, want %d: %s", status, want, answer)
		}
	}
	for _, want := range []int{201, 429} {
		if status, _, answer := ask(t, "", "POST", d.addresses[1]+"/v1/sandboxes", `{"spec":{"requirement":"Arbitrary"}}`, "X-API-Key", small, "Content-Type", "application/json"); status != want {
			t.Fatalf("%d, want %d: %s", status, want, answer)
		}
	}
	mcp := func(body string) {
		t.Helper()
		if status, _, answer := ask(t, "", "POST", d.addresses[1]+"/mcp", body, "Authorization", "Bearer "+small, "Content-Type", "application/json", "Accept", "application/json, text/event-stream"); status != http.StatusOK {
			t.Fatalf("%d %s", status, answer)
		}
	}
	mcp(`{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{}}`)
	mcp(`{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"create_sandbox","arguments":{}}}`) // the quota refuses it
	if status, _, answer := ask(t, "", "GET", d.addresses[2]+"/v2/sandboxes", "", "X-API-Key", small); status != http.StatusOK {
		t.Fatalf("%d %s", status, answer)
	}
	if status, _, _ := ask(t, "", "POST", d.addresses[2]+"/process.Process/Start", "", "E2b-Sandbox-Id", "nosuch", "E2b-Sandbox-Port", "49983"); status != http.StatusBadGateway {
		t.Fatal(status)
	}

	eventually(t, dir, 1, "axo_runs_total", "tier", "oci", "engine", "mem", "outcome", "exited")
	eventually(t, dir, 2, "axo_runs_total", "tier", "", "outcome", "resource_exhausted")
	eventually(t, dir, 3, "axo_run_duration_seconds")
	eventually(t, dir, 0, "axo_runs_running")
	eventually(t, dir, 2, "axo_programs_total", "tier", "oci", "engine", "mem", "outcome", "exited")
	eventually(t, dir, 12, "axo_output_bytes_total", "stream", "stdout") // three programs
	eventually(t, dir, 21, "axo_output_bytes_total", "stream", "stderr")
	eventually(t, dir, 5, "axo_file_bytes_total", "direction", "in")
	eventually(t, dir, 10, "axo_file_bytes_total", "direction", "out")
	eventually(t, dir, 2, "axo_sandboxes", "tier", "oci", "engine", "mem", "status", "running")
	eventually(t, dir, 0, "axo_programs_running")
	eventually(t, dir, 2, "axo_sandbox_operation_duration_seconds", "operation", "create", "tier", "oci")
	eventually(t, dir, 2, "axo_sandbox_operation_duration_seconds", "operation", "start")
	eventually(t, dir, 2, "axo_refused_total", "reason", "rate")
	eventually(t, dir, 2, "axo_refused_total", "reason", "quota")
	eventually(t, dir, 1, "axo_admitted_total", "queue", "runs")
	eventually(t, dir, 2, "axo_admitted_total", "queue", "starts")
	eventually(t, dir, 0, "axo_queue_waiting", "queue", "starts")
	eventually(t, dir, 5, "axo_step_duration_seconds", "step", "wait") // refused ones too
	for step, want := range map[string]float64{"admit": 3, "decide": 3, "create": 3, "start": 1, "exec": 1, "drain": 1, "delete": 1} {
		eventually(t, dir, want, "axo_step_duration_seconds", "step", step)
	}
	eventually(t, dir, 1, "axo_http_requests_total", "interface", "rest", "route", "POST /v1/runs", "status", "2xx")
	eventually(t, dir, 2, "axo_http_requests_total", "interface", "rest", "route", "POST /v1/runs", "status", "4xx")
	eventually(t, dir, 2, "axo_http_requests_total", "interface", "mcp", "route", "/mcp", "status", "2xx")
	eventually(t, dir, 1, "axo_mcp_requests_total", "method", "tools/list", "outcome", "ok")
	eventually(t, dir, 1, "axo_mcp_requests_total", "method", "tools/call", "tool", "create_sandbox", "outcome", "error")
	eventually(t, dir, 1, "axo_http_requests_total", "interface", "e2b", "route", "GET /v2/sandboxes", "status", "2xx")
	eventually(t, dir, 1, "axo_http_requests_total", "interface", "e2b", "status", "5xx")
	eventually(t, dir, 1, "axo_build_info", "version", "v0-test")
	eventually(t, dir, 0, "axo_streams_open")
	eventually(t, dir, 0, "axo_audit_failures_total")
	last := scrape(t, dir)
	for _, name := range []string{"axo_audit_records_total", "go_goroutines", "process_open_fds", "process_resident_memory_bytes"} {
		if last.of(name) < 1 {
			t.Errorf("%s is %v", name, last.of(name))
		}
	}
	if err := sb.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, dir, 1, "axo_sandboxes_ended_total", "reason", "deleted")
	eventually(t, dir, 1, "axo_sandboxes", "status", "running")

	// A program that runs, and who follows it.
	long, err := c.Create(t.Context(), "long", isolation.Spec{Requirement: isolation.Arbitrary, Detached: true})
	if err != nil {
		t.Fatal(err)
	}
	var out safeBuffer
	p, err := long.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"sleep", "3600"}}, isolation.Stdio{Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, dir, 1, "axo_programs_running", "tier", "oci")
	eventually(t, dir, 1, "axo_streams_open", "interface", "rest")
	if err := p.Kill(t.Context(), isolation.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, dir, 1, "axo_programs_total", "outcome", "signaled")
	eventually(t, dir, 0, "axo_streams_open", "interface", "rest")
}

// Whatever callers send, the number of series is that of what is known here, and no
// text of theirs is in one.
func TestCallersNameNoSeries(t *testing.T) {
	dir := t.TempDir()
	d := run(t, dir, mem.NewHost(), func(c *server.Config) { c.E2B = "127.0.0.1:0" })
	key := secret(t, dir)
	rest, compatible := d.addresses[1], d.addresses[2]
	tr := &http.Transport{MaxIdleConnsPerHost: 8}
	defer tr.CloseIdleConnections()
	send := func(method, target, body string, header ...string) {
		r, err := http.NewRequestWithContext(t.Context(), method, target, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i+1 < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		resp, err := (&http.Client{Transport: tr}).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body) // its content does not matter
		resp.Body.Close()
	}
	keyed := []string{"X-API-Key", key, "Content-Type", "application/json"}
	round := func(i int) {
		evil := url.PathEscape(fmt.Sprintf("evil\n%d\"}{\\\x1b[31m%d", i, rand.Int64()))
		switch i % 10 {
		case 0:
			send("GET", rest+"/v1/sandboxes/"+evil, "", keyed...)
		case 1:
			send("EVIL"+fmt.Sprint(i), rest+"/"+evil+"/"+evil, "", keyed...)
		case 2:
			send("POST", rest+"/v1/sandboxes/"+evil+"/execs", `{"process":{"args":["evil"]}}`, keyed...)
		case 3:
			send("GET", rest+"/v1/sandboxes/x/ports/80/"+evil, "", keyed...)
		case 4:
			send("POST", rest+"/v1/runs", fmt.Sprintf(`{"spec":{"requirement":"evil%d","tenant":"evil%d"},"process":{"args":["evil"]},"engine":"evil%d"}`, i, i, i), keyed...)
		case 5:
			send("POST", rest+"/v1/runs", fmt.Sprintf(`{"spec":{"requirement":"Arbitrary","tenant":"evil%d"},"process":{"args":["evil%d"]},"engine":"evil%d"}`, i, i, i), keyed...)
		case 6:
			send("POST", rest+"/mcp", fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"evil%d","arguments":{}}}`, i),
				"Authorization", "Bearer "+key, "Content-Type", "application/json", "Accept", "application/json, text/event-stream")
		case 7:
			send("POST", rest+"/mcp", fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"evil/%d","params":{}}`, i),
				"Authorization", "Bearer "+key, "Content-Type", "application/json", "Accept", "application/json, text/event-stream")
		case 8:
			send("GET", compatible+"/"+evil, "", "X-API-Key", key, "E2b-Sandbox-Id", "evil"+fmt.Sprint(i), "E2b-Sandbox-Port", fmt.Sprint(i))
		case 9:
			send("GET", compatible+"/sandboxes/"+evil, "", "X-API-Key", "evil"+fmt.Sprint(i), "X-Request-Id", "evil"+fmt.Sprint(i))
		}
	}
	count := func() (n int) {
		t.Helper()
		for name, f := range scrape(t, dir) {
			for _, m := range f.GetMetric() {
				n++
				for _, l := range m.GetLabel() {
					if strings.Contains(strings.ToLower(l.GetValue()), "evil") {
						t.Errorf("%s has a caller's text: %q", name, l.GetValue())
					}
				}
			}
		}
		return n
	}
	// All kinds once, a few times: the series that there are at all.
	for i := range 30 {
		round(i)
	}
	before := count()
	for i := range 1000 {
		round(i)
	}
	// A garbage collection, or the like, may have made a series of Go's own.
	if after := count(); after > before+10 {
		t.Errorf("%d series, %d after 1000 requests", before, after)
	}
}

// What is for who runs the daemon is on the admin socket, and nowhere else.
func TestAdminIsNotForCallers(t *testing.T) {
	dir := t.TempDir()
	d := run(t, dir, mem.NewHost(), func(c *server.Config) { c.E2B, c.MetricsListen = "127.0.0.1:0", "127.0.0.1:0" })
	key := secret(t, dir)
	admin := filepath.Join(dir, "admin.sock")
	paths := []string{"/metrics", "/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/cmdline", "/debug/pprof/goroutine?debug=2"}
	for _, p := range paths {
		if status, _, answer := ask(t, admin, "GET", "http://axo"+p, ""); status != http.StatusOK || len(answer) == 0 {
			t.Errorf("%s of the admin socket: %d", p, status)
		}
		for _, k := range []string{key, ""} {
			for _, where := range d.addresses[1:] {
				if status, _, answer := ask(t, "", "GET", where+p, "", "X-API-Key", k); status == http.StatusOK || strings.Contains(answer, "goroutine 1 [") {
					t.Errorf("%s%s: %d", where, p, status)
				}
			}
			if status, _, _ := ask(t, filepath.Join(dir, "axo.sock"), "GET", "http://axo"+p, "", "X-API-Key", k); status == http.StatusOK {
				t.Errorf("%s of the daemon's socket: %d", p, status)
			}
		}
	}
	if status, _, answer := ask(t, admin, "GET", "http://axo/debug/pprof/profile?seconds=1", ""); status != http.StatusOK || !strings.HasPrefix(answer, "\x1f\x8b") {
		t.Errorf("a profile: %d, %d bytes", status, len(answer))
	}
	if status, _, answer := ask(t, admin, "GET", "http://axo/ready", ""); status != http.StatusOK {
		t.Errorf("ready: %d %s", status, answer)
	}
	if status, _, _ := ask(t, admin, "POST", "http://axo/metrics", ""); status != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", status)
	}
	// Nor does it answer what is for callers.
	if status, _, _ := ask(t, admin, "GET", "http://axo/v1/sandboxes", "", "X-API-Key", key); status != http.StatusNotFound {
		t.Errorf("the interface on the admin socket: %d", status)
	}
}

func TestMetricsStayOnThisHost(t *testing.T) {
	for address, remote := range map[string]bool{"0.0.0.0:0": false, ":0": false, "10.0.0.1:1": false, "nonsense": true} {
		if err := server.CheckMetricsListen(address, remote); !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("%s: %v", address, err)
		}
	}
	for address, remote := range map[string]bool{"": false, "127.0.0.1:1": false, "[::1]:1": false, "localhost:1": false, "0.0.0.0:1": true} {
		if err := server.CheckMetricsListen(address, remote); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
	var log safeBuffer
	dir := t.TempDir()
	run(t, dir, mem.NewHost(), func(c *server.Config) {
		c.MetricsListen, c.Logger = "127.0.0.1:0", slog.New(slog.NewTextHandler(&log, nil))
	})
	_, rest, ok := strings.Cut(log.String(), "address=")
	address, _, _ := strings.Cut(rest, "\n")
	if !ok {
		t.Fatal(log.String())
	}
	if status, _, text := ask(t, "", "GET", address, ""); status != http.StatusOK || !strings.Contains(text, "axo_build_info") {
		t.Errorf("%d %s", status, text)
	}
	// A page whose name leads here reads nothing; and there is nothing but metrics.
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), "GET", address, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = "evil.example"
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("by another name: %s", resp.Status)
	}
	for _, p := range []string{"/debug/pprof/", "/ready", "/v1/health"} {
		if status, _, _ := ask(t, "", "GET", "http://"+u.Host+p, ""); status != http.StatusNotFound {
			t.Errorf("%s: %d", p, status)
		}
	}
}

// Each answer has an id, the client's own if it has a decent one.
func TestRequestsHaveIDs(t *testing.T) {
	dir := t.TempDir()
	d := run(t, dir, mem.NewHost(), func(c *server.Config) { c.E2B = "127.0.0.1:0" })
	seen := []string{}
	for _, target := range []string{d.addresses[1] + "/v1/health", d.addresses[1] + "/v1/sandboxes", d.addresses[1] + "/mcp", d.addresses[2] + "/health", d.addresses[2] + "/sandboxes"} {
		_, h, _ := ask(t, "", "GET", target, "")
		id := h.Get("X-Request-Id")
		if len(id) != 16 || slices.Contains(seen, id) {
			t.Errorf("%s: id %q", target, id)
		}
		seen = append(seen, id)
		if _, h, _ := ask(t, "", "GET", target, "", "X-Request-Id", "Mine-1.2_3"); h.Get("X-Request-Id") != "Mine-1.2_3" {
			t.Errorf("%s: %q", target, h.Get("X-Request-Id"))
		}
		for _, bad := range []string{strings.Repeat("x", 65), "a b", "a\"b", "<script>"} {
			if _, h, _ := ask(t, "", "GET", target, "", "X-Request-Id", bad); h.Get("X-Request-Id") == bad || len(h.Get("X-Request-Id")) != 16 {
				t.Errorf("%s: %q was taken", target, bad)
			}
		}
	}
}

// Who has a problem has the id by which the log tells of it.
func TestProblemsLeadToTheLog(t *testing.T) {
	var text safeBuffer
	log, err := telemetry.NewLog(&text, telemetry.LogConfig{Format: "json", Level: slog.LevelDebug})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	d := runWith(t, dir, mem.NewHost(), telemetry.Config{Logger: log.Logger, Log: log}, func(c *server.Config) { c.Logger, c.E2B = log.Logger, "127.0.0.1:0" })
	key := secret(t, dir)
	for target, handler := range map[string]string{
		d.addresses[1] + "/v1/sandboxes/nosuch":              "GET /v1/sandboxes/{id}",       // by huma
		d.addresses[1] + "/v1/sandboxes/nosuch/files?path=/": "GET /v1/sandboxes/{id}/files", // and not
		d.addresses[2] + "/sandboxes/nosuch":                 "GET /sandboxes/{id}",
	} {
		_, h, body := ask(t, "", "GET", target, "", "X-API-Key", key)
		var problem struct {
			RequestID string `json:"request_id"`
		}
		if err := json.Unmarshal([]byte(body), &problem); err != nil {
			t.Fatal(err)
		}
		id := h.Get("X-Request-Id")
		if id == "" || problem.RequestID != id && !strings.HasPrefix(target, d.addresses[2]) {
			t.Errorf("%s: the answer's id is %q, the problem's %q", target, id, problem.RequestID)
		}
		found := false
		for i := 0; i < 600 && !found; i++ { // it is told just after the answer
			for _, line := range strings.Split(text.String(), "\n") {
				var l map[string]any
				if json.Unmarshal([]byte(line), &l) == nil && l["request"] == id {
					found = l["tenant"] == "default" && l["sandbox"] == "nosuch" && l["route"] == handler && l["status"] == 404.0 && strings.Contains(fmt.Sprint(l["error"]), "not found")
				}
			}
			if !found {
				time.Sleep(50 * time.Millisecond)
			}
		}
		if !found {
			t.Errorf("%s: nothing in the log of %s:\n%s", target, id, text.String())
		}
	}
}

// What is done for a request is in its client's trace, by whatever interface it came.
func TestTracesGoOnFromClients(t *testing.T) {
	col := collector.Start(t)
	traces, err := telemetry.OpenTraces(t.Context(), telemetry.TraceConfig{Endpoint: col.URL, Sample: 0, Every: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	d := runWith(t, dir, mem.NewHost(), telemetry.Config{Traces: traces}, func(c *server.Config) { c.E2B = "127.0.0.1:0" })
	t.Cleanup(func() { // before the daemon's own, so that no span comes after
		if err := d.stop(); err != nil {
			t.Error(err)
		}
		if err := traces.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	key := secret(t, dir)
	n := 0
	in := func(span, method, target, body string, header ...string) {
		t.Helper()
		n++
		trace := fmt.Sprintf("%032x", n)
		header = append(header, "X-API-Key", key, "Content-Type", "application/json", "Traceparent", "00-"+trace+"-00f067aa0ba902b7-01")
		if status, _, answer := ask(t, "", method, target, body, header...); status >= 300 {
			t.Fatalf("%s: %d %s", target, status, answer)
		}
		for range 600 {
			for _, s := range col.Named(span) {
				if fmt.Sprintf("%x", s.TraceId) == trace {
					return
				}
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Errorf("%s: no span %q in its trace", target, span)
	}
	const say = `"spec":{"requirement":"Arbitrary"},"process":{"args":["say"]}`
	mcp := []string{"Authorization", "Bearer " + key, "Accept", "application/json, text/event-stream"}
	in("run", "POST", d.addresses[1]+"/v1/runs", "{"+say+"}")
	in("run", "POST", d.addresses[1]+"/v1/runs", "{"+say+`,"async":true}`)
	in("run", "POST", d.addresses[1]+"/v1/runs", "{"+say+"}", "Accept", "text/event-stream")
	in("sandbox create", "POST", d.addresses[1]+"/v1/sandboxes", `{"id":"box","spec":{"requirement":"Arbitrary"}}`)
	in("sandbox program", "POST", d.addresses[1]+"/v1/sandboxes/box/execs", `{"process":{"args":["say"]}}`)
	in("sandbox create", "POST", d.addresses[1]+"/mcp", `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"create_sandbox","arguments":{}}}`, mcp...)
	in("e2b GET /v2/sandboxes", "GET", d.addresses[2]+"/v2/sandboxes", "")
	// Its client wants no trace, and there is none by the daemon's own sampling.
	if status, _, answer := ask(t, "", "GET", d.addresses[1]+"/v1/tiers", "", "X-API-Key", key); status != http.StatusOK {
		t.Fatal(status, answer)
	}
	if list := col.Named("rest GET /v1/tiers"); len(list) != 0 {
		t.Errorf("%d spans of a request that is not sampled", len(list))
	}
}
