package egress

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/axocoatl/isolation/internal/duplex"
)

// Config makes a Proxy.
type Config struct {
	Rules []Rule
	// Deny are addresses and networks to which nothing goes, whatever Rules say, also
	// when a name leads there. Rules that are of names mean nothing here.
	Deny []Rule
	// MaxBytes bounds what goes both ways, of all connections together. When it is
	// reached they are ended, and no further ones are made. 0: 1 GiB.
	MaxBytes int64
	// MaxConns bounds the connections that are open; more wait. 0: 64.
	MaxConns int
	// Burst is how many requests are decided at once, and Every the time between
	// further ones, which wait. 0: 500, and 20 ms.
	Burst int
	Every time.Duration
	// OnDecision is called before a connection is opened, or refused; calls come one
	// at a time. nil: nobody is told.
	OnDecision func(Decision)
	// Resolve, Dial and Own are the host's: of a name the addresses, a connection,
	// and whether an address is this host's. nil: those of package net.
	Resolve func(ctx context.Context, name string) ([]netip.Addr, error)
	Dial    func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	Own     func(netip.Addr) bool
	Now     func() time.Time
}

// Decision is what became of a request for a connection.
type Decision struct {
	Time time.Time
	// Method is CONNECT, or that of a request; Host and Port are what it asked for.
	Method, Host string
	Port         uint16
	// Address is where it goes; if it was refused, or is not reached, Reason says why.
	Address string
	Allowed bool
	Reason  string
	// Sent and Received are bytes, as the program inside sees it, by the time of a
	// Report.
	Sent, Received int64
}

// Report is what a proxy did.
type Report struct {
	Allowed, Denied int64
	Sent, Received  int64
	// Connections are the first of them; Dropped is how many there were besides.
	Connections []Decision
	Dropped     int64
}

const (
	// maxKept is how many decisions a report has.
	maxKept = 256
	// maxHost bounds what is kept of what somebody asked for.
	maxHost     = 300
	headTimeout = 30 * time.Second
	idleTimeout = 10 * time.Minute
	dialTimeout = 10 * time.Second
	// helloPatience is how long a program has to begin TLS on port 443.
	helloPatience = 30 * time.Second
	httpsPort     = 443
)

// Proxy is an HTTP proxy (RFC 9110 sections 3.7 and 9.3.6) that knows CONNECT and
// requests for http URLs.
type Proxy struct {
	config Config
	server *http.Server
	ctx    context.Context // ends with it
	cancel context.CancelFunc
	places chan struct{}
	serves sync.WaitGroup

	sent, received atomic.Int64

	pace    pace
	telling sync.Mutex // held while somebody is told of a decision

	mu     sync.Mutex
	report Report          // guarded by mu
	kept   []*kept         // guarded by mu
	conns  map[*meter]bool // guarded by mu
}

// kept is a decision with counters that go on.
type kept struct {
	d              Decision
	sent, received atomic.Int64
}

