// Package server is the daemon: the engine, the sessions and the interfaces to
// them, on a unix socket and on the loopback address.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/build"
	"github.com/axocoatl/isolation/axo/server/e2b"
	"github.com/axocoatl/isolation/axo/server/mcp"
	"github.com/axocoatl/isolation/axo/server/rest"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/axo/telemetry"
	"github.com/axocoatl/isolation/axo/tenant"
	"github.com/axocoatl/isolation/axo/tool"
	"github.com/axocoatl/isolation/engine"
	"github.com/axocoatl/isolation/pool"
)

// Config makes a daemon.
type Config struct {
	// StateDir keeps the keys, the sessions and the socket; 0700, and this
	// process's alone while it runs.
	StateDir  string
	Engine    *engine.Engine
	Sessions  session.Config     // Engine, Dir, Logger are set here
	Runs      session.RunsConfig // likewise
	Admission Admission
	// Images, Templates and Pools are what rest.Config says.
	Images    rest.Images
	Templates rest.Templates
	// Built are the templates of E2B's clients; nil: none can be built. Run closes them.
	Built *build.Templates
	Pools func() []api.Pool
	// Quotas are the tenants', for admins to manage; nil: not over the API.
	Quotas rest.Quotas
	// Tools are served at /v1/tools, and at /mcp, beside runs and sandboxes; nil: there are none.
	Tools *tool.Caller
	// Socket is the unix socket's path; empty: StateDir/axo.sock.
	Socket string
	// Listen is an address of TCP, such as 127.0.0.1:7330; empty: none.
	Listen string
	// Activated are sockets that somebody else has opened, as Activated returns them.
	// With one of them a unix socket, Socket is not made.
	Activated []net.Listener
	// Hosts are names that requests over TCP may have in their Host header, beside
	// those of the loopback address.
	Hosts []string
	// E2B is another address of TCP, on which E2B's clients are answered; empty: none.
	// E2BDomain is e2b.Config's Domain.
	E2B, E2BDomain string
	// E2BTLS is how its clients are answered over TLS.
	E2BTLS TLS
	// Drain is how long requests may take to end when the daemon does; 0: 10 s.
	Drain time.Duration
	// Sweep is how often what killed processes left is removed; 0: every minute.
	Sweep time.Duration
	// Auditor writes down what happens, and keeps that for AuditKeep; 0: for ever. nil:
	// nothing is written down.
	Auditor   *Auditor
	AuditKeep time.Duration
	// Telemetry measures the daemon; nil: one that nobody else sees. The engine's
	// Config has its Engine and EngineEvent.
	Telemetry *telemetry.Telemetry
	// AdminSocket is the path of the unix socket for who runs the daemon; empty:
	// StateDir/admin.sock; NoAdminSocket: there is none.
	AdminSocket string
	// MetricsListen is an address of TCP on which the metrics can be read by
	// everybody who reaches it; empty: none. It has to be one of the loopback address
	// unless MetricsRemote is set.
	MetricsListen string
	MetricsRemote bool
	Version       string
	Logger        *slog.Logger
	// Ready is called when requests are answered, with the addresses.
	Ready func(addresses []string)
}

// SocketPath is where a daemon's socket is if nothing else is said.
func SocketPath(stateDir string) string { return filepath.Join(stateDir, "axo.sock") }

