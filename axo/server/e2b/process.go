package e2b

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/axocoatl/isolation"
	pb "github.com/axocoatl/isolation/axo/server/e2b/internal/processpb"
	"github.com/axocoatl/isolation/axo/server/forward"
	"github.com/axocoatl/isolation/axo/session"
)

// process has the programs of a sandbox.
type process struct{ s *Server }

// A program's id is p-PID or p-PID-TAG: so both are known after the daemon's restart.
// The pid is a number by which clients find the program, and not the one that it has
// in its sandbox.
const maxPID = 1 << 22

func pidOf(exec string) uint32 {
	rest, ok := strings.CutPrefix(exec, "p-")
	number, _, _ := strings.Cut(rest, "-")
	n, err := strconv.ParseUint(number, 10, 32)
	if !ok || err != nil {
		return 0
	}
	return uint32(n)
}

func tagOf(exec string) *string {
	if parts := strings.SplitN(exec, "-", 3); len(parts) == 3 && parts[0] == "p" {
		return &parts[2]
	}
	return nil
}

func newExecID(tag *string) string {
	id := fmt.Sprintf("p-%d", 2+rand.IntN(maxPID-2))
	if tag != nil && *tag != "" {
		id += "-" + *tag
	}
	return id
}

// find returns a program that runs.
func (p process) find(ctx context.Context, sel *pb.ProcessSelector) (*session.Exec, error) {
	list, err := boxOf(ctx).Execs(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		pid, tag := pidOf(e.ID()), tagOf(e.ID())
		switch x := sel.GetSelector().(type) {
		case *pb.ProcessSelector_Pid:
			if pid == 0 || pid != x.Pid {
				continue
			}
		case *pb.ProcessSelector_Tag:
			if tag == nil || *tag != x.Tag {
				continue
			}
		default:
			return nil, fmt.Errorf("no program is named: want a pid or a tag: %w", isolation.ErrInvalidArgument)
		}
		if e.Info().Running {
			return e, nil
		}
	}
	return nil, fmt.Errorf("no program of this pid or tag runs: %w", isolation.ErrNotFound)
}

func (p process) List(ctx context.Context, _ *connect.Request[pb.ListRequest]) (*connect.Response[pb.ListResponse], error) {
	list, err := boxOf(ctx).Execs(ctx)
	if err != nil {
		return nil, rpcError(err)
	}
	out := &pb.ListResponse{}
	for _, e := range list {
		i := e.Info()
		if !i.Running || pidOf(i.ID) == 0 || len(i.Process.Args) == 0 {
			continue
		}
		c := &pb.ProcessConfig{Cmd: valid(i.Process.Args[0]), Envs: map[string]string{}, Cwd: &i.Process.Cwd}
		for _, a := range i.Process.Args[1:] {
			c.Args = append(c.Args, valid(a))
		}
		for _, kv := range i.Process.Env {
			k, v, _ := strings.Cut(kv, "=")
			c.Envs[valid(k)] = valid(v)
		}
		out.Processes = append(out.Processes, &pb.ProcessInfo{Config: c, Pid: pidOf(i.ID), Tag: tagOf(i.ID)})
	}
	return connect.NewResponse(out), nil
}

