package server

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/axocoatl/isolation"
)

// AdminSocketPath is where the socket for admins is if nothing else is said.
func AdminSocketPath(stateDir string) string { return filepath.Join(stateDir, "admin.sock") }

// NoAdminSocket as a path is none.
const NoAdminSocket = "none"

// serveAdmin serves what is for those who run the daemon, on a socket that nobody else
// can connect to, and the metrics alone on an address where there is one. It is there
// before all else, so that a start that does not come to its end can be looked into,
// until stop is called.
func (c Config) serveAdmin(ready *atomic.Bool) (stop func(), err error) {
	if err := CheckMetricsListen(c.MetricsListen, c.MetricsRemote); err != nil {
		return nil, err
	}
	var servers []*http.Server
	var wg sync.WaitGroup
	stop = func() {
		for _, s := range servers {
			_ = s.Close() // what is under way is cut off
		}
		wg.Wait()
	}
	serve := func(l net.Listener, h http.Handler) {
		s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(c.Logger.Handler(), slog.LevelDebug)}
		servers = append(servers, s)
		wg.Go(func() {
			if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				c.Logger.Error("serve admin", "address", l.Addr().String(), "error", err)
			}
		})
	}
	if c.AdminSocket != NoAdminSocket {
		l, err := listenSocket(c.AdminSocket)
		if err != nil {
			return nil, fmt.Errorf("admin: %w", err)
		}
		serve(l, c.Telemetry.Admin(ready.Load))
	}
	if c.MetricsListen == "" {
		return stop, nil
	}
	l, err := net.Listen("tcp", c.MetricsListen)
	if err != nil {
		stop()
		return nil, fmt.Errorf("metrics: %w", err)
	}
	h := c.Telemetry.Handler()
	if isLoopback(l.Addr().String()) {
		h = checkHost(h, c.Hosts)
	} else {
		c.Logger.Warn("the metrics can be read from other hosts, without a key", "address", l.Addr().String())
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", h)
	serve(l, mux)
	c.Logger.Info("metrics", "address", "http://"+l.Addr().String()+"/metrics")
	return stop, nil
}

// CheckMetricsListen refuses an address that others than this host can reach, unless
// that is what is wanted. Empty is none.
func CheckMetricsListen(address string, remote bool) error {
	if address == "" {
		return nil
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		return fmt.Errorf("metrics.listen %.80q: %w: %w", address, err, isolation.ErrInvalidArgument)
	}
	if !remote && !isLoopback(address) {
		return fmt.Errorf("metrics.listen %.80q is not of this host alone, and whoever reaches it needs no key: set metrics.remote if that is what you want: %w", address, isolation.ErrInvalidArgument)
	}
	return nil
}

// isLoopback reports whether this host alone reaches an address.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
