package client

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
)

// undoTimeout bounds what is done after a caller gave up.
const undoTimeout = 30 * time.Second

// sandbox is one of the daemon's.
type sandbox struct {
	d        *Driver
	id, path string
	instance string   // none but it is meant
	has      []string // abilities
	detached bool

	mu   sync.Mutex
	gone bool                  // guarded by mu
	live map[*process]struct{} // guarded by mu
	// giving are the programs that get input from here; guarded by mu
	giving map[string]struct{}

	let     chan struct{} // closed when it is not held any more
	letOnce sync.Once
}

var (
	_ isolation.Sandbox     = (*sandbox)(nil)
	_ isolation.Attacher    = (*sandbox)(nil)
	_ isolation.Pauser      = (*sandbox)(nil)
	_ isolation.Files       = (*sandbox)(nil)
	_ isolation.Directories = (*sandbox)(nil)
	_ isolation.Watcher     = (*sandbox)(nil)
	_ isolation.Stats       = (*sandbox)(nil)
	_ isolation.PortDialer  = (*sandbox)(nil)
)

// ID implements isolation.Sandbox.
func (s *sandbox) ID() string { return s.id }

func (s *sandbox) fail(op string, o isolation.Outcome, err error) error {
	return s.d.fail(op, s.id, o, err)
}

func (s *sandbox) there() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return fmt.Errorf("sandbox %s: %w", s.id, isolation.ErrNotFound)
	}
	return nil
}

// match has a request reach this sandbox, and none that has its id later.
func (s *sandbox) match() http.Header {
	if s.instance == "" {
		return http.Header{}
	}
	return http.Header{"If-Match": {`"` + s.instance + `"`}}
}

func (s *sandbox) send(ctx context.Context, method, path string, query url.Values, in io.Reader, header http.Header) (*http.Response, error) {
	h := s.match()
	for k, v := range header {
		h[k] = v
	}
	return s.d.remote.send(ctx, method, s.path+path, query, in, h)
}

// holdFor is how long a sandbox that is to go with this process stays when nobody
// holds it: this process has ended, or cannot reach the daemon.
const holdFor = 15 * time.Second

