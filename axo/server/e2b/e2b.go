// Package e2b is an interface to the daemon's sandboxes that E2B's clients speak: its
// SDKs work with it unchanged. It is two things on one address: the control plane
// (JSON, with the daemon's keys), and what E2B calls envd, the programs and files of
// each sandbox (Connect, and plain HTTP for the content of files).
package e2b

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/build"
	"github.com/axocoatl/isolation/axo/internal/asked"
	"github.com/axocoatl/isolation/axo/internal/wholefile"
	"github.com/axocoatl/isolation/axo/server/e2b/internal/filesystempb"
	"github.com/axocoatl/isolation/axo/server/e2b/internal/processpb"
	"github.com/axocoatl/isolation/axo/server/forward"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/axo/telemetry"
	"github.com/axocoatl/isolation/axo/tenant"
	"github.com/axocoatl/isolation/image"
	"github.com/axocoatl/isolation/internal/form"
)

// envdVersion is what sandboxes claim to be. Clients ask for what it has and no more:
// 0.6.2 would have metadata of files, which are not kept here.
const envdVersion = "0.5.7"

// envdPort is where clients believe that programs and files are.
const envdPort = 49983

// trafficHeader has the token of a sandbox whose ports are not for everybody.
const trafficHeader = "e2b-traffic-access-token"

// Images finds an image by its name; *image.Store does.
type Images interface {
	Get(ref string) (image.Image, error)
}

// Config makes a Server.
type Config struct {
	Sessions *session.Manager
	// Images are the templates beside "base"; nil: there are none.
	Images Images
	// Templates are those that clients have built; nil: they cannot.
	Templates *build.Templates
	// Find returns whose a key is: *tenant.Keys has it.
	Find func(secret string) (tenant.Key, error)
	// StateDir keeps the secret that the sandboxes' tokens are made of.
	StateDir string
	// Domain is the one below which sandboxes have names, PORT-ID.Domain; a port may
	// follow it. Empty: they have none, and clients name them in a header.
	Domain string
	// Hosts are names that requests may have in their Host header, beside those of
	// the loopback address and of Domain.
	Hosts []string
	// MaxTimeout is the longest time that a sandbox may be asked to live; Keep is how
	// long a paused one is kept.
	MaxTimeout, Keep time.Duration
	// Draining reports whether the server is about to end; nil: never.
	Draining func() bool
	// Stopping is closed when streams are to end; nil: never.
	Stopping <-chan struct{}
	Logger   *slog.Logger
}

// Server is the handler of both planes.
type Server struct {
	config   Config
	secret   []byte
	control  *http.ServeMux
	envd     *http.ServeMux
	patterns []string // of what takes a key
	inputs   inputs
	watchers watchers
	meters   meters
}

// maxMessage bounds a message of a client, maxBody one of the control plane.
const (
	maxMessage = 16 << 20
	maxBody    = 1 << 20
)

// New makes a server. Close it.
func New(c Config) (*Server, error) {
	if c.Draining == nil {
		c.Draining = func() bool { return false }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	secret, err := openSecret(filepath.Join(c.StateDir, "e2b.secret"))
	if err != nil {
		return nil, fmt.Errorf("secret of the sandboxes' tokens: %w", err)
	}
	s := &Server{config: c, secret: secret, control: http.NewServeMux(), envd: http.NewServeMux()}
	s.inputs.m = map[string]*input{}
	s.watchers.m = map[string]*watcher{}
	s.meters.m = map[string]*meter{}
	s.meters.ctx, s.meters.cancel = context.WithCancel(context.Background())
	s.registerControl()
	limit := connect.WithHandlerOptions(connect.WithReadMaxBytes(maxMessage), connect.WithInterceptors(faults{}))
	path, h := processpb.NewProcessHandler(process{s}, limit)
	s.envd.Handle(path, h)
	path, h = filesystempb.NewFilesystemHandler(filesystem{s}, limit)
	s.envd.Handle(path, h)
	s.envd.HandleFunc("GET /files", s.download)
	s.envd.HandleFunc("POST /files", s.upload)
	s.envd.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, http.StatusNotFound, fmt.Sprintf("%s %.80s is not served", r.Method, r.URL.Path))
	})
	return s, nil
}

// Close ends the watchers that nobody has removed, and measuring.
func (s *Server) Close() {
	s.watchers.close()
	s.meters.close()
}

// openSecret reads what tokens are made of, or makes it the first time: so those that
// clients have are good after the daemon's restart.
func openSecret(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		b = make([]byte, 32)
		_, _ = rand.Read(b) // it never fails
		err = wholefile.Write(path, b, 0o600)
	}
	if err == nil && len(b) != 32 {
		err = fmt.Errorf("%s has %d bytes, want 32: remove it, and sandboxes get other tokens", path, len(b))
	}
	return b, err
}