// Run is the life of a daemon: until ctx ends, and what is under way has ended
// or its time is up. It closes the engine, in any case.
func Run(ctx context.Context, c Config) (err error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Drain == 0 {
		c.Drain = 10 * time.Second
	}
	if c.Sweep == 0 {
		c.Sweep = time.Minute
	}
	if c.Socket == "" {
		c.Socket = SocketPath(c.StateDir)
	}
	if c.AdminSocket == "" {
		c.AdminSocket = AdminSocketPath(c.StateDir)
	}
	if c.Telemetry == nil {
		c.Telemetry = telemetry.New(telemetry.Config{Version: c.Version, Logger: c.Logger})
	}
	defer func() {
		for _, l := range c.Activated {
			l.Close() // once more, unless nobody has come to serve it
		}
	}()
	own := c.Engine.Close // until the sessions have the engine
	defer func() {
		if own != nil {
			err = errors.Join(err, own())
		}
	}()
	unlock, err := lockAlone(filepath.Join(c.StateDir, "serve.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	var ready atomic.Bool
	stopAdmin, err := c.serveAdmin(&ready)
	if err != nil {
		return err
	}
	defer stopAdmin()
	keys, err := tenant.Open(c.StateDir)
	if err != nil {
		return err
	}
	e := admit(c.Engine, c.Admission, c.Sessions.Quota, c.Telemetry)
	e.images, e.built = c.Images, c.Built
	sc := c.Sessions
	sc.Observer, sc.Memory = c.Telemetry.Sessions(), e.memory
	sc.Engine, sc.Dir, sc.Logger = e, filepath.Join(c.StateDir, "serve"), c.Logger
	sc.OnEvent = also(c.Telemetry.SessionEvent, sc.OnEvent)
	runner := rest.Engine(e)
	var log rest.Audit
	if c.Auditor != nil {
		sc.OnEvent = c.Auditor.sessionEvents(sc.OnEvent)
		runner, log = c.Auditor.engine(e, c.Images), c.Auditor.Log
	}
	runner = measured{runner, c.Telemetry}
	sessions, err := session.Open(ctx, sc)
	if err != nil {
		return err
	}
	own = nil
	c.Auditor.has(sessions)
	c.Telemetry.Watch(c.sources(sessions, e))
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, sessions.Close(end))
	}()

	var draining atomic.Bool
	stopping := make(chan struct{})
	rc := c.Runs
	rc.OnRefused, rc.Measure, rc.Observer = c.Telemetry.Refused, c.Telemetry.Run, c.Telemetry.Engine()
	rc.Engine, rc.Dir, rc.Logger = runner, filepath.Join(c.StateDir, "runs"), c.Logger
	rc.Lasting, rc.Turn, rc.Adopted, rc.Leaving = e, e.turn, e.adopt, stopping
	if a := c.Auditor; a != nil {
		rc.Begun = func(ctx context.Context, r engine.Request) error { return a.runBegins(ctx, r, c.Images) }
		rc.Ended = a.runEnded
	}
	runs, err := session.OpenRuns(rc)
	if err != nil {
		return err
	}
	defer func() { // again, where it did not come to that
		now, cancel := context.WithCancel(context.Background())
		cancel()
		runs.Close(now)
	}()
	if c.Auditor != nil {
		c.Auditor.runs.Store(runs)
	}
	// What was made ahead and never handed out is nobody's.
	owned := func(id string) bool {
		_, _, runs := runs.Owns(id)
		return runs || sessions.Owns(id)
	}
	if gone, err := c.Engine.Discard(ctx, func(id string) bool { return pool.MadeAhead(id) && !owned(id) }); err != nil {
		c.Logger.Warn("discard what an earlier daemon had ready; the next start tries again", "error", err)
	} else if len(gone) > 0 {
		c.Logger.Info("discarded what an earlier daemon had ready", "sandboxes", len(gone))
	}

	if c.Tools != nil {
		c.Tools.Engine = runner // calls wait for their turn as runs do
	}
	handler := rest.New(rest.Config{
		Sessions: sessions, Runs: runs, Engine: runner, Audit: log, Tools: c.Tools, Allows: c.Engine.Allows, Images: c.Images, Templates: c.Templates, Pools: c.Pools, Find: keys.Find, Keys: keys, Quotas: c.Quotas, Version: c.Version,
		Draining: draining.Load, Stopping: stopping, Logger: c.Logger,
	})
	protocol, err := mcp.New(mcp.Config{Engine: runner, Tools: c.Tools, Sessions: sessions, Allows: c.Engine.Allows, Version: c.Version, Logger: c.Logger, OnRequest: c.Telemetry.MCP})
	if err != nil {
		// Those that can be read are served.
		c.Logger.Warn("tools of the registry", "error", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/mcp", c.Telemetry.HTTP("mcp", protocol.Handler(keys.Find, stopping)))
	mux.Handle("/", c.Telemetry.HTTP("rest", handler))
	listeners, err := c.listen()
	if err != nil {
		return err
	}
	var compatible http.Handler
	var compatibleOn net.Listener
	var certificate *tls.Config
	if c.E2B != "" {
		var h *e2b.Server
		var l net.Listener
		if certificate, err = c.E2BTLS.config(c.StateDir, c.E2BDomain); err == nil {
			h, l, err = c.listenE2B(sessions, keys, draining.Load, stopping)
		}
		if err != nil {
			for _, l := range listeners {
				l.Close()
			}
			return err
		}
		defer h.Close()
		if c.Built != nil {
			defer c.Built.Close()
		}
		compatible, compatibleOn = c.Telemetry.HTTP("e2b", h), l
		listeners = append(listeners, l)
	}
	var servers []*http.Server
	var wg sync.WaitGroup
	failed := make(chan error, len(listeners))
	var addresses []string
	// Requests are not cut off when ctx ends: they are given time.
	base := context.WithoutCancel(ctx)
	for _, l := range listeners {
		h := http.Handler(mux)
		address := "unix://" + l.Addr().String()
		switch {
		case l == compatibleOn:
			h, address = compatible, "http://"+l.Addr().String()
			if certificate != nil {
				address = "https://" + l.Addr().String()
			}
		case l.Addr().Network() != "unix":
			h = checkHost(h, c.Hosts)
			address = "http://" + l.Addr().String()
		}
		s := &http.Server{
			Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
			BaseContext: func(net.Listener) context.Context { return base },
			ErrorLog:    slog.NewLogLogger(c.Logger.Handler(), slog.LevelDebug),
		}
		servers = append(servers, s)
		addresses = append(addresses, address)
		serve := s.Serve
		if l == compatibleOn && certificate != nil {
			s.TLSConfig = certificate
			serve = func(l net.Listener) error { return s.ServeTLS(l, "", "") }
		}
		wg.Go(func() {
			if err := serve(l); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("serve %s: %w", address, err)
			}
		})
	}
	wg.Go(func() { sweep(ctx, c.Engine, c.Sweep, c.Telemetry) })
	wg.Go(func() { protocol.Watch(ctx) })
	wg.Go(func() { c.Auditor.prune(ctx, c.AuditKeep) })
	ready.Store(true)
	if c.Ready != nil {
		c.Ready(addresses)
	}
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	ready.Store(false)
	draining.Store(true)
	close(stopping) // streams end: their clients come back to the next daemon
	end, cancel := context.WithTimeout(base, c.Drain)
	defer cancel()
	for _, s := range servers {
		if serr := s.Shutdown(end); serr != nil {
			c.Logger.Warn("requests are cut off: they took too long", "error", serr)
			_ = s.Close()
		}
	}
	runs.Close(end)
	if err != nil {
		return err // the sweeper ends with ctx, which the caller ends
	}
	wg.Wait()
	return nil
}

// sweep removes what processes that were killed have left, from time to time.
func sweep(ctx context.Context, e *engine.Engine, every time.Duration, t *telemetry.Telemetry) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			t.Swept(e.Sweep())
		}
	}
}

