package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// world is what a test's proxy can reach: names, and at every address the one server.
type world struct {
	t     *testing.T
	proxy *Proxy
	at    string // of the proxy
	names map[string][]string

	mu      sync.Mutex
	dialed  []string
	decided []Decision
	asked   []string // names that were looked up
}

// outside is the server that every dial leads to.
func newWorld(t *testing.T, outside string, names map[string][]string, change func(*Config), rules ...string) *world {
	t.Helper()
	w := &world{t: t, names: names}
	all, err := ParseRules(rules)
	if err != nil {
		t.Fatal(err)
	}
	c := Config{
		Rules: all, Own: func(a netip.Addr) bool { return a == netip.MustParseAddr("9.9.9.9") },
		Resolve: func(_ context.Context, name string) (out []netip.Addr, err error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.asked = append(w.asked, name)
			list, ok := w.names[name]
			if !ok {
				return nil, errors.New("no such host")
			}
			for _, a := range list {
				out = append(out, netip.MustParseAddr(a))
			}
			return out, nil
		},
		Dial: func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.dialed = append(w.dialed, to.String())
			if len(w.decided) == 0 {
				t.Error("connected before the decision was told")
			}
			return new(net.Dialer).DialContext(ctx, "tcp", outside)
		},
		OnDecision: func(d Decision) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.decided = append(w.decided, d)
		},
	}
	if change != nil {
		change(&c)
	}
	w.proxy = New(c)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.at = l.Addr().String()
	go w.proxy.Serve(l)
	t.Cleanup(w.proxy.Close)
	return w
}

// say sends bytes to the proxy, and returns the answer's status and the connection.
func (w *world) say(text string) (*http.Response, net.Conn, *bufio.Reader) {
	w.t.Helper()
	c, err := net.Dial("tcp", w.at)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		w.t.Fatal(err)
	}
	buf := bufio.NewReader(c)
	method, _, _ := strings.Cut(text, " ")
	resp, err := http.ReadResponse(buf, &http.Request{Method: method})
	if err != nil {
		w.t.Fatalf("%q: %v", text, err)
	}
	return resp, c, buf
}

func echoServer(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	return l.Addr().String()
}

// TestDecisions: what is asked for, and where the connection goes, if it does.
func TestDecisions(t *testing.T) {
	names := map[string][]string{
		"good.test": {"8.8.8.8"}, "sub.good.test": {"8.8.4.4"}, "evil.test": {"8.8.8.8"}, "inside.test": {"10.0.0.1"}, "mixed.test": {"127.0.0.1", "8.8.8.8"},
		"mapped.test": {"::ffff:127.0.0.1"}, "meta.test": {"169.254.169.254"}, "own.test": {"9.9.9.9"}, "db.test": {"10.1.2.3"}, "none.test": {},
	}
	rules := []string{
		"good.test:7", "*.good.test:7", "inside.test:7", "mixed.test:7", "mapped.test:7", "meta.test:7", "own.test:7", "db.test:7", "10.1.2.3:7", "gone.test:7", "none.test:7",
	}
	for _, c := range []struct {
		target string
		status int
		to     string // where it is dialed
	}{
		{"good.test:7", 200, "8.8.8.8:7"},
		{"GOOD.test.:7", 200, "8.8.8.8:7"},
		{"sub.good.test:7", 200, "8.8.4.4:7"},
		{"good.test:8", 403, ""},
		{"evil.test:7", 403, ""},
		{"notgood.test:7", 403, ""},
		{"inside.test:7", 403, ""},
		{"mixed.test:7", 200, "8.8.8.8:7"},
		{"mapped.test:7", 403, ""},
		{"meta.test:7", 403, ""},
		{"own.test:7", 403, ""},
		{"db.test:7", 200, "10.1.2.3:7"},
		{"10.1.2.3:7", 200, "10.1.2.3:7"},
		{"10.1.2.4:7", 403, ""},
		{"8.8.8.8:7", 403, ""},
		{"[::1]:7", 403, ""},
		{"[::ffff:10.1.2.3]:7", 403, ""},
		{"[fe80::1%25lo]:7", 403, ""},
		{"0xa010203:7", 403, ""},
		{"167838211:7", 403, ""},
		{"10.66051:7", 403, ""},
		{"gone.test:7", 502, ""},
		{"none.test:7", 403, ""},
		{"good.test", 400, ""},
		{"good.test:0", 400, ""},
		{"good.test:x", 400, ""},
		{":7", 400, ""},
		{"good.test:7@evil.test:7", 400, ""},
	} {
		w := newWorld(t, echoServer(t), names, nil, rules...)
		// The Host header is no part of it.
		resp, conn, buf := w.say("CONNECT " + c.target + " HTTP/1.1\r\nHost: good.test:7\r\n\r\n")
		if resp.StatusCode != c.status {
			b, _ := io.ReadAll(resp.Body)
			t.Errorf("%s: %s %s", c.target, resp.Status, b)
		}
		if c.status == 200 {
			fmt.Fprintln(conn, "hello")
			if line, err := buf.ReadString('\n'); err != nil || line != "hello\n" {
				t.Errorf("%s: %q, %v", c.target, line, err)
			}
			conn.Close()
		}
		w.mu.Lock()
		if got := strings.Join(w.dialed, " "); got != c.to {
			t.Errorf("%s: dialed %q, want %q", c.target, got, c.to)
		}
		if c.status != 400 && (len(w.decided) != 1 || w.decided[0].Allowed != (c.status == 200) || w.decided[0].Allowed != (w.decided[0].Reason == "")) {
			t.Errorf("%s: %+v", c.target, w.decided)
		}
		for _, name := range w.asked {
			if c.status == 403 && strings.HasPrefix(name, "evil") {
				t.Errorf("%s: %s was looked up", c.target, name)
			}
		}
		w.mu.Unlock()
	}
}