// token is what opens one sandbox's programs and files, or with the purpose "traffic"
// its ports. It is another for one that has the same id later.
func (s *Server) token(sn *session.Session, purpose string) string {
	h := hmac.New(sha256.New, s.secret)
	fmt.Fprintf(h, "%s\x00%s", purpose, sn.Instance())
	return hex.EncodeToString(h.Sum(nil))
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// boxName is the name of a sandbox's port.
var boxName = form.Of(`^([0-9]{1,5})-([a-z0-9]{1,40})$`)

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	host := bare(r.Host)
	if domain := bare(s.config.Domain); domain != "" {
		if name, ok := strings.CutSuffix(host, "."+domain); ok {
			if m := boxName().FindStringSubmatch(name); m != nil {
				s.inside(w, r, m[2], m[1])
				return
			}
			if name != "api" && name != "sandbox" {
				http.Error(w, "the Host header names no sandbox", http.StatusMisdirectedRequest)
				return
			}
			host = "localhost"
		}
	}
	// A page in a browser could send requests by a name of its own that it has point
	// here.
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) && !slices.Contains(s.config.Hosts, host) {
		http.Error(w, "the Host header names another host than this one", http.StatusMisdirectedRequest)
		return
	}
	if id := r.Header.Get("E2b-Sandbox-Id"); id != "" {
		s.inside(w, r, id, r.Header.Get("E2b-Sandbox-Port"))
		return
	}
	if r.URL.Path == "/files" {
		telemetry.CallOf(r.Context()).SetRoute("envd " + routeOf(s.envd, r))
		s.signed(w, r)
		return
	}
	telemetry.CallOf(r.Context()).SetRoute(routeOf(s.control, r))
	s.control.ServeHTTP(w, r)
}

// routeOf is the pattern that a request is answered by; of an RPC it is the method.
func routeOf(mux *http.ServeMux, r *http.Request) string {
	_, pattern := mux.Handler(r)
	if procedures()[r.URL.Path] {
		return r.URL.Path
	}
	return pattern
}

// procedures are the paths of all RPCs.
var procedures = sync.OnceValue(func() map[string]bool {
	all := map[string]bool{}
	for _, f := range []protoreflect.FileDescriptor{processpb.File_process_process_proto, filesystempb.File_filesystem_filesystem_proto} {
		for i := range f.Services().Len() {
			service := f.Services().Get(i)
			for j := range service.Methods().Len() {
				all["/"+string(service.FullName())+"/"+string(service.Methods().Get(j).Name())] = true
			}
		}
	}
	return all
})

// bare is a host without its port.
func bare(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.ToLower(strings.Trim(host, "[]"))
}

// inside answers what is for a sandbox.
func (s *Server) inside(w http.ResponseWriter, r *http.Request, id, port string) {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		writeError(w, http.StatusBadRequest, fmt.Sprintf("port %.20q: want 1 to 65535", port))
		return
	}
	sn := s.find(id)
	var status api.Status
	if sn != nil {
		call := telemetry.CallOf(r.Context())
		call.Set(telemetry.FieldTenant, sn.Tenant())
		call.Set(telemetry.FieldSandbox, sn.ID())
		if n != envdPort {
			call.SetRoute("port")
		}
		status = s.awake(r, sn, uint16(n))
	}
	switch {
	case status == api.StatusPaused && n != envdPort:
		writeProblem(w, r, portProblem{SandboxID: sn.ID(), Message: "The sandbox is paused", Code: http.StatusConflict, CanAutoResume: new(bool)})
	case status != api.StatusRunning:
		// What clients take for a sandbox that is gone, or paused.
		writeProblem(w, r, portProblem{SandboxID: fmt.Sprintf("%.80s", id), Message: "The sandbox was not found", Code: http.StatusBadGateway})
	case n != envdPort:
		s.forward(w, r, sn, uint16(n))
	default:
		s.serveEnvd(w, r, sn)
	}
}

// awake returns what a sandbox is. One that is paused, and whose maker wanted that, goes
// on for a request that may use it, for its timeout or the default, whichever is longer.
func (s *Server) awake(r *http.Request, sn *session.Session, port uint16) api.Status {
	status := sn.Info().Status
	seconds, err := strconv.ParseInt(sn.Labels()[labelResume], 10, 64)
	if status != api.StatusPaused || err != nil || r.URL.Path == "/health" && port == envdPort || !s.mayUse(r, sn, port) {
		return status
	}
	seconds = min(max(seconds, defaultTimeout), int64(s.config.MaxTimeout/time.Second))
	if err = s.prolong(r.Context(), sn, seconds, false); err == nil {
		err = sn.Resume(r.Context())
	}
	if err != nil {
		s.config.Logger.WarnContext(r.Context(), "resume a sandbox for a request", "error", err)
	}
	return sn.Info().Status
}

