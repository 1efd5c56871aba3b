package telemetry

import (
	"cmp"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// buckets are those of all durations, in seconds: from a warm sandbox that is claimed
// to a program that runs for minutes.
var buckets = []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30, 60, 120, 300, 600}

// metrics are all of them. The names and labels stand here, once; docs/OPERATIONS.md
// has them from here.
type metrics struct {
	registry *prometheus.Registry
	families []family

	runs            *prometheus.CounterVec
	runsRunning     prometheus.Gauge
	runDuration     *prometheus.HistogramVec
	step            *prometheus.HistogramVec
	programs        *prometheus.CounterVec
	limits          *prometheus.CounterVec
	operation       *prometheus.HistogramVec
	operationErrors *prometheus.CounterVec
	ended           *prometheus.CounterVec
	admitted        *prometheus.CounterVec
	refused         *prometheus.CounterVec
	egress          *prometheus.CounterVec
	sweeps          prometheus.Counter
	swept           prometheus.Counter
	sweepErrors     prometheus.Counter
	requests        *prometheus.CounterVec
	requestDuration *prometheus.HistogramVec
	requestsRunning *prometheus.GaugeVec
	streams         *prometheus.GaugeVec
	panics          prometheus.Counter
	mcp             *prometheus.CounterVec

	outputOut, outputErr, fileRead, fileWritten prometheus.Counter

	state   *state
	tenants tenants
}

// family is one in the documents.
type family struct {
	name, kind, help string
	labels           []string
}