// valid is text as the wire can have it.
func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// env is a program's: what E2B sets, the sandbox's, the program's own, the later
// before the earlier.
func (b *box) env(own map[string]string) []string {
	m := map[string]string{"E2B_SANDBOX": "true", "E2B_SANDBOX_ID": b.ID(), "E2B_TEMPLATE_ID": b.Labels()[labelTemplate]}
	if b.Info().Spec.Root.IsZero() { // what an image has to say of it, it says itself
		m["PATH"], m["HOME"], m["USER"], m["LOGNAME"], m["SHELL"] = "/usr/local/bin:/usr/bin:/bin", b.home, "user", "user", "/bin/bash"
		if b.user == "root" {
			m["USER"], m["LOGNAME"] = "root", "root"
		}
	}
	_ = json.Unmarshal([]byte(b.Labels()[labelEnv]), &m) // it was made by create
	var out []string
	for k, v := range own {
		m[k] = v
	}
	for k, v := range m {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return out
}

// Start runs a program, and tells its output until it ends. It goes on when the client
// does not; only the client's deadline ends it.
func (p process) Start(ctx context.Context, req *connect.Request[pb.StartRequest], out *connect.ServerStream[pb.StartResponse]) error {
	b, m := boxOf(ctx), req.Msg
	if m.GetProcess().GetCmd() == "" {
		return rpcError(fmt.Errorf("no cmd: %w", isolation.ErrInvalidArgument))
	}
	spec := isolation.ProcessSpec{
		Args: append([]string{m.GetProcess().GetCmd()}, m.GetProcess().GetArgs()...), Env: b.env(m.GetProcess().GetEnvs()), User: b.owner(),
		Cwd: b.abs(m.GetProcess().GetCwd()),
	}
	if m.GetPty() != nil {
		spec.Terminal, spec.Size = true, sizeOf(m.GetPty())
	}
	if deadline, ok := ctx.Deadline(); ok {
		spec.Limits.Wall = max(time.Until(deadline), time.Millisecond)
	}
	e, err := b.start(ctx, spec, m.Tag, m.Stdin == nil || m.GetStdin() || spec.Terminal)
	if err != nil {
		if errors.Is(err, isolation.ErrNotFound) {
			return connect.NewError(connect.CodeInvalidArgument, err) // the program, or the directory
		}
		return rpcError(err)
	}
	return p.tell(ctx, e, isolation.Offsets{}, req.Header(), func(ev *pb.ProcessEvent) error { return out.Send(&pb.StartResponse{Event: ev}) })
}

func (b *box) start(ctx context.Context, spec isolation.ProcessSpec, tag *string, stdin bool) (*session.Exec, error) {
	for try := 0; ; try++ {
		spec.ExecID = newExecID(tag)
		if err := isolation.ValidateID(spec.ExecID); err != nil {
			return nil, fmt.Errorf("tag: %w", err)
		}
		e, err := b.Exec(ctx, spec, stdin, true)
		if errors.Is(err, isolation.ErrAlreadyExists) && try < 3 {
			continue // the number was another's
		}
		return e, err
	}
}

func sizeOf(p *pb.PTY) isolation.TerminalSize {
	return isolation.TerminalSize{Rows: uint16(min(p.GetSize().GetRows(), 1<<16-1)), Cols: uint16(min(p.GetSize().GetCols(), 1<<16-1))}
}

// Connect tells the output from now on.
func (p process) Connect(ctx context.Context, req *connect.Request[pb.ConnectRequest], out *connect.ServerStream[pb.ConnectResponse]) error {
	e, err := p.find(ctx, req.Msg.GetProcess())
	if err != nil {
		return rpcError(err)
	}
	i := e.Info()
	from := isolation.Offsets{Stdout: i.Stdout.To, Stderr: i.Stderr.To}
	return p.tell(ctx, e, from, req.Header(), func(ev *pb.ProcessEvent) error { return out.Send(&pb.ConnectResponse{Event: ev}) })
}

// every is how often a client wants a sign of life.
func every(h http.Header) time.Duration {
	n, err := strconv.Atoi(h.Get("Keepalive-Ping-Interval"))
	if err != nil || n < 1 || n > 3600 {
		n = 90
	}
	return time.Duration(n) * time.Second
}

var errStopping = fmt.Errorf("the daemon is about to end: %w", isolation.ErrUnavailable)

// tell sends a program's pid, its output and its end.
func (p process) tell(ctx context.Context, e *session.Exec, from isolation.Offsets, h http.Header, send func(*pb.ProcessEvent) error) error {
	defer e.Unfollow()
	ctx, cancel := forward.Until(ctx, p.s.config.Stopping)
	defer cancel()
	var mu sync.Mutex // output and signs of life come from two goroutines
	event := func(ev *pb.ProcessEvent) error {
		mu.Lock()
		defer mu.Unlock()
		return send(ev)
	}
	if err := event(&pb.ProcessEvent{Event: &pb.ProcessEvent_Start{Start: &pb.ProcessEvent_StartEvent{Pid: pidOf(e.ID())}}}); err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		tick := time.NewTicker(every(h))
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if event(&pb.ProcessEvent{Event: &pb.ProcessEvent_Keepalive{Keepalive: &pb.ProcessEvent_KeepAlive{}}}) != nil {
					cancel()
				}
			}
		}
	})
	terminal := e.Info().Process.Terminal
	err := e.Follow(ctx, from, func(s session.Stream, b []byte) error {
		d := &pb.ProcessEvent_DataEvent{}
		switch {
		case terminal:
			d.Output = &pb.ProcessEvent_DataEvent_Pty{Pty: b}
		case s == session.Stderr:
			d.Output = &pb.ProcessEvent_DataEvent_Stderr{Stderr: b}
		default:
			d.Output = &pb.ProcessEvent_DataEvent_Stdout{Stdout: b}
		}
		return event(&pb.ProcessEvent{Event: &pb.ProcessEvent_Data{Data: d}})
	})
	var exit isolation.Exit
	if err == nil {
		exit, err = e.Wait(ctx)
	}
	if err != nil {
		select {
		case <-p.s.config.Stopping:
			err = errStopping
		default:
		}
		return rpcError(err)
	}
	end, err := ended(exit)
	if err != nil {
		return err
	}
	return event(&pb.ProcessEvent{Event: &pb.ProcessEvent_End{End: end}})
}

