package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/egress"
)

// Egress is what a sandbox may reach of the network; the zero value: nothing. Its
// programs find an HTTP proxy in their environment, which is all that there is: they
// have no other address, route or resolver. The proxy is on the host's side, and
// looks names up itself.
type Egress struct {
	// Allow lists hosts: HOST[:PORT], *.HOST, *, an address or network; without a port
	// 80 and 443, ":*" is any. A name leads to public addresses only, unless an
	// address in this list allows more.
	Allow []string `json:"allow,omitempty" doc:"HOST[:PORT], *.HOST, *, ADDRESS or NETWORK; without a port 80 and 443, :* is any"`
	// Granted allows all that the policy grants, besides; that may be nothing.
	Granted bool `json:"granted,omitempty" doc:"Also all that the policy grants, which may be nothing"`
	// Deny lists addresses and networks to which nothing goes, whatever else is said.
	Deny []string `json:"deny,omitempty" doc:"ADDRESS or NETWORK to which nothing goes, also when a name leads there; :PORT or :* as in allow, and :* is what is meant without"`
	// MaxBytes bounds what goes both ways; 0: 1 GiB.
	MaxBytes int64 `json:"max_bytes,omitempty" minimum:"0" doc:"What may go both ways; 0: 1 GiB"`
}

// IsZero reports whether nothing may be reached.
func (e Egress) IsZero() bool {
	return len(e.Allow) == 0 && !e.Granted && len(e.Deny) == 0 && e.MaxBytes == 0
}

// EgressReport is what a sandbox asked for of the network, and got.
type EgressReport struct {
	Allowed  int64 `json:"allowed"`
	Denied   int64 `json:"denied"`
	Sent     int64 `json:"sent_bytes"`
	Received int64 `json:"received_bytes"`
	// Connections are the first 256; Dropped is how many there were besides.
	Connections []EgressConnection `json:"connections" nullable:"false"`
	Dropped     int64              `json:"dropped,omitempty"`
}

// EgressConnection is one decision.
type EgressConnection struct {
	Time    time.Time `json:"time"`
	Method  string    `json:"method"` // CONNECT, or of an HTTP request
	Host    string    `json:"host"`   // as it was asked for, with its port
	Address string    `json:"address,omitempty"`
	Allowed bool      `json:"allowed"`
	// Reason says why it was refused, or came to nothing.
	Reason   string `json:"reason,omitempty"`
	Sent     int64  `json:"sent_bytes"`
	Received int64  `json:"received_bytes"`
}

// EgressReporter is what a sandbox of Create has if its request has an Egress.
type EgressReporter interface{ EgressReport() EgressReport }

// ProxyPort is the port of the proxy inside a sandbox.
const ProxyPort = 3128

// maxEgress bounds the rules of a request.
const maxEgress = 256

// AnyHost are the rules that allow everything: for a policy of somebody who may reach
// everything himself.
func AnyHost() []string { return []string{"*:*", "0.0.0.0/0:*", "[::/0]:*"} }

// egressRules reads what a request asks for, and holds the policy on it.
func (p Policy) egressRules(e Egress) (allow, deny []egress.Rule, err error) {
	switch {
	case e.IsZero():
		return nil, nil, nil
	case len(e.Allow) == 0 && !e.Granted:
		return nil, nil, fmt.Errorf("egress: what is denied, or a limit of bytes, and no hosts: %w", isolation.ErrInvalidArgument)
	case len(e.Allow) > maxEgress || len(e.Deny) > maxEgress:
		return nil, nil, fmt.Errorf("egress: %d hosts, at most %d are taken: %w", max(len(e.Allow), len(e.Deny)), maxEgress, isolation.ErrInvalidArgument)
	case e.MaxBytes < 0:
		return nil, nil, fmt.Errorf("egress: negative size: %w", isolation.ErrInvalidArgument)
	}
	asked, err := egress.ParseRules(e.Allow)
	if err != nil {
		return nil, nil, fmt.Errorf("egress: %w: %w", err, isolation.ErrInvalidArgument)
	}
	if deny, err = denied(e.Deny); err != nil {
		return nil, nil, err
	}
	granted, err := egress.ParseRules(p.Egress)
	if err != nil {
		return nil, nil, fmt.Errorf("policy: egress: %w: %w", err, isolation.ErrInvalidArgument)
	}
	for i, a := range asked {
		if !slices.ContainsFunc(granted, func(g egress.Rule) bool { return g.Covers(a) }) {
			return nil, nil, fmt.Errorf("egress: the policy does not grant %q: %w", e.Allow[i], isolation.ErrPermissionDenied)
		}
	}
	if e.Granted {
		asked = append(asked, granted...)
	}
	return asked, deny, nil
}

