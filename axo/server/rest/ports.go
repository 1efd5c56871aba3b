package rest

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/server/forward"
	"github.com/axocoatl/isolation/axo/tenant"
	"github.com/axocoatl/isolation/engine"
	"github.com/axocoatl/isolation/internal/duplex"
)

func (s *Server) registerPorts() {
	s.raw(op("dial-port", "POST", "/v1/sandboxes/{id}/ports/{port}", "Connect to what listens on a port of the sandbox's loopback address", "ports", func(o *huma.Operation) {
		o.Description = "With Connection: Upgrade and Upgrade: " + api.TunnelProtocol + ". After the answer 101 the connection is that to the port, byte for byte."
		o.Responses = map[string]*huma.Response{"101": {Description: "The connection is the port's"}}
	}), s.dialPort)
	huma.Register(s.api, op("get-egress", "GET", "/v1/sandboxes/{id}/egress", "What it asked for of the network since this daemon has it, and what became of that", "ports", anyTenant), s.egress)
	o := op("proxy-port", "GET", "/v1/sandboxes/{id}/ports/{port}/{path}", "Send an HTTP request of any method to what listens on a port", "ports", takes(tenant.RoleUser), func(o *huma.Operation) {
		o.Description = "The path behind the port, which may have slashes, the query and the body are passed on, WebSockets and other upgrades too; the key is not. Host is localhost:PORT."
		o.Responses = map[string]*huma.Response{"200": {Description: "Whatever is answered"}}
	})
	s.document(&o)
	s.mux.HandleFunc(proxyPattern, func(w http.ResponseWriter, r *http.Request) {
		if err := s.proxyPort(w, r); err != nil {
			writeProblem(w, err)
		}
	})
}

// proxyPattern is that of what is sent to a port, of every method.
const proxyPattern = "/v1/sandboxes/{id}/ports/{port}/{path...}"

func (s *Server) egress(ctx context.Context, in *InBox) (*body[engine.EgressReport], error) {
	sn, err := s.session(ctx, in.ID)
	if err != nil {
		return nil, problem(err)
	}
	r, err := sn.Egress(ctx)
	if err != nil {
		return nil, problem(err)
	}
	return &body[engine.EgressReport]{r}, nil
}

func portOf(r *http.Request) (uint16, error) {
	n, err := strconv.ParseUint(r.PathValue("port"), 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("port %.20q: want 1 to 65535: %w", r.PathValue("port"), isolation.ErrInvalidArgument)
	}
	return uint16(n), nil
}

func (s *Server) dialPort(w http.ResponseWriter, r *http.Request) error {
	port, err := portOf(r)
	if err != nil {
		return err
	}
	if !strings.EqualFold(r.Header.Get("Upgrade"), api.TunnelProtocol) {
		return fmt.Errorf("want the header Upgrade: %s: %w", api.TunnelProtocol, isolation.ErrInvalidArgument)
	}
	sn, err := s.session(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	in, err := sn.DialPort(r.Context(), port)
	if err != nil {
		return err
	}
	out, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		in.Close()
		return err
	}
	// Its client connects anew to the next daemon.
	ctx, cancel := forward.Until(context.WithoutCancel(r.Context()), s.config.Stopping)
	defer cancel()
	context.AfterFunc(ctx, func() {
		in.Close()
		out.Close()
	})
	_, err = fmt.Fprintf(out, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", api.TunnelProtocol)
	if err == nil {
		duplex.Join(duplex.Read(out, bufio.NewReader(buf)), in)
	}
	return nil
}

// proxyPort passes a request on. Host and client are the sandbox's to see; what
// authenticates the client is not.
func (s *Server) proxyPort(w http.ResponseWriter, r *http.Request) error {
	port, err := portOf(r)
	if err != nil {
		return err
	}
	// If-Match is for the program behind the port.
	sn, err := s.config.Sessions.Get(caller(r.Context()).Tenant, r.PathValue("id"))
	if err != nil {
		return err
	}
	base := fmt.Sprintf("/v1/sandboxes/%s/ports/%d", r.PathValue("id"), port)
	path := r.URL.EscapedPath()
	for range 6 { // as many slashes as are before what is behind the port
		_, path, _ = strings.Cut(path, "/")
	}
	forward.HTTP(w, r, sn, port, forward.Config{Base: base, Path: "/" + path, Stopping: s.config.Stopping, Fail: writeProblem, Logger: s.config.Logger})
	return nil
}