// ended is how clients know an exit. What is none of the program's own is an error.
func ended(x isolation.Exit) (*pb.ProcessEvent_EndEvent, error) {
	switch x.Reason {
	case isolation.ReasonExited:
		end := &pb.ProcessEvent_EndEvent{ExitCode: int32(x.Code), Exited: true, Status: fmt.Sprintf("exit status %d", x.Code)}
		if x.Code != 0 {
			end.Error = &end.Status
		}
		return end, nil
	case isolation.ReasonTimeoutWall:
		return nil, connect.NewError(connect.CodeDeadlineExceeded, errors.New("the program was killed at the deadline of the request"))
	case isolation.ReasonCanceled, isolation.ReasonSandboxLost:
		return nil, connect.NewError(connect.CodeUnavailable, errors.New(x.String()))
	}
	end := &pb.ProcessEvent_EndEvent{ExitCode: -1, Status: valid(x.String())}
	if x.Reason == isolation.ReasonSignaled {
		end.Status = "signal: " + syscall.Signal(x.Signal).String()
	}
	end.Error = &end.Status
	return end, nil
}

func (p process) Update(ctx context.Context, req *connect.Request[pb.UpdateRequest]) (*connect.Response[pb.UpdateResponse], error) {
	e, err := p.find(ctx, req.Msg.GetProcess())
	if err == nil && req.Msg.GetPty() != nil {
		err = e.Resize(ctx, sizeOf(req.Msg.GetPty()))
	}
	if err != nil {
		return nil, rpcError(err)
	}
	return connect.NewResponse(&pb.UpdateResponse{}), nil
}

// give is the input of one message.
func (p process) give(ctx context.Context, e *session.Exec, in *pb.ProcessInput) error {
	terminal := e.Info().Process.Terminal
	var data []byte
	switch x := in.GetInput().(type) {
	case *pb.ProcessInput_Stdin:
		if terminal {
			return fmt.Errorf("the program has a terminal, which takes pty and not stdin: %w", isolation.ErrFailedPrecondition)
		}
		data = x.Stdin
	case *pb.ProcessInput_Pty:
		if !terminal {
			return fmt.Errorf("the program has no terminal: %w", isolation.ErrFailedPrecondition)
		}
		data = x.Pty
	default:
		return fmt.Errorf("neither stdin nor pty: %w", isolation.ErrInvalidArgument)
	}
	return p.write(ctx, e, data, false)
}

