package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	base string // of URLs
	key  string
	http *http.Client
}

func newRemote(address, key string) (*remote, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("address %.80q: %w: %w", address, err, isolation.ErrInvalidArgument)
	}
	t := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}
	r := &remote{base: strings.TrimRight(address, "/"), key: key, http: &http.Client{Transport: t}}
	switch {
	case u.Scheme == "unix" && u.Path != "":
		r.base = "http://localhost"
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", u.Path)
		}
	case (u.Scheme == "http" || u.Scheme == "https") && u.Host != "":
	default:
		return nil, fmt.Errorf("address %.80q: want unix:///PATH, http://HOST or https://HOST: %w", address, isolation.ErrInvalidArgument)
	}
	return r, nil
}

func (r *remote) close() { r.http.CloseIdleConnections() }

// send makes a request and returns the answer if it is no problem. The caller
// closes its body.
func (r *remote) send(ctx context.Context, method, path string, query url.Values, in io.Reader, header http.Header) (*http.Response, error) {
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, r.base+path, in)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, isolation.ErrInvalidArgument)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("Authorization", "Bearer "+r.key)
	resp, err := r.http.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return nil, cause
		}
		err = fmt.Errorf("daemon: %w: %w", err, isolation.ErrUnavailable)
		var dial *net.OpError
		if errors.As(err, &dial) && dial.Op == "dial" {
			// Nobody was asked anything.
			err = &isolation.Error{Op: "connect", Outcome: isolation.NotStarted, Err: err}
		}
		return nil, err
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	p := api.Problem{Status: resp.StatusCode}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if json.Unmarshal(b, &p) != nil || p.Detail == "" {
		p = api.Problem{Status: resp.StatusCode, Detail: fmt.Sprintf("the daemon answers %s: %.200q", resp.Status, b)}
	}
	return nil, p.Err()
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
