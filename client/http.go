package client

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
)

// maxAnswer bounds an answer that is read into memory.
const maxAnswer = 64 << 20

// remote is a daemon.
type remote struct {
	base   string // of URLs
	key    string
	tenant string
	http   *http.Client
	dial   func(context.Context) (net.Conn, error)
}

func newRemote(c Config) (*remote, error) {
	address, key := c.Address, c.Key
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("address %.80q: %w: %w", address, err, isolation.ErrInvalidArgument)
	}
	t := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}
	r := &remote{base: strings.TrimRight(address, "/"), key: key, tenant: c.Tenant, http: &http.Client{Transport: t}}
	switch {
	case u.Scheme == "unix" && u.Path != "":
		r.base = "http://localhost"
		r.dial = func(ctx context.Context) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, "unix", u.Path)
			if err != nil || c.Check == nil {
				return conn, err
			}
			if err := c.Check(conn); err != nil {
				conn.Close()
				return nil, fmt.Errorf("%s: %w", u.Path, err)
			}
			return conn, nil
		}
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return r.dial(ctx) }
	case (u.Scheme == "http" || u.Scheme == "https") && u.Host != "":
		r.dial = func(ctx context.Context) (net.Conn, error) {
			address := net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme]))
			if u.Scheme == "https" {
				return new(tls.Dialer).DialContext(ctx, "tcp", address)
			}
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}
	default:
		return nil, fmt.Errorf("address %.80q: want unix:///PATH, http://HOST or https://HOST: %w", address, isolation.ErrInvalidArgument)
	}
	return r, nil
}

func (r *remote) close() { r.http.CloseIdleConnections() }

func (r *remote) url(path string, query url.Values) string {
	if r.tenant != "" {
		query = maps.Clone(query)
		if query == nil {
			query = url.Values{}
		}
		query.Set("tenant", r.tenant)
	}
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	return r.base + path
}

// send makes a request and returns the answer if it is no problem. The caller
// closes its body.
func (r *remote) send(ctx context.Context, method, path string, query url.Values, in io.Reader, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, r.url(path, query), in)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, isolation.ErrInvalidArgument)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("Authorization", "Bearer "+r.key)
	resp, err := r.http.Do(req)
	if err != nil {
		return nil, unreachable(ctx, err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	return nil, refusal(resp)
}

// unreachable is the error of a request that had no answer.
func unreachable(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	err = fmt.Errorf("daemon: %w: %w", err, isolation.ErrUnavailable)
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		// Nobody was asked anything.
		err = &isolation.Error{Op: "connect", Outcome: isolation.NotStarted, Err: err}
	}
	return err
}

// refusal is the error that an answer tells, and closes its body.
func refusal(resp *http.Response) error {
	defer resp.Body.Close()
	p := api.Problem{Status: resp.StatusCode}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if json.Unmarshal(b, &p) != nil || p.Detail == "" {
		p = api.Problem{Status: resp.StatusCode, Detail: fmt.Sprintf("the daemon answers %s: %.200q", resp.Status, b)}
	}
	return p.Err()
}

// upgrade makes a request after whose answer the connection is something else.
func (r *remote) upgrade(ctx context.Context, path, protocol string, header http.Header) (net.Conn, error) {
	req, err := http.NewRequestWithContext(ctx, "POST", r.url(path, nil), nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, isolation.ErrInvalidArgument)
	}
	req.Header = header
	req.Header.Set("Authorization", "Bearer "+r.key)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", protocol)
	c, err := r.dial(ctx)
	if err != nil {
		return nil, unreachable(ctx, err)
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	buf := bufio.NewReader(c)
	var resp *http.Response
	if err = req.Write(c); err == nil {
		resp, err = http.ReadResponse(buf, req)
	}
	switch {
	case err != nil:
		c.Close()
		return nil, unreachable(ctx, err)
	case resp.StatusCode != http.StatusSwitchingProtocols:
		err = refusal(resp)
		c.Close()
		return nil, err
	case !stop():
		c.Close()
		return nil, context.Cause(ctx)
	}
	return upgraded{c, buf}, nil
}

// upgraded is a connection of which some may have been read already.
type upgraded struct {
	net.Conn
	buf *bufio.Reader
}

// Read implements net.Conn.
func (u upgraded) Read(b []byte) (int, error) { return u.buf.Read(b) }

// CloseWrite ends what is sent.
func (u upgraded) CloseWrite() error {
	if c, ok := u.Conn.(interface{ CloseWrite() error }); ok { // of TCP, unix sockets and TLS
		return c.CloseWrite()
	}
	return u.Close()
}

// call sends JSON and reads JSON.
func (r *remote) call(ctx context.Context, method, path string, query url.Values, header http.Header, in, out any) error {
	var body io.Reader
	if header == nil {
		header = http.Header{}
	}
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("%w: %w", err, isolation.ErrInvalidArgument)
		}
		body = bytes.NewReader(b)
		header.Set("Content-Type", "application/json")
	}
	resp, err := r.send(ctx, method, path, query, body, header)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, err := io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer))
		return err
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return fmt.Errorf("the daemon's answer: %w: %w", err, isolation.ErrUnavailable)
	}
	return nil
}