func (p process) write(ctx context.Context, e *session.Exec, data []byte, last bool) error {
	unlock, err := p.s.inputs.lock(ctx, boxOf(ctx).Instance()+e.ID())
	if err != nil {
		return err
	}
	defer unlock()
	return e.GiveStdin(ctx, bytes.NewReader(data), -1, last)
}

func (p process) SendInput(ctx context.Context, req *connect.Request[pb.SendInputRequest]) (*connect.Response[pb.SendInputResponse], error) {
	e, err := p.find(ctx, req.Msg.GetProcess())
	if err == nil {
		err = p.give(ctx, e, req.Msg.GetInput())
	}
	if err != nil {
		return nil, rpcError(err)
	}
	return connect.NewResponse(&pb.SendInputResponse{}), nil
}

func (p process) StreamInput(ctx context.Context, in *connect.ClientStream[pb.StreamInputRequest]) (*connect.Response[pb.StreamInputResponse], error) {
	var e *session.Exec
	for in.Receive() {
		var err error
		switch x := in.Msg().GetEvent().(type) {
		case *pb.StreamInputRequest_Start:
			e, err = p.find(ctx, x.Start.GetProcess())
		case *pb.StreamInputRequest_Data:
			if e == nil {
				err = fmt.Errorf("input before it is said for which program: %w", isolation.ErrFailedPrecondition)
			} else {
				err = p.give(ctx, e, x.Data.GetInput())
			}
		}
		if err != nil {
			return nil, rpcError(err)
		}
	}
	if err := in.Err(); err != nil && !errors.Is(err, io.EOF) {
		return nil, rpcError(err)
	}
	return connect.NewResponse(&pb.StreamInputResponse{}), nil
}

func (p process) CloseStdin(ctx context.Context, req *connect.Request[pb.CloseStdinRequest]) (*connect.Response[pb.CloseStdinResponse], error) {
	e, err := p.find(ctx, req.Msg.GetProcess())
	switch {
	case err != nil:
	case e.Info().Process.Terminal:
		err = fmt.Errorf("the input of a terminal ends with its EOF character: %w", isolation.ErrFailedPrecondition)
	default:
		err = p.write(ctx, e, nil, true)
	}
	if err != nil {
		return nil, rpcError(err)
	}
	return connect.NewResponse(&pb.CloseStdinResponse{}), nil
}

func (p process) SendSignal(ctx context.Context, req *connect.Request[pb.SendSignalRequest]) (*connect.Response[pb.SendSignalResponse], error) {
	sig := isolation.SIGKILL
	switch req.Msg.GetSignal() {
	case pb.Signal_SIGNAL_SIGKILL:
	case pb.Signal_SIGNAL_SIGTERM:
		sig = isolation.SIGTERM
	default:
		return nil, rpcError(fmt.Errorf("signal %v: want SIGTERM or SIGKILL: %w", req.Msg.GetSignal(), isolation.ErrInvalidArgument))
	}
	e, err := p.find(ctx, req.Msg.GetProcess())
	if err == nil {
		err = e.Kill(ctx, sig)
	}
	if err != nil {
		return nil, rpcError(err)
	}
	return connect.NewResponse(&pb.SendSignalResponse{}), nil
}

// abs is a path of a client's: a relative one begins at home.
func (b *box) abs(name string) string {
	switch {
	case name == "~" || strings.HasPrefix(name, "~/"):
		name = b.home + name[1:]
	case !strings.HasPrefix(name, "/"):
		name = b.home + "/" + name
	}
	return path.Clean(name)
}
