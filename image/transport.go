package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/axocoatl/isolation"
)

// How long a registry may be silent.
const (
	headerTimeout = 60 * time.Second
	idleTimeout   = 60 * time.Second
)

var errSilent = errors.New("the registry sent nothing for a minute")

// registry speaks to one repository, with credentials.
type registry struct {
	repo   name.Repository
	rt     http.RoundTripper // *transport.Wrapper: has the token
	client *http.Client
	base   *http.Transport
	idle   time.Duration
}

// dial does the handshake of a registry.
func dial(ctx context.Context, ref name.Reference, o PullOptions, limits Limits) (*registry, error) {
	keychain := o.Keychain
	if keychain == nil {
		keychain = authn.DefaultKeychain
	}
	repo := ref.Context()
	auth, err := authn.Resolve(ctx, keychain, repo)
	if err != nil {
		return nil, fmt.Errorf("credentials for %s: %w", repo.RegistryStr(), err)
	}
	base := &http.Transport{
		Proxy:       http.ProxyFromEnvironment,
		DialContext: (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		// A blob is asked for by offset of what is stored: no encoding on top.
		DisableCompression: true, ForceAttemptHTTP2: true,
		TLSHandshakeTimeout: 15 * time.Second, ResponseHeaderTimeout: headerTimeout, IdleConnTimeout: 30 * time.Second,
		MaxIdleConnsPerHost: 8,
	}
	guarded := &guard{next: base, plain: o.Insecure, limit: limits.ManifestBytes, inside: inside(repo.RegistryStr())}
	rt, err := transport.NewWithContext(ctx, repo.Registry, auth, transport.NewUserAgent(transport.NewRetry(guarded), "axo"), []string{repo.Scope(transport.PullScope)})
	if err != nil {
		base.CloseIdleConnections()
		return nil, err
	}
	return &registry{
		repo: repo, rt: rt, base: base, idle: idleTimeout,
		client: &http.Client{Transport: rt, CheckRedirect: checkRedirect},
	}, nil
}

func (r *registry) close() { r.base.CloseIdleConnections() }

// guard is below everything else: what it refuses is not sent, redirects and
// token servers included.
type guard struct {
	next   http.RoundTripper
	plain  bool // plain HTTP is allowed
	inside bool // the registry is on this host or in its networks
	limit  int64
}

// blobRequest marks, in a context, the requests whose answer is not read into
// memory.
type blobRequest struct{}

// PlainHTTPError says that a registry was not asked because that would have been
// without encryption. It is of class [isolation.ErrFailedPrecondition].
type PlainHTTPError struct{ Host string }

func (e *PlainHTTPError) Error() string {
	return fmt.Sprintf("plain HTTP to %s is refused: allowed are loopback addresses, and others only with --insecure (PullOptions.Insecure)", e.Host)
}

// Is reports that the error is of class [isolation.ErrFailedPrecondition].
func (e *PlainHTTPError) Is(target error) bool { return target == isolation.ErrFailedPrecondition }

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !g.plain && !loopback(req.URL.Hostname()) {
		return nil, &PlainHTTPError{req.URL.Host}
	}
	if !g.inside && inside(req.URL.Host) {
		// A public registry has no business in this host's networks.
		return nil, fmt.Errorf("the registry sends to the private address %s, which is refused: %w", req.URL.Host, isolation.ErrPermissionDenied)
	}
	resp, err := g.next.RoundTrip(req)
	if err == nil && req.Context().Value(blobRequest{}) == nil {
		resp.Body = &struct {
			io.Reader
			io.Closer
		}{&boundReader{r: resp.Body, left: g.limit}, resp.Body}
	}
	return resp, err
}

func loopback(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

// checkRedirect: blobs are often elsewhere.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("ten redirects")
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("a redirect from https to %s is refused", req.URL.Scheme)
	}
	return nil
}

// inside reports whether a host, with a port or without, is this one, or an
// address of a private network.
func inside(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	a, err := netip.ParseAddr(host)
	return loopback(host) || err == nil && (a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsUnspecified())
}