// hold has the daemon know that this process is there, until the sandbox is deleted.
func (s *sandbox) hold() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-s.let:
			cancel()
		case <-ctx.Done():
		}
	}()
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		resp, err := s.send(ctx, "GET", "/hold", nil, nil, nil)
		if err == nil {
			wait = 10 * time.Millisecond
			_, _ = io.Copy(io.Discard, resp.Body) // it ends when the daemon does
			resp.Body.Close()
		}
		if ctx.Err() != nil || errors.Is(err, isolation.ErrNotFound) {
			return
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

func (s *sandbox) unhold() { s.letOnce.Do(func() { close(s.let) }) }

// State implements isolation.Sandbox.
func (s *sandbox) State(ctx context.Context) (isolation.State, error) {
	if err := s.there(); err != nil {
		return isolation.State{}, s.fail("state", "", err)
	}
	var out api.Sandbox
	if err := s.d.remote.call(ctx, "GET", s.path, nil, s.match(), nil, &out); err != nil {
		return isolation.State{}, s.fail("state", "", err)
	}
	st := isolation.State{ID: s.id, Execs: out.Execs, Created: out.Created}
	switch out.Status {
	case api.StatusCreating:
		st.Status = isolation.StatusCreating
	case api.StatusPaused:
		st.Status = isolation.StatusPaused
	case api.StatusRunning:
		st.Status = isolation.StatusCreated
		if len(out.Execs) > 0 {
			st.Status = isolation.StatusRunning
		}
	case api.StatusUnknown:
		return isolation.State{}, s.fail("state", "", fmt.Errorf("%s: %w", out.Reason, isolation.ErrUnavailable))
	default:
		st.Status = isolation.StatusStopped
	}
	return st, nil
}

// Exec implements isolation.Sandbox.
func (s *sandbox) Exec(ctx context.Context, p isolation.ProcessSpec, stdio isolation.Stdio) (isolation.Process, error) {
	if err := s.there(); err != nil {
		return nil, s.fail("exec", isolation.NotStarted, err)
	}
	if err := context.Cause(ctx); err != nil {
		return nil, s.fail("exec", isolation.NotStarted, err)
	}
	if p.ExecID == "" {
		var b [10]byte
		_, _ = rand.Read(b[:]) // it never fails
		p.ExecID = "x-" + hex.EncodeToString(b[:])
	}
	if err := isolation.ValidateID(p.ExecID); err != nil {
		return nil, s.fail("exec", isolation.NotStarted, err)
	}
	in := api.Exec{Process: p, Stdin: stdio.Stdin != nil}
	if !allText(p.Args) {
		in.RawArgs, in.Process.Args = raw(p.Args), []string{"raw"}
	}
	if !allText(p.Env) {
		in.RawEnv, in.Process.Env = raw(p.Env), nil
	}
	b, err := json.Marshal(in)
	if err != nil {
		return nil, s.fail("exec", isolation.NotStarted, err)
	}
	pr, err := s.open(ctx, p.ExecID, func(ctx context.Context) (*http.Response, error) {
		return s.send(ctx, "POST", "/execs", nil, bytes.NewReader(b), http.Header{
			"Content-Type": {"application/json"}, "Accept": {api.StreamType},
		})
	}, isolation.Offsets{}, stdio)
	if err == nil && p.Terminal {
		return terminal{pr}, nil
	} else if err == nil {
		return pr, nil
	}
	if isolation.Class(err) != nil && !errors.Is(err, isolation.ErrUnavailable) {
		return nil, s.fail("exec", isolation.NotStarted, err) // the daemon's refusal
	}
	return nil, s.fail("exec", s.undoExec(ctx, p.ExecID, err), err)
}

func allText(list []string) bool {
	for _, v := range list {
		if !utf8.ValidString(v) {
			return false
		}
	}
	return true
}

func raw(list []string) [][]byte {
	out := make([][]byte, len(list))
	for i, v := range list {
		out[i] = []byte(v)
	}
	return out
}

// undoExec ends a program whose start was not answered, if it has one, and says
// whether it may have run.
func (s *sandbox) undoExec(ctx context.Context, id string, err error) isolation.Outcome {
	if o := isolation.OutcomeOf(err); o == isolation.NotStarted {
		return o
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	err = s.do(undo, "kill", "POST", "/execs/"+id+"/kill", nil, api.Kill{}, nil)
	if errors.Is(err, isolation.ErrNotFound) {
		return isolation.NotStarted
	}
	return isolation.OutcomeUnknown
}

// Attach implements isolation.Attacher.
func (s *sandbox) Attach(ctx context.Context, execID string, from isolation.Offsets, stdio isolation.Stdio) (isolation.Process, error) {
	fail := func(err error) (isolation.Process, error) { return nil, s.fail("attach", "", err) }
	if err := s.there(); err != nil {
		return fail(err)
	}
	if isolation.ValidateID(execID) != nil {
		return fail(fmt.Errorf("program %.80q: %w", execID, isolation.ErrNotFound))
	}
	if from.Stdout < 0 || from.Stderr < 0 {
		return fail(fmt.Errorf("negative offset: %w", isolation.ErrInvalidArgument))
	}
	if stdio.Stdin != nil {
		var info api.Process
		if err := s.do(ctx, "attach", "GET", "/execs/"+execID, nil, nil, &info); err != nil {
			return fail(err)
		}
		switch in := info.Stdin; {
		case !in.Open:
			return fail(fmt.Errorf("program %s takes no input: %w", execID, isolation.ErrFailedPrecondition))
		case in.Busy || s.gives(execID):
			return fail(fmt.Errorf("somebody else gives program %s input: %w", execID, isolation.ErrFailedPrecondition))
		case from.Stdin > in.To && in.To >= 0:
			return fail(fmt.Errorf("input from byte %d, when %d were given: %w", from.Stdin, in.To, isolation.ErrInvalidArgument))
		}
	}
	p, err := s.open(ctx, execID, s.following(execID, from), from, stdio)
	if err != nil {
		return fail(err)
	}
	return p, nil
}

func (s *sandbox) gives(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.giving[id]
	return ok
}

// following makes the request that goes on with a program's output.
func (s *sandbox) following(id string, from isolation.Offsets) func(context.Context) (*http.Response, error) {
	return func(ctx context.Context) (*http.Response, error) {
		return s.send(ctx, "GET", "/execs/"+id+"/stream", url.Values{
			"stdout": {strconv.FormatInt(from.Stdout, 10)}, "stderr": {strconv.FormatInt(from.Stderr, 10)},
		}, nil, http.Header{"Accept": {api.StreamType}})
	}
}

// Delete implements isolation.Sandbox.
func (s *sandbox) Delete(ctx context.Context) error {
	if err := s.delete(ctx); err != nil {
		return s.fail("delete", "", err)
	}
	return nil
}

func (s *sandbox) delete(ctx context.Context) error {
	s.mu.Lock()
	gone := s.gone
	s.mu.Unlock()
	if gone {
		return nil
	}
	// It is begun even if ctx has ended.
	begun := make(chan error, 1)
	go func() {
		own, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*undoTimeout)
		defer cancel()
		err := s.d.remote.call(own, "DELETE", s.path, nil, s.match(), nil, nil)
		if errors.Is(err, isolation.ErrNotFound) {
			err = nil
		}
		if err == nil {
			s.mu.Lock()
			s.gone = true
			s.mu.Unlock()
			s.letGo(nil)
			s.unhold()
			s.d.forget(s)
		}
		begun <- err
	}()
	select {
	case err := <-begun:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// letGo has the processes that still run end: for a reason, or as what a deleted
// sandbox's are.
func (s *sandbox) letGo(why error) {
	s.mu.Lock()
	live := make([]*process, 0, len(s.live))
	for p := range s.live {
		live = append(live, p)
	}
	s.mu.Unlock()
	for _, p := range live {
		p.letGo(why)
	}
}

// Pause implements isolation.Pauser.
func (s *sandbox) Pause(ctx context.Context) error { return s.post(ctx, "pause") }

// Resume implements isolation.Pauser.
func (s *sandbox) Resume(ctx context.Context) error { return s.post(ctx, "resume") }

func (s *sandbox) post(ctx context.Context, what string) error {
	return s.do(ctx, what, "POST", "/"+what, nil, nil, nil)
}

func (s *sandbox) do(ctx context.Context, op, method, path string, query url.Values, in, out any) error {
	err := s.there()
	if err == nil {
		err = s.d.remote.call(ctx, method, s.path+path, query, s.match(), in, out)
	}
	if err != nil {
		return s.fail(op, "", err)
	}
	return nil
}

// Stats implements isolation.Stats.
func (s *sandbox) Stats(ctx context.Context) (u isolation.Usage, err error) {
	return u, s.do(ctx, "stats", "GET", "/stats", nil, nil, &u)
}

// DialPort implements isolation.PortDialer.
func (s *sandbox) DialPort(ctx context.Context, port uint16) (net.Conn, error) {
	err := s.there()
	if err == nil {
		var c net.Conn
		if c, err = s.d.remote.upgrade(ctx, s.path+"/ports/"+strconv.Itoa(int(port)), api.TunnelProtocol, s.match()); err == nil {
			return c, nil
		}
	}
	return nil, s.fail("dial port", "", err)
}

func named(name string) url.Values { return url.Values{"path": {name}} }

// Stat implements isolation.Files.
func (s *sandbox) Stat(ctx context.Context, name string) (fs.FileInfo, error) {
	var f api.File
	if err := s.do(ctx, "stat", "GET", "/files/stat", named(name), nil, &f); err != nil {
		return nil, err
	}
	return f, nil
}

// ReadFile implements isolation.Files.
func (s *sandbox) ReadFile(ctx context.Context, name string) (io.ReadCloser, error) {
	err := s.there()
	if err != nil {
		return nil, s.fail("read", "", err)
	}
	resp, err := s.send(ctx, "GET", "/files", named(name), nil, nil)
	if err != nil {
		return nil, s.fail("read", "", err)
	}
	return resp.Body, nil
}

// WriteFile implements isolation.Files.
func (s *sandbox) WriteFile(ctx context.Context, name string, mode fs.FileMode, r io.Reader) error {
	q := named(name)
	q.Set("mode", strconv.FormatUint(uint64(mode.Perm()), 8))
	err := s.there()
	if err == nil {
		var resp *http.Response
		// The reader's own error is what the caller wants to know.
		src := &source{r: r}
		if resp, err = s.send(ctx, "PUT", "/files", q, src, http.Header{"Content-Type": {"application/octet-stream"}}); err == nil {
			resp.Body.Close()
		} else if src.failed() != nil {
			err = src.failed()
		}
	}
	if err != nil {
		return s.fail("write", "", err)
	}
	return nil
}

// source remembers why its reader failed.
type source struct {
	r   io.Reader
	mu  sync.Mutex
	err error // guarded by mu
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.mu.Lock()
		s.err = err
		s.mu.Unlock()
	}
	return n, err
}

func (s *source) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Remove implements isolation.Files.
func (s *sandbox) Remove(ctx context.Context, name string) error {
	return s.do(ctx, "remove", "DELETE", "/files", named(name), nil, nil)
}

// RemoveAll implements isolation.Directories.
func (s *sandbox) RemoveAll(ctx context.Context, name string) error {
	q := named(name)
	q.Set("recursive", "true")
	return s.do(ctx, "remove", "DELETE", "/files", q, nil, nil)
}

// ReadDir implements isolation.Directories.
func (s *sandbox) ReadDir(ctx context.Context, name string) ([]fs.FileInfo, error) {
	var l api.Listing
	if err := s.do(ctx, "list", "GET", "/files/list", named(name), nil, &l); err != nil {
		return nil, err
	}
	out := make([]fs.FileInfo, len(l.Files))
	for i, f := range l.Files {
		out[i] = f
	}
	if l.Truncated {
		return out, s.fail("list", "", fmt.Errorf("there are more files than a listing takes: %w", isolation.ErrResourceExhausted))
	}
	return out, nil
}

// Mkdir implements isolation.Directories.
func (s *sandbox) Mkdir(ctx context.Context, name string, mode fs.FileMode) error {
	return s.do(ctx, "mkdir", "POST", "/files/mkdir", nil, api.Mkdir{Path: name, Mode: uint32(mode.Perm())}, nil)
}

// Rename implements isolation.Directories.
func (s *sandbox) Rename(ctx context.Context, from, to string) error {
	return s.do(ctx, "rename", "POST", "/files/rename", nil, api.Rename{From: from, To: to}, nil)
}

// Watch implements isolation.Watcher.
func (s *sandbox) Watch(ctx context.Context, name string, all bool) (<-chan isolation.FileEvent, error) {
	q := named(name)
	q.Set("recursive", strconv.FormatBool(all))
	err := s.there()
	if err != nil {
		return nil, s.fail("watch", "", err)
	}
	resp, err := s.send(ctx, "GET", "/files/watch", q, nil, nil)
	if err != nil {
		return nil, s.fail("watch", "", err)
	}
	out := make(chan isolation.FileEvent)
	go func() {
		defer close(out)
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			data, ok := strings.CutPrefix(lines.Text(), "data: ")
			var e isolation.FileEvent
			if !ok || json.Unmarshal([]byte(data), &e) != nil {
				continue
			}
			select {
			case out <- e:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}