func newMetrics(version string, tenantBound int) *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}
	m.runs = m.counters("axo_runs_total", "Runs that have ended, by what ended the program, or the class of the error; tier and engine are empty where none was chosen", "tier", "engine", "outcome")
	m.runsRunning = m.gauge("axo_runs_running", "Runs under way, those that wait too")
	m.runDuration = m.histograms("axo_run_duration_seconds", "Runs, from the request on", "tier")
	m.step = m.histograms("axo_step_duration_seconds", "Steps of runs, and of the making of sandboxes: wait, admit, decide, create or claim (one that stood ready), copy_in, start, exec, drain (the last of the output), copy_out, delete", "step", "tier")
	m.programs = m.counters("axo_programs_total", "Programs of sandboxes that stay which have ended, by what ended them", "tier", "engine", "outcome")
	m.limits = m.counters("axo_limits_hit_total", "Programs that ran into a limit, also where that did not end them", "limit")
	m.operation = m.histograms("axo_sandbox_operation_duration_seconds", "What is done with sandboxes that stay: create, restore, fork, snapshot, pause, resume, start (a program), delete", "operation", "tier")
	m.operationErrors = m.counters("axo_sandbox_operation_errors_total", "Those of them that failed, by the class of the error", "operation", "class")
	m.ended = m.counters("axo_sandboxes_ended_total", "Sandboxes that have ended, by why: deleted by the caller, idle, end of life, ...", "reason")
	output := m.counters("axo_output_bytes_total", "What programs that have ended wrote", "stream")
	m.outputOut, m.outputErr = output.WithLabelValues("stdout"), output.WithLabelValues("stderr")
	files := m.counters("axo_file_bytes_total", "Content of files that went into sandboxes, and out", "direction")
	m.fileRead, m.fileWritten = files.WithLabelValues("out"), files.WithLabelValues("in")
	m.admitted = m.counters("axo_admitted_total", "Requests whose turn came", "queue")
	m.refused = m.counters("axo_refused_total", "Sandboxes and runs that were not begun for now: rate or quota of the tenant, host, full queue, deadline of the wait, canceled by the caller", "reason")
	m.egress = m.counters("axo_egress_decisions_total", "Connections that programs with a network asked for", "decision")
	m.sweeps = m.counter("axo_sweeps_total", "Looks for what killed processes left")
	m.swept = m.counter("axo_swept_total", "What was found so and removed: processes, control groups, files")
	m.sweepErrors = m.counter("axo_sweep_errors_total", "What was found so and could not be removed")
	m.requests = m.counters("axo_http_requests_total", "Requests that were answered, by the pattern of their path", "interface", "route", "status")
	m.requestDuration = m.histograms("axo_http_request_duration_seconds", "Requests, until the end of the answer; streams are not among them", "interface")
	m.requestsRunning = m.gauges("axo_http_requests_running", "Requests under way", "interface")
	m.streams = m.gauges("axo_streams_open", "Answers that go on: events, frames, Connect, tunnels to ports", "interface")
	m.panics = m.counter("axo_panics_total", "Requests that ran into a fault of the daemon's")
	m.mcp = m.counters("axo_mcp_requests_total", "Requests of MCP clients; error: a tool failed, or a request had no sense", "method", "tool", "outcome")
	m.state = m.newState()
	m.tenants = m.newTenants(tenantBound)

	info := m.gauges("axo_build_info", "Always 1", "version", "go_version")
	info.WithLabelValues(cmp.Or(version, "unknown"), runtime.Version()).Set(1)
	m.registry.MustRegister(
		collectors.NewGoCollector(collectors.WithGoCollectorMemStatsMetricsDisabled()),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

func (m *metrics) family(kind, name, help string, labels []string) {
	m.families = append(m.families, family{name, kind, help, labels})
}

func (m *metrics) counters(name, help string, labels ...string) *prometheus.CounterVec {
	m.family("counter", name, help, labels)
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	m.registry.MustRegister(c)
	return c
}

func (m *metrics) counter(name, help string) prometheus.Counter {
	return m.counters(name, help).WithLabelValues()
}

func (m *metrics) gauges(name, help string, labels ...string) *prometheus.GaugeVec {
	m.family("gauge", name, help, labels)
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	m.registry.MustRegister(g)
	return g
}

func (m *metrics) gauge(name, help string) prometheus.Gauge {
	return m.gauges(name, help).WithLabelValues()
}

func (m *metrics) histograms(name, help string, labels ...string) *prometheus.HistogramVec {
	m.family("histogram", name, help, labels)
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	m.registry.MustRegister(h)
	return h
}

// Handler serves the metrics.
func (t *Telemetry) Handler() http.Handler {
	return promhttp.HandlerFor(t.metrics.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

// Gatherer has the metrics.
func (t *Telemetry) Gatherer() prometheus.Gatherer { return t.metrics.registry }

// Markdown is the table of docs/OPERATIONS.md.
func Markdown() string {
	m := newMetrics("", 1)
	list := slices.Clone(m.families)
	slices.SortFunc(list, func(a, b family) int { return strings.Compare(a.name, b.name) })
	var b strings.Builder
	b.WriteString("| metric | kind | labels | what |\n|---|---|---|---|\n")
	for _, f := range list {
		labels := ""
		if len(f.labels) > 0 {
			labels = "`" + strings.Join(f.labels, "`, `") + "`"
		}
		b.WriteString("| `" + f.name + "` | " + f.kind + " | " + labels + " | " + f.help + " |\n")
	}
	return b.String()
}

// tenants are series of some tenants.
type tenants struct {
	runs, refused tenantCounter
	names         *tenantNames
}

// newTenants makes those series; none where no tenant is to have any.
func (m *metrics) newTenants(bound int) tenants {
	if bound <= 0 {
		return tenants{}
	}
	n := &tenantNames{bound: bound, known: map[string]bool{}}
	t := tenants{names: n}
	t.runs = tenantCounter{n, m.counters("axo_tenant_runs_total", "Runs that have ended, of the tenants that came first, and of all others", "tenant")}
	t.refused = tenantCounter{n, m.counters("axo_tenant_refused_total", "Sandboxes and runs of theirs that were not begun for now", "tenant")}
	return t
}

// otherTenants is the label of those that have no series of their own. No tenant has
// such a name.
const otherTenants = "(others)"

// tenantNames are the tenants that have series of their own.
type tenantNames struct {
	bound int
	mu    sync.Mutex
	known map[string]bool // guarded by mu
}

func (n *tenantNames) label(tenant string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.known[tenant] {
		if len(n.known) >= n.bound {
			return otherTenants
		}
		n.known[tenant] = true
	}
	return tenant
}

type tenantCounter struct {
	names *tenantNames
	c     *prometheus.CounterVec
}

func (c tenantCounter) inc(tenant string) {
	if c.names != nil {
		c.c.WithLabelValues(c.names.label(tenant)).Inc()
	}
}
