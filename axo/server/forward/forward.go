// Package forward passes HTTP requests on to programs that listen inside sandboxes.
package forward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"

	"github.com/axocoatl/isolation"
)

// Config says how a request is passed on.
type Config struct {
	// Base is what was before the path, for cookies; empty: nothing. Path is the
	// escaped path that the program inside sees.
	Base, Path string
	// Secrets are the headers that authenticate a client of the daemon's, beside
	// X-API-Key, and Authorization unless X-API-Key is there. None of them is passed on.
	Secrets []string
	// Stopping, when it is closed, ends connections that were upgraded; nil: never.
	Stopping <-chan struct{}
	// Fail answers a request that could not be passed on.
	Fail   func(http.ResponseWriter, error)
	Logger *slog.Logger
}

// maxHeader bounds the header of an answer, in bytes.
const maxHeader = 256 << 10

// HTTP passes a request on to a port, and the answer back: streams as they come, and
// WebSockets and other upgrades too. The program inside sees as host localhost and
// the port, and no secret of the daemon's.
func HTTP(w http.ResponseWriter, r *http.Request, to isolation.PortDialer, port uint16, c Config) {
	if r.Header.Get("Upgrade") != "" {
		ctx, cancel := Until(r.Context(), c.Stopping)
		defer cancel()
		r = r.WithContext(ctx)
	}
	proxy := httputil.ReverseProxy{
		Transport: &http.Transport{
			DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return to.DialPort(ctx, port) },
			DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxHeader,
		},
		FlushInterval:  -1,
		ErrorLog:       slog.NewLogLogger(c.Logger.Handler(), slog.LevelDebug),
		Rewrite:        func(p *httputil.ProxyRequest) { c.rewrite(p, port) },
		ModifyResponse: c.cookies,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			if isolation.Class(err) == nil && !errors.Is(err, context.Canceled) {
				err = fmt.Errorf("port %d: %w: %w", port, err, isolation.ErrUnavailable)
			}
			c.Fail(w, err)
		},
	}
	proxy.ServeHTTP(w, r)
}

func (c Config) rewrite(p *httputil.ProxyRequest, port uint16) {
	host := net.JoinHostPort("localhost", strconv.Itoa(int(port)))
	u := p.Out.URL
	u.Scheme, u.Host, p.Out.Host = "http", host, host
	if plain, err := url.PathUnescape(c.Path); err == nil {
		u.Path, u.RawPath = plain, c.Path
	}
	// A query that this side would read otherwise is passed on all the same.
	u.RawQuery = p.In.URL.RawQuery
	p.SetXForwarded()
	if c.Base != "" {
		p.Out.Header.Set("X-Forwarded-Prefix", c.Base)
	}
	if p.In.Header.Get("X-API-Key") == "" {
		p.Out.Header.Del("Authorization")
	}
	for _, h := range append([]string{"X-API-Key"}, c.Secrets...) {
		p.Out.Header.Del(h)
	}
}

// cookies has those of one sandbox not sent to another that is under the same name.
func (c Config) cookies(resp *http.Response) error {
	all := resp.Cookies()
	resp.Header.Del("Set-Cookie")
	for _, k := range all {
		k.Domain = ""
		if c.Base != "" {
			k.Path = c.Base + "/" + strings.TrimPrefix(k.Path, "/")
		}
		if v := k.String(); v != "" {
			resp.Header.Add("Set-Cookie", v)
		}
	}
	return nil
}

// Until returns a context that ends with ctx, or when stopping is closed.
func Until(ctx context.Context, stopping <-chan struct{}) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	if stopping != nil {
		go func() {
			select {
			case <-stopping:
				cancel()
			case <-ctx.Done():
			}
		}()
	}
	return ctx, cancel
}
