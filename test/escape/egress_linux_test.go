package escape

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/engine"
)

// server is a server of the host's loopback interface.
func server(t *testing.T, word string) (port int) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, word) }))
	t.Cleanup(s.Close)
	return s.Listener.Addr().(*net.TCPAddr).Port
}

// TestEgress tries to get from a sandbox that may reach one port of one name to
// anything else. The control is the same where everything may be reached, and, for
// what goes past the proxy, outside.
func TestEgress(t *testing.T) {
	l := newLab(t)
	l.inside.Allowed, l.inside.Forbidden = server(t, "the allowed server"), server(t, "the forbidden server")
	l.outside.Allowed, l.outside.Forbidden = l.inside.Allowed, l.inside.Forbidden
	one := []string{"localhost:" + strconv.Itoa(l.inside.Allowed), "127.0.0.0/8:" + strconv.Itoa(l.inside.Allowed)}
	must := []string{"the allowed name", "the allowed name by a URL"}

	// What can be reached by the proxy at all, by some engine.
	open := map[string]finding{}
	for _, d := range everywhere(t) {
		t.Run(d.Name(), func(t *testing.T) {
			run := func(allow []string) (map[string]finding, engine.EgressReport) {
				sb, report := l.connected(t, d, allow)
				out, exit, err := execute(t, sb, l.process(t, "egress", nil))
				if err != nil || exit.Code != 0 {
					t.Fatalf("%v %v %s", err, exit, out)
				}
				return parse(out), report()
			}
			if len(open) == 0 {
				open, _ = run(engine.AnyHost())
				for thing, f := range l.control(t, "egress") {
					if _, ok := open[thing]; !ok || f.verdict == "ESCAPED" {
						open[thing] = f
					}
				}
				for _, thing := range []string{"another port", "its address", "another port by a URL", "its address by a URL", "a name in capitals", "tcp to 127.0.0.1 past the proxy"} {
					if open[thing].verdict != "ESCAPED" {
						t.Errorf("NOT PROVED: %s does not work where everything is allowed: %s", thing, open[thing].why)
					}
				}
			}
			inside, report := run(one)
			for _, thing := range must {
				if inside[thing].verdict != "ESCAPED" {
					t.Errorf("%s is not reached: %s", thing, inside[thing].why)
				}
				delete(inside, thing)
			}
			rest := map[string]finding{}
			for thing, f := range open {
				if !slices.Contains(must, thing) {
					rest[thing] = f
				}
			}
			judge(t, d.Name(), inside, rest)
			if report.Allowed == 0 || report.Denied == 0 {
				t.Errorf("the report has %d allowed and %d denied", report.Allowed, report.Denied)
			}
			for _, c := range report.Connections {
				_, port, err := net.SplitHostPort(c.Address)
				if c.Allowed && (err != nil || port != strconv.Itoa(l.inside.Allowed)) {
					t.Errorf("allowed: %+v", c)
				}
			}
			// Without rules there is no proxy.
			bare, _ := l.connected(t, d, nil)
			out, _, err := execute(t, bare, l.process(t, "egress", nil))
			if err != nil {
				t.Fatal(err)
			}
			for thing, f := range parse(out) {
				if f.verdict == "ESCAPED" {
					t.Errorf("without rules: %s: ESCAPED: %s", thing, f.why)
				}
			}
		})
	}
}

// connected makes a sandbox that may reach some hosts.
func (l *lab) connected(t *testing.T, d isolation.Driver, allow []string) (isolation.Sandbox, func() engine.EgressReport) {
	t.Helper()
	f, err := d.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var reg isolation.Registry
	reg.Add(f.Tier, lent{d})
	e, err := engine.New(engine.Config{Registry: reg, ProbeTimeout: time.Minute, Policy: engine.Policy{Egress: engine.AnyHost(), AllowEmulated: true}})
	if err != nil {
		t.Fatal(err)
	}
	spec := l.spec()
	spec.Mounts = slices.DeleteFunc(spec.Mounts, func(m isolation.Mount) bool { return !m.ReadOnly })
	sb, _, err := e.Create(t.Context(), engine.Request{Spec: spec, Egress: engine.Egress{Allow: allow}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sb.Delete(context.Background()); err != nil {
			t.Error(err)
		}
		e.Close()
	})
	return sb, func() engine.EgressReport {
		r, ok := isolation.As[engine.EgressReporter](sb)
		if !ok {
			t.Fatal("no report")
		}
		return r.EgressReport()
	}
}

// lent is a driver that goes on when its engine ends.
type lent struct{ isolation.Driver }

func (lent) Close() error { return nil }