// TestDenied: what is denied is not reached by its address, nor by a name that is allowed.
func TestDenied(t *testing.T) {
	names := map[string][]string{"one.test": {"8.8.8.8"}, "both.test": {"8.8.8.8", "8.8.4.4"}, "other.test": {"8.8.4.4"}}
	deny, err := ParseRules([]string{"8.8.8.0/24:*", "10.0.0.1:7"})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, echoServer(t), names, func(c *Config) { c.Deny = deny }, "*:7", "8.8.8.8:7", "10.0.0.0/8:*")
	for _, c := range []struct {
		target string
		status int
	}{{"one.test:7", 403}, {"both.test:7", 200}, {"other.test:7", 200}, {"8.8.8.8:7", 403}, {"10.0.0.1:7", 403}, {"10.0.0.1:8", 200}, {"10.0.0.2:7", 200}} {
		resp, conn, _ := w.say("CONNECT " + c.target + " HTTP/1.1\r\n\r\n")
		if resp.StatusCode != c.status {
			t.Errorf("%s: %s", c.target, resp.Status)
		}
		conn.Close()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if got := strings.Join(w.dialed, " "); strings.Contains(got, "8.8.8.8") {
		t.Errorf("dialed %s", got)
	}
}

// TestSmuggling: nothing gets a second destination into a request.
func TestSmuggling(t *testing.T) {
	var mu sync.Mutex
	var hosts []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		hosts = append(hosts, r.Host)
		for _, h := range []string{"Proxy-Authorization", "Proxy-Connection", "X-Forwarded-For"} {
			if v := r.Header.Get(h); v != "" {
				t.Errorf("%s: %s is passed on", h, v)
			}
		}
		fmt.Fprintf(w, "%s %s", r.Method, r.RequestURI)
	}))
	defer s.Close()
	w := newWorld(t, s.Listener.Addr().String(), map[string][]string{"good.test": {"8.8.8.8"}, "evil.test": {"8.8.8.8"}}, nil, "good.test")
	for _, c := range []struct {
		request string
		status  int
	}{
		{"GET http://good.test/a?b HTTP/1.1\r\nHost: evil.test\r\nProxy-Authorization: x\r\nProxy-Connection: close\r\n\r\n", 200},
		{"GET http://evil.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n", 403},
		{"GET http://good.test@evil.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n", 400},
		{"GET http://evil.test#good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n", 400},
		{"GET http://evil.test\\.good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: good.test\r\n\r\n", 400},
		{"GET https://good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n", 400},
		{"GET ftp://good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n", 400},
		{"GET http://good.test:22/ HTTP/1.1\r\nHost: good.test\r\n\r\n", 403},
		{"GET http:///evil HTTP/1.1\r\nHost: good.test\r\n\r\n", 400},
		{"POST http://good.test/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET http://evil.test/ HTTP/1.1\r\nHost: e\r\n\r\n", 200},
		{"CONNECT good.test:80 HTTP/1.1\r\nHost: good.test\r\nContent-Length: 3\r\n\r\nabc", 400},
		{"CONNECT good.test:80 HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"CONNECT http://good.test:80/ HTTP/1.1\r\nHost: good.test\r\n\r\n", 400},
		{"CONNECT good.test:80 evil.test:80 HTTP/1.1\r\nHost: good.test\r\n\r\n", 400},
		{"CONNECT /good.test:80 HTTP/1.1\r\nHost: good.test\r\n\r\n", 403},
	} {
		resp, conn, _ := w.say(c.request)
		b, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != c.status {
			t.Errorf("%q: %s %s", c.request, resp.Status, b)
		}
		conn.Close()
	}
	mu.Lock()
	defer mu.Unlock()
	for _, h := range hosts {
		if h != "good.test" {
			t.Errorf("the server was asked for the host %q", h)
		}
	}
	if len(hosts) != 2 {
		t.Errorf("%d requests came, want 2", len(hosts))
	}
}