// New makes a proxy.
func New(c Config) *Proxy {
	if c.MaxBytes == 0 {
		c.MaxBytes = 1 << 30
	}
	if c.MaxConns == 0 {
		c.MaxConns = 64
	}
	if c.Burst == 0 {
		c.Burst = 500
	}
	if c.Every == 0 {
		c.Every = 20 * time.Millisecond
	}
	if c.Resolve == nil {
		c.Resolve = func(ctx context.Context, name string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		}
	}
	if c.Dial == nil {
		d := net.Dialer{Timeout: dialTimeout}
		c.Dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", to.String())
		}
	}
	if c.Own == nil {
		c.Own = ofThisHost
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	p := &Proxy{config: c, places: make(chan struct{}, c.MaxConns), pace: pace{burst: c.Burst, every: c.Every}, conns: map[*meter]bool{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.server = &http.Server{
		Handler: p, ReadHeaderTimeout: headTimeout, IdleTimeout: headTimeout, MaxHeaderBytes: 64 << 10, ErrorLog: discardLog,
		BaseContext: func(net.Listener) context.Context { return p.ctx },
	}
	return p
}

// Serve serves connections of a sandbox until the listener, or the proxy, is closed.
func (p *Proxy) Serve(l net.Listener) {
	p.serves.Add(1)
	defer p.serves.Done()
	_ = p.server.Serve(&bounded{l, p}) // it is closed, or what it is in has gone
	p.end()
}

// Close ends all connections, and waits until Serve has returned.
func (p *Proxy) Close() {
	p.end()
	p.serves.Wait()
}

func (p *Proxy) end() {
	p.cancel()
	_ = p.server.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	for m := range p.conns {
		m.Conn.Close()
	}
}

// bounded is a listener with so many connections at a time.
type bounded struct {
	net.Listener
	p *Proxy
}

func (b *bounded) Accept() (net.Conn, error) {
	select {
	case b.p.places <- struct{}{}:
	case <-b.p.ctx.Done():
		return nil, net.ErrClosed
	}
	c, err := b.Listener.Accept()
	if err != nil {
		<-b.p.places
		return nil, err
	}
	return &placed{Conn: c, leave: sync.OnceFunc(func() { <-b.p.places })}, nil
}

type placed struct {
	net.Conn
	leave func()
}

func (c *placed) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// CloseWrite ends one direction.
func (c *placed) CloseWrite() error { return closeWrite(c.Conn) }

func closeWrite(c net.Conn) error {
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return c.Close()
}

// Report tells what was decided by now.
func (p *Proxy) Report() Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.report
	r.Sent, r.Received = p.sent.Load(), p.received.Load()
	for _, k := range p.kept {
		d := k.d
		d.Sent, d.Received = k.sent.Load(), k.received.Load()
		r.Connections = append(r.Connections, d)
	}
	return r
}

// ServeHTTP implements http.Handler.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	host, port, err := target(r)
	if err != nil {
		p.refuse(w, http.StatusBadRequest, err)
		return
	}
	if p.pace.wait(r.Context()) != nil {
		return // who asked has gone
	}
	k := &kept{d: Decision{Time: p.config.Now(), Method: r.Method, Host: host[:min(len(host), maxHost)], Port: port}}
	var to []netip.Addr
	if p.sent.Load()+p.received.Load() >= p.config.MaxBytes {
		err = fmt.Errorf("%w: the limit of %d bytes is reached", errDenied, p.config.MaxBytes)
	} else {
		to, err = p.decide(r.Context(), host, port)
	}
	if err == nil {
		k.d.Allowed, k.d.Address = true, netip.AddrPortFrom(to[0], port).String()
	} else {
		k.d.Reason = err.Error()
	}
	p.decided(k)
	switch {
	case errors.Is(err, errDenied):
		p.refuse(w, http.StatusForbidden, fmt.Errorf("%s: %w", net.JoinHostPort(host, strconv.Itoa(int(port))), err))
	case err != nil:
		p.refuse(w, http.StatusBadGateway, err)
	case r.Method == http.MethodConnect:
		p.tunnel(w, r, k, to)
	default:
		p.forward(w, r, k, to)
	}
}

// target is what a request asks for. It is what the request line says: a Host header
// has no part in it.
func target(r *http.Request) (host string, port uint16, err error) {
	address := r.RequestURI
	if r.Method == http.MethodConnect {
		if r.ContentLength != 0 || len(r.TransferEncoding) > 0 {
			return "", 0, errors.New("a CONNECT with a body")
		}
	} else {
		switch {
		case r.URL.Scheme != "http" || r.URL.Host == "":
			return "", 0, errors.New("this is a proxy: it takes CONNECT HOST:PORT, and requests for http://HOST/")
		case r.URL.User != nil:
			return "", 0, errors.New("a URL with a user")
		}
		if address = r.URL.Host; r.URL.Port() == "" {
			address = net.JoinHostPort(r.URL.Hostname(), "80")
		}
	}
	host, text, err := net.SplitHostPort(address)
	n, perr := strconv.ParseUint(text, 10, 16)
	if err != nil || perr != nil || n == 0 || host == "" {
		return "", 0, errors.New("no HOST:PORT in the request line")
	}
	return host, uint16(n), nil
}

