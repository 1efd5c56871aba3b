package e2b

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/session"
)

// metric is what a sandbox took at a moment, in bytes, and of all its processors in
// percent since the one before.
type metric struct {
	Timestamp     time.Time `json:"timestamp"`
	TimestampUnix int64     `json:"timestampUnix"`
	CPUCount      int       `json:"cpuCount"`
	CPUUsedPct    float64   `json:"cpuUsedPct"`
	MemUsed       int64     `json:"memUsed"`
	MemTotal      int64     `json:"memTotal"`
	MemCache      int64     `json:"memCache"`
	DiskUsed      int64     `json:"diskUsed"`
	DiskTotal     int64     `json:"diskTotal"`
}

// A sandbox is measured from when somebody first asks for what it takes, until nobody
// has for a while: those that nobody looks at cost nothing.
const (
	measureEvery = 5 * time.Second
	measureFor   = 10 * time.Minute
	measureOnce  = 200 * time.Millisecond // over which the first is
	maxMetrics   = int(time.Hour / measureEvery)
)

type meters struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu sync.Mutex
	m  map[string]*meter // by the sandbox's instance; guarded by mu
}

type meter struct {
	sn *session.Session

	turn  sync.Mutex // held by who measures
	cpu   time.Duration
	at    time.Time
	begun bool

	mu    sync.Mutex
	asked time.Time // guarded by mu
	list  []metric  // the oldest first; guarded by mu
}

func (m *meters) close() {
	m.cancel()
	m.wg.Wait()
}

// of returns a sandbox's meter, which goes on measuring by itself.
func (m *meters) of(sn *session.Session) *meter {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.m[sn.Instance()]
	if x == nil {
		x = &meter{sn: sn}
		m.m[sn.Instance()] = x
		m.wg.Go(func() { m.goOn(x) })
	}
	x.mu.Lock()
	x.asked = time.Now()
	x.mu.Unlock()
	return x
}

func (m *meters) goOn(x *meter) {
	defer func() {
		m.mu.Lock()
		delete(m.m, x.sn.Instance())
		m.mu.Unlock()
	}()
	tick := time.NewTicker(measureEvery)
	defer tick.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-tick.C:
		}
		x.mu.Lock()
		asked := x.asked
		x.mu.Unlock()
		status := x.sn.Info().Status
		if time.Since(asked) > measureFor || status != api.StatusRunning && status != api.StatusPaused {
			return
		}
		ctx, cancel := context.WithTimeout(m.ctx, measureEvery)
		_ = x.measure(ctx) // who asks is told
		cancel()
	}
}

// measure adds what the sandbox takes now, unless that is known. Of one that is paused
// there is nothing to add.
func (x *meter) measure(ctx context.Context) error {
	x.turn.Lock()
	defer x.turn.Unlock()
	if x.sn.Info().Status != api.StatusRunning || x.begun && time.Since(x.at) < time.Second {
		return nil
	}
	u, at, err := x.read(ctx)
	if err == nil && !x.begun {
		x.cpu, x.at, x.begun = u.CPU, at, true
		select {
		case <-time.After(measureOnce):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		u, at, err = x.read(ctx)
	}
	if err != nil {
		return err
	}
	used, took := u.CPU-x.cpu, at.Sub(x.at)
	x.cpu, x.at = u.CPU, at
	now := u.Now
	all := float64(took) * float64(max(1, now.CPUs))
	m := metric{
		at.UTC(), at.Unix(), now.CPUs, math.Round(max(0, min(100, 100*float64(used)/all))*100) / 100,
		now.Memory, now.MemoryTotal, now.Cache, now.Disk, now.DiskTotal,
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.list = append(x.list, m); len(x.list) > maxMetrics {
		x.list = slices.Delete(x.list, 0, len(x.list)-maxMetrics)
	}
	return nil
}

func (x *meter) read(ctx context.Context) (isolation.Usage, time.Time, error) {
	u, err := x.sn.Stats(ctx)
	if err == nil && u.Now == nil {
		err = &isolation.UnsupportedError{Feature: "metrics, on the engine " + x.sn.Info().Decision.Engine}
	}
	return u, time.Now(), err
}

func (x *meter) between(start, end time.Time) []metric {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := []metric{}
	for _, m := range x.list {
		if m.Timestamp.Unix() >= start.Unix() && (end.IsZero() || m.Timestamp.Unix() <= end.Unix()) {
			out = append(out, m)
		}
	}
	return out
}

// secondsOf reads a time in seconds since 1970; the zero time: it is not said.
func secondsOf(q url.Values, key string) (time.Time, error) {
	v := q.Get(key)
	if v == "" {
		return time.Time{}, nil
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < 0 {
		return time.Time{}, fmt.Errorf("%s %.40q: want seconds since 1970: %w", key, v, isolation.ErrInvalidArgument)
	}
	return time.Unix(n, 0), nil
}

func (s *Server) metrics(w http.ResponseWriter, r *http.Request, tenant string) error {
	sn, err := s.mine(r, tenant)
	if err != nil {
		return err
	}
	start, err := secondsOf(r.URL.Query(), "start")
	if err != nil {
		return err
	}
	end, err := secondsOf(r.URL.Query(), "end")
	if err != nil {
		return err
	}
	x := s.meters.of(sn)
	if err := x.measure(r.Context()); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, x.between(start, end))
	return nil
}

// metricsOfMany tells the newest of each of some sandboxes. One that is not the caller's
// has none.
func (s *Server) metricsOfMany(w http.ResponseWriter, r *http.Request, tenant string) error {
	var ids []string
	for _, v := range r.URL.Query()["sandbox_ids"] {
		ids = append(ids, strings.Split(v, ",")...)
	}
	if len(ids) == 0 || len(ids) > maxPage {
		return fmt.Errorf("%d sandbox_ids: want 1 to %d: %w", len(ids), maxPage, isolation.ErrInvalidArgument)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var failed error
	out := map[string]metric{}
	for _, id := range ids {
		sn, err := s.config.Sessions.Get(tenant, id)
		if err != nil || sn.Labels()[labelTemplate] == "" {
			continue
		}
		wg.Go(func() {
			x := s.meters.of(sn)
			err := x.measure(r.Context())
			list := x.between(time.Time{}, time.Time{})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				failed = err
			case len(list) > 0:
				out[id] = list[len(list)-1]
			}
		})
	}
	wg.Wait()
	if failed != nil && len(out) == 0 {
		return failed
	}
	writeJSON(w, http.StatusOK, struct {
		Sandboxes map[string]metric `json:"sandboxes"`
	}{out})
	return nil
}