// blob is the source of a blob. It asks for the rest only; a registry that
// cannot do that sends all.
func (r *registry) blob(digest string, size int64) source {
	return func(parent context.Context, offset int64) (io.ReadCloser, int64, error) {
		ctx, cancel := context.WithCancelCause(context.WithValue(parent, blobRequest{}, true))
		url := fmt.Sprintf("%s://%s/v2/%s/blobs/%s", r.repo.Scheme(), r.repo.RegistryStr(), r.repo.RepositoryStr(), digest)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			cancel(err)
			return nil, 0, err
		}
		if offset > 0 {
			req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, size-1))
		}
		resp, err := r.client.Do(req)
		if err != nil {
			cancel(err)
			return nil, 0, err
		}
		start, err := startOf(resp, offset)
		if errors.Is(err, errNoRange) {
			resp.Body.Close()
			cancel(err)
			return r.blob(digest, size)(parent, 0)
		}
		if err != nil {
			resp.Body.Close()
			cancel(err)
			return nil, 0, err
		}
		body := &watched{body: resp.Body, ctx: ctx, cancel: cancel, idle: r.idle}
		body.timer = time.AfterFunc(r.idle, func() { cancel(errSilent) })
		return body, start, nil
	}
}

var errNoRange = errors.New("the registry does not serve this range")

// startOf tells at which byte an answer starts.
func startOf(resp *http.Response, asked int64) (int64, error) {
	switch resp.StatusCode {
	case http.StatusOK:
		return 0, nil
	case http.StatusPartialContent:
		var from, to int64
		if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/", &from, &to); err != nil || from != asked {
			return 0, errNoRange
		}
		return from, nil
	case http.StatusRequestedRangeNotSatisfiable:
		if asked > 0 {
			return 0, errNoRange
		}
	}
	return 0, transport.CheckError(resp, http.StatusOK)
}

// watched ends a body that stays silent.
type watched struct {
	body   io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	idle   time.Duration
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.body.Read(p)
	w.timer.Reset(w.idle)
	if err != nil && err != io.EOF && errors.Is(context.Cause(w.ctx), errSilent) {
		err = errSilent
	}
	return n, err
}

func (w *watched) Close() error {
	w.timer.Stop()
	w.cancel(nil)
	return w.body.Close()
}

// transient reports whether another attempt may do better.
func transient(err error) bool {
	var e *transport.Error
	var plainHTTP *PlainHTTPError
	switch {
	case errors.As(err, &plainHTTP), errors.Is(err, ErrDigest), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return false
	case errors.As(err, &e):
		return e.StatusCode >= 500 || e.StatusCode == http.StatusTooManyRequests || e.StatusCode == http.StatusRequestTimeout
	}
	return true
}

// explain adds to a registry's error its class and what to do.
func explain(ref string, err error) error {
	var e *transport.Error
	var network net.Error
	switch {
	case errors.As(err, &e) && e.StatusCode == http.StatusUnauthorized:
		return fmt.Errorf("%w: %w; the name is wrong, or it needs credentials: docker login writes them where they are looked for", isolation.ErrUnauthenticated, err)
	case errors.As(err, &e) && e.StatusCode == http.StatusForbidden:
		return fmt.Errorf("%w: %w", isolation.ErrPermissionDenied, err)
	case errors.As(err, &e) && e.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%w: the registry has no %s: %w", isolation.ErrNotFound, ref, err)
	case errors.As(err, &e) && e.StatusCode == http.StatusTooManyRequests:
		return fmt.Errorf("%w: %w; wait, or log in for a higher limit", isolation.ErrResourceExhausted, err)
	case isolation.Class(err) != nil || errors.Is(err, context.Canceled):
		return err
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return fmt.Errorf("%w: the registry speaks plain HTTP, which is only used with --insecure (PullOptions.Insecure): %w", isolation.ErrFailedPrecondition, err)
	case errors.As(err, &e), errors.As(err, &network), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: %w", isolation.ErrUnavailable, err)
	}
	return err
}