// TestServerName: on a tunnel TLS is for the host of the tunnel, or ends before a byte
// of it has gone out.
func TestServerName(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "secret") }))
	defer s.Close()
	for _, c := range []struct {
		target, name string
		ok           bool
	}{
		{"good.test:443", "good.test", true}, {"good.test:443", "GOOD.test", true}, {"good.test:443", "evil.test", false}, {"good.test:443", "", false},
		{"good.test:8443", "good.test", true}, {"good.test:8443", "evil.test", false},
		{"8.8.8.8:443", "", true}, {"8.8.8.8:443", "evil.test", false},
	} {
		w := newWorld(t, s.Listener.Addr().String(), map[string][]string{"good.test": {"8.8.8.8"}}, nil, "good.test:*", "8.8.8.8")
		resp, conn, _ := w.say("CONNECT " + c.target + " HTTP/1.1\r\n\r\n")
		if resp.StatusCode != 200 {
			t.Fatalf("%s: %s", c.target, resp.Status)
		}
		tc := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, ServerName: c.name}) //nolint:gosec // the server is the test's
		err := tc.Handshake()
		if (err == nil) != c.ok {
			t.Errorf("%s for %q: %v", c.target, c.name, err)
		}
		conn.Close()
		r := w.proxy.Report()
		w.mu.Lock()
		told := w.decided[len(w.decided)-1]
		w.mu.Unlock()
		if !c.ok && (r.Sent != 0 || r.Allowed != 0 || r.Denied != 1 || told.Allowed || !strings.Contains(r.Connections[0].Reason, "ended")) {
			t.Errorf("%s for %q: %d bytes went out; %+v", c.target, c.name, r.Sent, r.Connections)
		}
	}
	w := newWorld(t, s.Listener.Addr().String(), map[string][]string{"good.test": {"8.8.8.8"}}, nil, "good.test")
	_, conn, buf := w.say("CONNECT good.test:443 HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n")
	if b, err := io.ReadAll(buf); err == nil && len(b) > 0 {
		t.Errorf("no TLS on port 443: %q", b)
	}
	conn.Close()
	if r := w.proxy.Report(); r.Sent != 0 {
		t.Errorf("%d bytes went out", r.Sent)
	}
}