// denied reads what is denied; without a port it is all of an address.
func denied(list []string) ([]egress.Rule, error) {
	var out []egress.Rule
	for _, s := range list {
		r, err := egress.ParseRule(s)
		if _, portless := netip.ParseAddr(s); portless == nil {
			r, err = egress.ParseRule("[" + s + "]:*")
		} else if _, portless := netip.ParsePrefix(s); portless == nil {
			r, err = egress.ParseRule("[" + s + "]:*")
		}
		if err == nil {
			if _, ok := r.Address(); !ok {
				err = fmt.Errorf("%.200q is a name, and only addresses and networks can be denied", s)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("egress: deny: %w: %w", err, isolation.ErrInvalidArgument)
		}
		out = append(out, r)
	}
	return out, nil
}

// lacksEgress says why an engine cannot do what a request asks for of the network, or
// nothing.
func lacksEgress(f isolation.Features, p Policy, r Request) (reason, fix string) {
	// Of all that the policy grants there may be nothing.
	if r.Egress.IsZero() || len(r.Egress.Allow) == 0 && len(p.Egress) == 0 || slices.Contains(f.Abilities, isolation.AbilityListen) {
		return "", ""
	}
	return "it cannot give a program the hosts that it may reach, and no others", "leave out --allow-host, or use the tier oci or microvm"
}

// network is what a sandbox has of one.
type network struct {
	e          *Engine
	id, tenant string
	allow      Egress
	rules      []egress.Rule
	deny       []egress.Rule
	proxy      *egress.Proxy
	l          net.Listener
	close      func()
}

// connect gives a sandbox the proxy that its request asks for; nil: none. It is there
// when a program starts.
func (e *Engine) connect(ctx context.Context, p Policy, sb isolation.Sandbox, r Request) (*network, error) {
	rules, deny, err := p.egressRules(r.Egress)
	if err != nil || len(rules) == 0 {
		return nil, err
	}
	n := &network{e: e, id: r.ID, tenant: r.Spec.Tenant, allow: r.Egress, rules: rules, deny: deny}
	return n, n.open(ctx, sb)
}

func (n *network) open(ctx context.Context, sb isolation.Sandbox) error {
	listener, ok := isolation.As[isolation.PortListener](sb)
	if !ok {
		return &isolation.UnsupportedError{Feature: "hosts that a program may reach", Need: "an engine with the ability " + isolation.AbilityListen}
	}
	var err error
	if n.l, err = listener.ListenPort(ctx, ProxyPort); err != nil {
		return fmt.Errorf("open the proxy's port: %w", err)
	}
	n.proxy = egress.New(egress.Config{Rules: n.rules, Deny: n.deny, MaxBytes: n.allow.MaxBytes, OnDecision: n.decided, Now: n.e.config.Now})
	served := make(chan struct{})
	go func() {
		defer close(served)
		n.proxy.Serve(n.l)
	}()
	n.close = sync.OnceFunc(func() {
		n.e.mu.Lock()
		delete(n.e.networks, n)
		n.e.mu.Unlock()
		n.proxy.Close()
		<-served
	})
	n.e.mu.Lock()
	n.e.networks[n] = struct{}{}
	n.e.mu.Unlock()
	return nil
}

func (e *Engine) endNetworks() {
	e.mu.Lock()
	all := slices.Collect(maps.Keys(e.networks))
	e.mu.Unlock()
	for _, n := range all {
		n.end()
	}
}

// again is the same for a copy of the sandbox.
func (n *network) again(ctx context.Context, sb isolation.Sandbox) (*network, error) {
	if n == nil {
		return nil, nil
	}
	c := &network{e: n.e, id: sb.ID(), tenant: n.tenant, allow: n.allow, rules: n.rules, deny: n.deny}
	return c, c.open(ctx, sb)
}

// end ends all connections. The sandbox may have gone.
func (n *network) end() {
	if n != nil && n.close != nil {
		n.close()
	}
}

// decided tells of a decision, before it is acted on.
func (n *network) decided(d egress.Decision) {
	c := connection(d)
	n.e.config.Logger.Info("egress", "tenant", n.tenant, "sandbox", n.id, "method", c.Method, "host", c.Host, "address", c.Address, "allowed", c.Allowed, "reason", c.Reason)
	if n.e.config.OnEvent == nil {
		return
	}
	fields := map[string]string{"method": c.Method, "host": c.Host, "allowed": strconv.FormatBool(c.Allowed)}
	for k, v := range map[string]string{"address": c.Address, "reason": c.Reason} {
		if v != "" {
			fields[k] = v
		}
	}
	n.e.config.OnEvent(Event{Time: d.Time, RunID: n.id, Tenant: n.tenant, Kind: EventEgress, Fields: fields})
}

func connection(d egress.Decision) EgressConnection {
	return EgressConnection{
		Time: d.Time, Method: d.Method, Host: net.JoinHostPort(strings.Trim(d.Host, "[]"), strconv.Itoa(int(d.Port))), Address: d.Address,
		Allowed: d.Allowed, Reason: d.Reason, Sent: d.Sent, Received: d.Received,
	}
}

// report is what there was by now; nil: no network.
func (n *network) report() *EgressReport {
	if n == nil {
		return nil
	}
	r := n.proxy.Report()
	out := &EgressReport{Allowed: r.Allowed, Denied: r.Denied, Sent: r.Sent, Received: r.Received, Dropped: r.Dropped, Connections: []EgressConnection{}}
	for _, d := range r.Connections {
		out.Connections = append(out.Connections, connection(d))
	}
	return out
}

// proxied is a sandbox with a network of its own. Its end ends that.
type proxied struct {
	isolation.Sandbox
	n *network
}

// Unwrap lets abilities be found.
func (p proxied) Unwrap() any {
	if f, ok := isolation.As[isolation.Forker](p.Sandbox); ok {
		return proxiedForker{f, p}
	}
	return p.Sandbox
}

// withEgress gives a sandbox that was just made what its request asks for of the
// network; if that cannot be, nothing is left of it.
func (e *Engine) withEgress(ctx context.Context, p Policy, sb isolation.Sandbox, r Request) (isolation.Sandbox, error) {
	n, err := e.connect(ctx, p, sb, r)
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		return nil, errors.Join(err, sb.Delete(undo))
	}
	if n == nil {
		return sb, nil
	}
	return proxied{sb, n}, nil
}