// decided counts a decision and tells of it.
func (p *Proxy) decided(k *kept) {
	p.telling.Lock()
	defer p.telling.Unlock()
	p.keep(k)
	if p.config.OnDecision != nil {
		p.config.OnDecision(k.d)
	}
}

func (p *Proxy) keep(k *kept) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if k.d.Allowed {
		p.report.Allowed++
	} else {
		p.report.Denied++
	}
	if len(p.kept) < maxKept {
		p.kept = append(p.kept, k)
	} else {
		p.report.Dropped++
	}
}

// failed says why an allowed connection came to nothing.
func (p *Proxy) failed(k *kept, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k.d.Reason = err.Error()
}

// stopped takes back that a connection was allowed: nothing has gone out on it.
func (p *Proxy) stopped(k *kept, err error) {
	p.telling.Lock()
	defer p.telling.Unlock()
	p.mu.Lock()
	if k.d.Allowed {
		k.d.Allowed = false
		p.report.Allowed--
		p.report.Denied++
	}
	k.d.Reason = err.Error()
	d := k.d
	p.mu.Unlock()
	if p.config.OnDecision != nil {
		p.config.OnDecision(d)
	}
}

func (p *Proxy) refuse(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Connection", "close")
	w.Header().Set("X-Axo-Egress", "refused")
	http.Error(w, "axo: "+err.Error(), status)
}

// dial connects to the first address that answers.
func (p *Proxy) dial(ctx context.Context, k *kept, to []netip.Addr) (*meter, error) {
	var errs []error
	for _, a := range to {
		c, err := p.config.Dial(ctx, netip.AddrPortFrom(a, k.d.Port))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		m := &meter{Conn: c, p: p, k: k}
		p.mu.Lock()
		p.conns[m] = true
		k.d.Address = netip.AddrPortFrom(a, k.d.Port).String()
		p.mu.Unlock()
		if p.ctx.Err() != nil { // since it was looked
			m.Close()
			return nil, net.ErrClosed
		}
		return m, nil
	}
	err := fmt.Errorf("%w: %w", errUnreachable, errors.Join(errs...))
	p.failed(k, err)
	return nil, err
}

// meter counts what goes over a connection to outside, and ends it when there was too
// much of that, or nothing for long.
type meter struct {
	net.Conn
	p      *Proxy
	k      *kept
	inside net.Conn // its other side, if that is a tunnel's
	moved  atomic.Int64
}

var errTooMuch = errors.New("the limit of bytes is reached")

// alive puts off the end for idleness.
func (m *meter) alive() {
	now := time.Now()
	if last := m.moved.Load(); now.UnixNano()-last > int64(time.Second) && m.moved.CompareAndSwap(last, now.UnixNano()) {
		_ = m.SetDeadline(now.Add(idleTimeout))
		if m.inside != nil {
			_ = m.inside.SetDeadline(now.Add(idleTimeout))
		}
	}
}

func (m *meter) count(n int, which, sum *atomic.Int64) error {
	m.alive()
	which.Add(int64(n))
	sum.Add(int64(n))
	if m.p.sent.Load()+m.p.received.Load() > m.p.config.MaxBytes {
		return errTooMuch
	}
	return nil
}

// Read implements net.Conn.
func (m *meter) Read(b []byte) (int, error) {
	n, err := m.Conn.Read(b)
	if cerr := m.count(n, &m.k.received, &m.p.received); cerr != nil {
		return 0, cerr
	}
	return n, err
}

