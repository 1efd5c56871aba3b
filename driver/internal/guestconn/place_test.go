package guestconn

import (
	"context"
	"io"
	"testing"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/guest/wire"
)

// lying is an engine whose sandboxes have a guest of a test's.
type lying struct {
	t     *testing.T
	guest func(l *liar)
}

func (lying) Name() string                                     { return "lying" }
func (lying) Features() isolation.Features                     { return isolation.Features{} }
func (lying) Probe(context.Context, *isolation.Features) error { return nil }
func (lying) Check(isolation.Spec) error                       { return nil }
func (lying) CheckProcess(isolation.ProcessSpec) error         { return nil }
func (lying) Close() error                                     { return nil }
func (e lying) Create(context.Context, string, isolation.Spec) (proc.Place, error) {
	request := func(p *proc.Process) (*wire.ExecMessage, error) { return &wire.ExecMessage{Args: p.Spec.Args}, nil }
	return &lyingPlace{Programs{Conn: lie(e.t, e.guest), Request: request}}, nil
}

type lyingPlace struct{ Programs }

func (p *lyingPlace) Kill(context.Context) error   { return p.Conn.Close() }
func (p *lyingPlace) Remove(context.Context) error { return p.Conn.Close() }
func (p *lyingPlace) Files() proc.Files            { return &Files{Conn: p.Conn} }

func lyingSandbox(t *testing.T, guest func(l *liar)) isolation.Sandbox {
	t.Helper()
	sb, err := proc.New(lying{t, guest}, 0).Create(t.Context(), "x", isolation.Spec{Requirement: isolation.Arbitrary})
	if err != nil {
		t.Fatal(err)
	}
	return sb
}

// TestDeleteIsNotHeldUp: a guest that never starts a program, and never answers a
// question about a file, does not keep its sandbox from being deleted, whatever
// patience those who wait for it have.
func TestDeleteIsNotHeldUp(t *testing.T) {
	program := isolation.ProcessSpec{Args: []string{"x"}}
	for name, call := range map[string]func(sb isolation.Sandbox) error{
		"exec": func(sb isolation.Sandbox) error {
			_, err := sb.Exec(context.Background(), program, isolation.Stdio{})
			return err
		},
		"stat": func(sb isolation.Sandbox) error {
			f, _ := isolation.As[isolation.Files](sb)
			_, err := f.Stat(context.Background(), "/x")
			return err
		},
		"read": func(sb isolation.Sandbox) error {
			f, _ := isolation.As[isolation.Files](sb)
			_, err := f.ReadFile(context.Background(), "/x")
			return err
		},
		"watch": func(sb isolation.Sandbox) error {
			f, _ := isolation.As[isolation.Watcher](sb)
			_, err := f.Watch(context.Background(), "/x", false)
			return err
		},
		"list": func(sb isolation.Sandbox) error {
			f, _ := isolation.As[isolation.Directories](sb)
			_, err := f.ReadDir(context.Background(), "/x")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			asked := make(chan struct{})
			sb := lyingSandbox(t, func(l *liar) {
				_, _ = l.next(wire.Exec, wire.File)
				close(asked)
			})
			waits := make(chan error, 1)
			go func() { waits <- call(sb) }()
			<-asked
			within(t, "Delete", func() {
				if err := sb.Delete(context.Background()); err != nil {
					t.Error(err)
				}
			})
			within(t, "the call", func() {
				if err := <-waits; err == nil {
					t.Error("it has worked")
				}
			})
		})
	}
}

// TestDeletedIsCanceled: a program that a deletion took away was canceled, also when
// the deletion had to kill all at once, and when the program's end was told but not
// all of its output.
func TestDeletedIsCanceled(t *testing.T) {
	program := isolation.ProcessSpec{Args: []string{"x"}}
	for name, guest := range map[string]func(l *liar, f wire.Frame){
		"running": func(*liar, wire.Frame) {},
		"ended": func(l *liar, f wire.Frame) {
			l.say(wire.Exit, f.Stream, (&wire.ExitMessage{Cause: wire.CauseExited}).Append(nil))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			asked := make(chan struct{})
			sb := lyingSandbox(t, func(l *liar) {
				f, _ := l.next(wire.Exec)
				l.spawned(f.Stream)
				guest(l, f)
				_, _ = l.next(wire.Exec)
				close(asked)
			})
			p, err := sb.Exec(t.Context(), program, isolation.Stdio{})
			if err != nil {
				t.Fatal(err)
			}
			never := make(chan error, 1)
			go func() {
				_, err := sb.Exec(context.Background(), program, isolation.Stdio{})
				never <- err
			}()
			<-asked
			if err := sb.Delete(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := <-never; err == nil {
				t.Error("a program that was never started: no error")
			}
			if e, err := p.Wait(t.Context()); err != nil || e.Reason != isolation.ReasonCanceled {
				t.Errorf("%v, %v; want canceled", e, err)
			}
		})
	}
}

// TestOutputIsCut: of a program that has ended, in a sandbox that went before it had
// said all that the program wrote, the result says so.
func TestOutputIsCut(t *testing.T) {
	t.Parallel()
	sb := lyingSandbox(t, func(l *liar) {
		f, _ := l.next(wire.Exec)
		l.spawned(f.Stream)
		l.say(wire.Stdout, f.Stream, []byte("abc"))
		l.say(wire.Stderr, f.Stream, nil)
		l.say(wire.Exit, f.Stream, (&wire.ExitMessage{Cause: wire.CauseExited}).Append(nil))
		l.Close()
	})
	p, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"x"}}, isolation.Stdio{Stdout: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	e, err := p.Wait(t.Context())
	if err != nil || !e.Success() || e.Stdout != (isolation.Output{Bytes: 3, Cut: true}) || e.Stderr != (isolation.Output{}) {
		t.Errorf("%v, %v, %+v, %+v", e, err, e.Stdout, e.Stderr)
	}
}
