package telemetry

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/pool"
)

// Sources are what a daemon has, whose state is asked for when somebody reads the
// metrics. Each may be nil.
type Sources struct {
	Sessions *session.Manager
	// Queues are those that requests wait in, by name.
	Queues map[string]interface{ Counts() (taken, waiting int) }
	Pools  func() []Pool
	// Audit tells how many entries were written, and how many could not be.
	Audit func() (written, failed int64)
}

// Pool is what one engine has ready.
type Pool struct {
	Engine string
	Tier   isolation.Tier
	Stats  pool.Stats
}

// Watch has the state of a daemon among the metrics from now on.
func (t *Telemetry) Watch(s Sources) { t.metrics.state.sources.Store(&s) }

// state tells the state of the daemon.
type state struct {
	sources atomic.Pointer[Sources]
	m       *metrics
	log     *Log    // nil: none
	traces  *Traces // nil: none

	sandboxes, programs, snapshots, tenants                                              *prometheus.Desc
	places, waiting                                                                      *prometheus.Desc
	poolReady, poolMaking, poolClaims, poolMisses, poolFailures, poolSpoiled, poolRefill *prometheus.Desc
	linesDropped, spansSent, spansDropped, spansFailed, spansWaiting                     *prometheus.Desc
	auditWritten, auditFailed                                                            *prometheus.Desc
}

func (m *metrics) newState() *state {
	desc := func(kind, name, help string, labels ...string) *prometheus.Desc {
		m.family(kind, name, help, labels)
		return prometheus.NewDesc(name, help, labels, nil)
	}
	s := &state{
		m:         m,
		sandboxes: desc("gauge", "axo_sandboxes", "Sandboxes that stay, by status: creating, running, paused, deleting, lost, unknown", "tier", "engine", "status"),
		programs:  desc("gauge", "axo_programs_running", "Programs that run in them", "tier"),
		snapshots: desc("gauge", "axo_snapshots", "Snapshots of sandboxes"),
		tenants:   desc("gauge", "axo_tenant_sandboxes", "Sandboxes of the tenants that came first, and of all others", "tenant"),
		places:    desc("gauge", "axo_queue_taken", "Places that are taken: sandboxes that are being made (starts), runs under way; bytes, where memory is bounded (memory)", "queue"),
		waiting:   desc("gauge", "axo_queue_waiting", "Requests that wait for one", "queue"),

		poolReady:    desc("gauge", "axo_pool_ready", "Sandboxes that stand ready", "tier", "engine"),
		poolMaking:   desc("gauge", "axo_pool_making", "Sandboxes that are being made to stand ready", "tier", "engine"),
		poolClaims:   desc("counter", "axo_pool_claims_total", "Sandboxes that stood ready when somebody asked for one", "tier", "engine"),
		poolMisses:   desc("counter", "axo_pool_misses_total", "Sandboxes that were made while the caller waited", "tier", "engine"),
		poolFailures: desc("counter", "axo_pool_refill_failures_total", "Sandboxes that were to stand ready and could not be made", "tier", "engine"),
		poolSpoiled:  desc("counter", "axo_pool_spoiled_total", "Sandboxes that ended while they stood ready", "tier", "engine"),
		poolRefill:   desc("summary", "axo_pool_refill_duration_seconds", "The making of sandboxes that were to stand ready; without quantiles", "tier", "engine"),

		linesDropped: desc("counter", "axo_log_lines_dropped_total", "Lines of the log that were left out, since their tenant had too many"),
		spansSent:    desc("counter", "axo_trace_spans_sent_total", "Spans that the collector took; this one and the next are there where traces are sent"),
		spansDropped: desc("counter", "axo_trace_spans_dropped_total", "Spans for which there was no room, since the collector is slow"),
		spansFailed:  desc("counter", "axo_trace_spans_failed_total", "Spans that could not be sent"),
		spansWaiting: desc("gauge", "axo_trace_spans_waiting", "Spans that wait to be sent"),

		auditWritten: desc("counter", "axo_audit_records_total", "Entries of the audit log that were written"),
		auditFailed:  desc("counter", "axo_audit_failures_total", "Entries that could not be written"),
	}
	m.registry.MustRegister(s)
	return s
}

// Describe implements prometheus.Collector. It tells nothing beforehand: what a daemon
// has not it has no series of.
func (s *state) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (s *state) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	counter := func(d *prometheus.Desc, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	counter(s.linesDropped, s.log.Dropped())
	if s.traces != nil {
		q := s.traces.q
		counter(s.spansSent, q.sent.Load())
		counter(s.spansDropped, q.dropped.Load())
		counter(s.spansFailed, q.failed.Load())
		gauge(s.spansWaiting, int(q.waiting.Load()))
	}
	src := s.sources.Load()
	if src == nil {
		return
	}
	if src.Sessions != nil {
		s.census(src.Sessions.Census(), gauge)
	}
	for name, q := range src.Queues {
		taken, waiting := q.Counts()
		gauge(s.places, taken, name)
		gauge(s.waiting, waiting, name)
	}
	if src.Pools != nil {
		for _, p := range src.Pools() {
			tier, st := p.Tier.String(), p.Stats
			gauge(s.poolReady, st.Idle, tier, p.Engine)
			gauge(s.poolMaking, st.Making, tier, p.Engine)
			counter(s.poolClaims, st.Hits, tier, p.Engine)
			counter(s.poolMisses, st.Misses, tier, p.Engine)
			counter(s.poolFailures, st.Failures, tier, p.Engine)
			counter(s.poolSpoiled, st.Spoiled, tier, p.Engine)
			ch <- prometheus.MustNewConstSummary(s.poolRefill, uint64(st.Made), st.MakeTime.Seconds(), nil, tier, p.Engine)
		}
	}
	if src.Audit != nil {
		written, failed := src.Audit()
		counter(s.auditWritten, written)
		counter(s.auditFailed, failed)
	}
}

func (s *state) census(c session.Census, gauge func(*prometheus.Desc, int, ...string)) {
	tier := func(k session.Kind) string {
		if k.Engine == "" {
			return ""
		}
		return k.Tier.String()
	}
	for k, n := range c.Sessions {
		gauge(s.sandboxes, n, tier(k), k.Engine, string(k.Status))
	}
	programs := map[string]int{}
	for k, n := range c.Programs {
		programs[tier(k)] += n
	}
	for t, n := range programs {
		gauge(s.programs, n, t)
	}
	gauge(s.snapshots, c.Snapshots)
	if names := s.m.tenants.names; names != nil {
		of := map[string]int{}
		for t, n := range c.Tenants {
			of[names.label(t)] += n
		}
		for t, n := range of {
			gauge(s.tenants, n, t)
		}
	}
}