// Write implements net.Conn.
func (m *meter) Write(b []byte) (int, error) {
	if err := m.count(len(b), &m.k.sent, &m.p.sent); err != nil {
		return 0, err
	}
	return m.Conn.Write(b)
}

// CloseWrite ends one direction.
func (m *meter) CloseWrite() error { return closeWrite(m.Conn) }

// Close implements net.Conn.
func (m *meter) Close() error {
	m.p.mu.Lock()
	delete(m.p.conns, m)
	m.p.mu.Unlock()
	return m.Conn.Close()
}

// tunnel makes a connection for CONNECT.
func (p *Proxy) tunnel(w http.ResponseWriter, r *http.Request, k *kept, to []netip.Addr) {
	out, err := p.dial(r.Context(), k, to)
	if err != nil {
		p.refuse(w, http.StatusBadGateway, err)
		return
	}
	defer out.Close()
	in, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		p.refuse(w, http.StatusInternalServerError, err)
		return
	}
	defer in.Close()
	defer context.AfterFunc(p.ctx, func() { in.Close() })()
	_ = in.SetDeadline(time.Now().Add(idleTimeout))
	if _, err := io.WriteString(in, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	out.inside = in
	duplex.Join(&named{Conn: duplex.Read(in, bufio.NewReader(buf)), p: p, k: k}, out)
}

// named is the inner side of a tunnel. If it speaks TLS it does so to the host that was
// asked for, and to nobody else who is served at the same address; on the port of
// HTTPS it does speak TLS.
type named struct {
	net.Conn
	p *Proxy
	k *kept
	r io.Reader // nil: nothing was read yet
}

// tlsHandshake is how TLS begins (RFC 8446 section 5.1).
const tlsHandshake = 22

// Read implements net.Conn.
func (n *named) Read(b []byte) (int, error) {
	if n.r == nil {
		if err := n.begin(); err != nil {
			if err != io.EOF {
				n.p.stopped(n.k, fmt.Errorf("%w: ended: %w", errDenied, err))
			}
			return 0, err
		}
	}
	return n.r.Read(b)
}

// CloseWrite ends one direction.
func (n *named) CloseWrite() error { return closeWrite(n.Conn) }

func (n *named) begin() error {
	buf := bufio.NewReader(n.Conn)
	first, err := buf.Peek(1)
	if err != nil {
		return err
	}
	n.r = buf
	if first[0] != tlsHandshake {
		if n.k.d.Port == httpsPort {
			return errors.New("no TLS on port 443")
		}
		return nil
	}
	_ = n.SetReadDeadline(time.Now().Add(helloPatience))
	name, read, err := serverName(n.p.ctx, duplex.Read(n.Conn, buf))
	if err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	_ = n.SetReadDeadline(time.Now().Add(idleTimeout))
	_, notAddress := netip.ParseAddr(strings.Trim(n.k.d.Host, "[]"))
	want, _ := cleanName(n.k.d.Host) // it was looked at by its rule
	got, nerr := cleanName(name)
	if notAddress == nil && name != "" || notAddress != nil && (nerr != nil || got != want) {
		return fmt.Errorf("TLS for another host, %.200q", name)
	}
	n.r = io.MultiReader(bytes.NewReader(read), buf)
	return nil
}

// forward passes a request for an http URL on.
func (p *Proxy) forward(w http.ResponseWriter, r *http.Request, k *kept, to []netip.Addr) {
	rp := httputil.ReverseProxy{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				m, err := p.dial(ctx, k, to)
				if err != nil {
					return nil, err
				}
				return m, nil
			},
			DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 256 << 10,
		},
		FlushInterval: -1,
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.Host = pr.In.URL.Host
			pr.Out.URL.RawQuery = pr.In.URL.RawQuery
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			p.failed(k, err)
			p.refuse(w, http.StatusBadGateway, err)
		},
		ErrorLog: discardLog,
	}
	rp.ServeHTTP(w, r)
}