// listen opens the socket, and the address if there is one.
func (c Config) listen() ([]net.Listener, error) {
	out := slices.Clone(c.Activated)
	if !slices.ContainsFunc(out, func(l net.Listener) bool { return l.Addr().Network() == "unix" }) {
		l, err := listenSocket(c.Socket)
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	if c.Listen == "" {
		return out, nil
	}
	err := CheckListen(c.Listen)
	if err == nil {
		var t net.Listener
		if t, err = net.Listen("tcp", c.Listen); err == nil {
			return append(out, t), nil
		}
	}
	for _, l := range out {
		l.Close()
	}
	return nil, err
}

// listenSocket makes a socket in the place of what a daemon that was killed has left.
func listenSocket(path string) (net.Listener, error) {
	// Nobody else has it: the lock says so.
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("%s is there and is no socket: %w", path, isolation.ErrFailedPrecondition)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := listenPrivate(path)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	return l, nil
}

// listenE2B makes the interface for E2B's clients, and opens its address.
func (c Config) listenE2B(sessions *session.Manager, keys *tenant.Keys, draining func() bool, stopping <-chan struct{}) (*e2b.Server, net.Listener, error) {
	if err := CheckListen(c.E2B); err != nil {
		return nil, nil, err
	}
	// Nothing but its timeout is to end one of its sandboxes.
	idle, life := sessions.Longest()
	ec := e2b.Config{
		Sessions: sessions, Find: keys.Find, StateDir: c.StateDir, Domain: c.E2BDomain, Hosts: c.Hosts, MaxTimeout: min(idle, life), Keep: life,
		Draining: draining, Stopping: stopping, Logger: c.Logger, Templates: c.Built,
	}
	if c.Images != nil {
		ec.Images = c.Images
	}
	h, err := e2b.New(ec)
	if err != nil {
		return nil, nil, err
	}
	l, err := net.Listen("tcp", c.E2B)
	if err != nil {
		h.Close()
		return nil, nil, err
	}
	return h, l, nil
}

// CheckListen refuses an address that others than this host can reach. Empty is
// none.
func CheckListen(address string) error {
	if address == "" {
		return nil
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		return fmt.Errorf("listen address %.80q: %w: %w", address, err, isolation.ErrInvalidArgument)
	}
	if !isLoopback(address) {
		return fmt.Errorf("listen address %.80q is not of this host alone: put a proxy with TLS before 127.0.0.1: %w", address, isolation.ErrInvalidArgument)
	}
	return nil
}

// checkHost refuses requests under another name than the daemon's: a page in a
// browser could send them by a name of its own that it has point here.
func checkHost(next http.Handler, names []string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		host = strings.ToLower(strings.Trim(host, "[]"))
		ip := net.ParseIP(host)
		if host != "localhost" && (ip == nil || !ip.IsLoopback()) && !slices.Contains(names, host) {
			http.Error(w, "the Host header names another host than this one", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}