// EgressReport implements [EgressReporter].
func (p proxied) EgressReport() EgressReport { return *p.n.report() }

// proxyEnv is what programs find the proxy by. A variable that somebody has set
// stays.
func proxyEnv(env []string) []string {
	has := map[string]bool{}
	for _, e := range env {
		k, _, _ := strings.Cut(e, "=")
		has[strings.ToLower(k)] = true
	}
	out := slices.Clone(env)
	address := "http://127.0.0.1:" + strconv.Itoa(ProxyPort)
	for _, v := range [][2]string{{"http_proxy", address}, {"https_proxy", address}, {"no_proxy", "localhost,127.0.0.1,::1"}} {
		if !has[v[0]] {
			// Programs read one or the other; curl no HTTP_PROXY.
			out = append(out, v[0]+"="+v[1], strings.ToUpper(v[0])+"="+v[1])
		}
	}
	if !has["node_use_env_proxy"] {
		out = append(out, "NODE_USE_ENV_PROXY=1") // fetch of Node.js, of 22.21 and later, goes by the others then
	}
	return out
}

// Exec implements isolation.Sandbox.
func (p proxied) Exec(ctx context.Context, ps isolation.ProcessSpec, stdio isolation.Stdio) (isolation.Process, error) {
	ps.Env = proxyEnv(ps.Env)
	return p.Sandbox.Exec(ctx, ps, stdio)
}

// Delete implements isolation.Sandbox. The network ends first: nothing goes out any
// more while programs are ended.
func (p proxied) Delete(ctx context.Context) error {
	p.n.end()
	return p.Sandbox.Delete(ctx)
}

type proxiedForker struct {
	isolation.Forker
	p proxied
}

// Unwrap lets abilities be found.
func (f proxiedForker) Unwrap() any { return f.p.Sandbox }

// Fork implements [isolation.Forker]: copies may reach what their origin may, each
// through a proxy of its own.
func (f proxiedForker) Fork(ctx context.Context, ids []string) ([]isolation.Sandbox, error) {
	made, err := f.Forker.Fork(ctx, ids)
	if err != nil {
		return nil, err
	}
	out := make([]isolation.Sandbox, len(made))
	for i, sb := range made {
		n, nerr := f.p.n.again(ctx, sb)
		if nerr != nil {
			err = errors.Join(err, nerr)
		}
		out[i] = proxied{sb, n}
	}
	if err == nil {
		return out, nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	for _, sb := range out {
		err = errors.Join(err, sb.Delete(undo))
	}
	return nil, err
}