// mayUse reports whether a request has what opens its port of a sandbox.
func (s *Server) mayUse(r *http.Request, sn *session.Session, port uint16) bool {
	if port == envdPort {
		return same(r.Header.Get("X-Access-Token"), s.token(sn, "envd")) || r.URL.Path == "/files" && checkSignature(r, s.token(sn, "envd"), time.Now()) == nil
	}
	return sn.Labels()[labelPrivate] == "" || same(r.Header.Get(trafficHeader), s.token(sn, "traffic"))
}

func (s *Server) serveEnvd(w http.ResponseWriter, r *http.Request, sn *session.Session) {
	telemetry.CallOf(r.Context()).SetRoute("envd " + routeOf(s.envd, r))
	if r.URL.Path == "/health" {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if t := r.Header.Get("X-Access-Token"); t != "" || r.URL.Path != "/files" {
		if !same(t, s.token(sn, "envd")) {
			writeError(w, http.StatusUnauthorized, "no access token, or one that is not this sandbox's")
			return
		}
	} else if err := checkSignature(r, s.token(sn, "envd"), time.Now()); err != nil {
		writeError(w, http.StatusUnauthorized, err.Error())
		return
	}
	user, _, _ := r.BasicAuth()
	b := boxFor(sn, user)
	// Its token is what the maker was given: what is done by it is done by that key.
	ctx := asked.By(r.Context(), sn.Labels()[labelKey])
	telemetry.CallOf(ctx).Set(telemetry.FieldKey, asked.Key(ctx))
	s.envd.ServeHTTP(w, r.WithContext(context.WithValue(ctx, boxKey{}, b)))
}

// box is the sandbox that a request is for, and as whom.
type box struct {
	*session.Session
	user string
	home string
}

func boxFor(sn *session.Session, user string) *box {
	b := &box{sn, user, homeOf(sn)}
	if user == "root" {
		b.home = "/root"
	}
	return b
}

type boxKey struct{}

func boxOf(ctx context.Context) *box { return ctx.Value(boxKey{}).(*box) } // every handler that asks is behind serveEnvd

// owner is the user as the sandbox is to be told; nothing is its own.
func (b *box) owner() string {
	if b.user == "user" {
		return ""
	}
	return b.user
}

// find returns the sandbox of this interface that has an id. They are long and random;
// who chose one for his own that is another's gets, and does, nothing with it.
func (s *Server) find(id string) *session.Session {
	var found *session.Session
	for _, sn := range s.config.Sessions.WithID(id) {
		if sn.Labels()[labelTemplate] == "" {
			continue
		}
		if found != nil {
			return nil
		}
		found = sn
	}
	return found
}

// forward passes a request on to a port.
func (s *Server) forward(w http.ResponseWriter, r *http.Request, sn *session.Session, port uint16) {
	if !s.mayUse(r, sn, port) {
		what := "Token header '" + trafficHeader + "' is missing"
		if r.Header.Get(trafficHeader) != "" {
			what = "Provided token in header '" + trafficHeader + "' is invalid"
		}
		writeProblem(w, r, portProblem{SandboxID: sn.ID(), Message: "Sandbox is secured with traffic access token. " + what, Code: http.StatusForbidden})
		return
	}
	forward.HTTP(w, r, sn, port, forward.Config{
		Path: r.URL.EscapedPath(), Stopping: s.config.Stopping, Logger: s.config.Logger,
		Secrets: []string{"X-Access-Token", trafficHeader, "E2b-Sandbox-Id", "E2b-Sandbox-Port"},
		Fail: func(w http.ResponseWriter, err error) {
			if errors.Is(err, isolation.ErrUnsupported) {
				writeError(w, http.StatusNotImplemented, err.Error())
				return
			}
			writeProblem(w, r, portProblem{SandboxID: sn.ID(), Message: "The sandbox is running but port is not open", Port: port, Code: http.StatusBadGateway})
		},
	})
}

// inputs has one caller at a time give a program input.
type inputs struct {
	mu sync.Mutex
	m  map[string]*input // of programs to which somebody gives some; guarded by mu
}

type input struct {
	turn  chan struct{}
	users int
}

// lock waits for the turn; call what it returns.
func (i *inputs) lock(ctx context.Context, key string) (func(), error) {
	i.mu.Lock()
	in := i.m[key]
	if in == nil {
		in = &input{turn: make(chan struct{}, 1)}
		i.m[key] = in
	}
	in.users++
	i.mu.Unlock()
	leave := func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		if in.users--; in.users == 0 {
			delete(i.m, key)
		}
	}
	select {
	case in.turn <- struct{}{}:
		return func() { <-in.turn; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}