// TestBounds: bytes, connections and what is kept.
func TestBounds(t *testing.T) {
	w := newWorld(t, echoServer(t), map[string][]string{"good.test": {"8.8.8.8"}}, func(c *Config) { c.MaxBytes, c.MaxConns = 100_000, 2 }, "good.test:7")
	connect := "CONNECT good.test:7 HTTP/1.1\r\n\r\n"
	_, a, abuf := w.say(connect)
	_, b, _ := w.say(connect)
	// A third has to wait for one of the two.
	third := make(chan int)
	go func() {
		c, err := net.Dial("tcp", w.at)
		if err != nil {
			t.Error(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = io.WriteString(c, connect)
		resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: "CONNECT"})
		if err != nil {
			t.Error(err)
			third <- 0
			return
		}
		third <- resp.StatusCode
	}()
	select {
	case <-third:
		t.Error("a third connection is served beside two")
	case <-time.After(50 * time.Millisecond):
	}
	b.Close()
	if st := <-third; st != 200 {
		t.Errorf("the third: %d", st)
	}
	go func() { _, _ = a.Write(make([]byte, 1<<20)) }()
	n, _ := io.Copy(io.Discard, abuf)
	if n > 100_000 {
		t.Errorf("%d bytes came back", n)
	}
	a.Close()
	if resp, _, _ := w.say(connect); resp.StatusCode != 403 {
		t.Errorf("after the last byte: %s", resp.Status)
	}
	for range maxKept {
		resp, c, _ := w.say("CONNECT evil.test:7 HTTP/1.1\r\n\r\n")
		resp.Body.Close()
		c.Close()
	}
	r := w.proxy.Report()
	if len(r.Connections) != maxKept || r.Dropped != 4 || r.Allowed != 3 || r.Denied != maxKept+1 || r.Sent+r.Received > 100_000+64<<10 {
		t.Errorf("%d kept, %+v", len(r.Connections), Report{r.Allowed, r.Denied, r.Sent, r.Received, nil, r.Dropped})
	}
}

// TestPace: who asks without end is held up, and nobody is told of more.
func TestPace(t *testing.T) {
	w := newWorld(t, echoServer(t), nil, func(c *Config) { c.Burst, c.Every = 3, time.Hour }, "good.test:7")
	for range 3 {
		if resp, _, _ := w.say("CONNECT evil.test:7 HTTP/1.1\r\n\r\n"); resp.StatusCode != 403 {
			t.Errorf("%s", resp.Status)
		}
	}
	c, err := net.Dial("tcp", w.at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "CONNECT evil.test:7 HTTP/1.1\r\n\r\n")
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("the fourth has %d bytes of an answer", n)
	}
	w.proxy.Close() // ends who waits
	if r := w.proxy.Report(); r.Denied != 3 {
		t.Errorf("%+v", r)
	}
}

// TestClose ends what is open.
func TestClose(t *testing.T) {
	w := newWorld(t, echoServer(t), map[string][]string{"good.test": {"8.8.8.8"}}, nil, "good.test:7")
	_, _, buf := w.say("CONNECT good.test:7 HTTP/1.1\r\n\r\n")
	w.proxy.Close()
	if _, err := io.ReadAll(buf); errors.Is(err, context.DeadlineExceeded) {
		t.Error("a tunnel outlives its proxy")
	}
	if c, err := net.Dial("tcp", w.at); err == nil {
		c.Close()
		t.Error("it still listens")
	}
}

// TestOrdinaryClient is Go's own.
func TestOrdinaryClient(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s", r.Method, r.RequestURI, b)
	}))
	defer s.Close()
	w := newWorld(t, s.Listener.Addr().String(), map[string][]string{"good.test": {"8.8.8.8"}}, nil, "good.test")
	c := http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: w.at})}}
	defer c.CloseIdleConnections()
	for i := range 3 {
		resp, err := c.Post("http://good.test/p?q="+strconv.Itoa(i), "text/plain", strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if want := fmt.Sprintf("POST /p?q=%d body", i); string(b) != want {
			t.Errorf("%s", b)
		}
	}
	if r := w.proxy.Report(); r.Allowed != 3 || r.Received == 0 || r.Connections[0].Address != "8.8.8.8:80" {
		t.Errorf("%+v", r)
	}
}
