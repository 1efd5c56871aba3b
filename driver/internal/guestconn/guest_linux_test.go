package guestconn_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/driver/internal/guestconn"
	"github.com/axocoatl/isolation/guest/plan"
	"github.com/axocoatl/isolation/guest/wire"
	"github.com/axocoatl/isolation/internal/testprog"
)

var guestProgram string

func TestMain(m *testing.M) {
	if doc := os.Getenv(planEnv); doc != "" {
		panic(runtimeOf(doc)) // it returns only when it fails
	}
	dir, err := os.MkdirTemp("", "axo-guestconn-")
	if err != nil {
		panic(err)
	}
	if err := testprog.BuildCommands(dir, []string{"axo-guest"}); err != nil {
		panic(err)
	}
	guestProgram = filepath.Join(dir, "axo-guest")
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// testPlan is a container on the system directories of this host.
func testPlan(t testing.TB) *plan.Plan {
	const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	staging := t.TempDir()
	if err := os.Chmod(staging, 0o755); err != nil {
		t.Fatal(err)
	}
	p := &plan.Plan{
		Hostname: "box", Staging: staging, Loopback: true, Made: true,
		Root: plan.Root{
			Size: 32 << 20, Inodes: 1 << 12,
			Dirs: []plan.Dir{
				{Path: "/tmp", Mode: 0o1777, UID: -1, GID: -1}, {Path: "/root", Mode: 0o700, UID: -1, GID: -1},
				{Path: "/home", Mode: 0o755, UID: -1, GID: -1}, {Path: "/home/user", Mode: 0o755, UID: 1000, GID: 1000}, {Path: "/etc", UID: -1, GID: -1},
			},
			Files: []plan.File{{Path: "/etc/passwd", Mode: 0o644, Data: "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"}},
		},
		Process: plan.Process{UID: 1000, GID: 1000, Home: "/home/user", NoNewPrivs: true, OOMScoreAdj: 1000},
	}
	for _, dir := range []string{"/usr", "/bin", "/sbin", "/lib", "/lib64"} {
		if target, err := os.Readlink(dir); err == nil {
			p.Root.Links = append(p.Root.Links, plan.Link{Path: dir, Target: target})
		} else if _, err := os.Stat(dir); err == nil {
			p.Mounts = append(p.Mounts, plan.Mount{Target: dir, Source: dir, Attr: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID})
		}
	}
	p.Mounts = append(p.Mounts,
		plan.Mount{Target: "/proc", Type: "proc", Flags: quiet},
		plan.Mount{Target: "/dev", Type: "tmpfs", Data: "mode=755,size=64k", Flags: unix.MS_NOSUID | unix.MS_NOEXEC},
		plan.Mount{Target: "/dev/pts", Type: "devpts", Data: "newinstance,ptmxmode=0666,mode=0620", Flags: unix.MS_NOSUID | unix.MS_NOEXEC},
	)
	for _, name := range []string{"null", "zero", "full", "urandom"} {
		p.Mounts = append(p.Mounts, plan.Mount{Target: "/dev/" + name, Source: "/dev/" + name})
	}
	p.Late = []plan.Link{{Path: "/dev/ptmx", Target: "pts/ptmx"}}
	return p
}

// In the program's stead planEnv names a file with the plan, and guestEnv the
// guest: it is a small runtime then, which makes the root and becomes the guest.
const (
	planEnv  = "AXO_TEST_PLAN"
	guestEnv = "AXO_TEST_GUEST"
)

// runtimeOf makes the root that a plan tells of, as an OCI runtime does, in the
// namespaces that it was started in.
func runtimeOf(doc string) error {
	b, err := os.ReadFile(doc)
	if err != nil {
		return err
	}
	var p plan.Plan
	if err := p.Parse(b); err != nil {
		return err
	}
	guest, err := os.Open(os.Getenv(guestEnv))
	if err != nil {
		return err
	}
	args := os.Args
	if len(args) > 1 && args[1] == "stdio" {
		fd, err := unix.Open(doc, unix.O_RDONLY, 0) // stays open
		if err != nil {
			return err
		}
		args = append(args[:2:2], fmt.Sprintf("/proc/self/fd/%d", fd))
	}
	if err := errors.Join(unix.Sethostname([]byte(p.Hostname)), unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""),
		unix.Mount("axo", p.Staging, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755,size=32M")); err != nil {
		return err
	}
	root := p.Staging
	for _, l := range p.Root.Links {
		if err := os.Symlink(l.Target, root+l.Path); err != nil {
			return err
		}
	}
	for _, m := range p.Mounts {
		at := root + m.Target
		if m.Source == "" {
			if err := errors.Join(os.MkdirAll(at, 0o755), unix.Mount("axo", at, m.Type, m.Flags, m.Data)); err != nil {
				return fmt.Errorf("mount %s: %w", m.Target, err)
			}
			continue
		}
		info, err := os.Stat(m.Source)
		if err != nil {
			return err
		}
		if info.IsDir() {
			err = os.MkdirAll(at, 0o755)
		} else {
			err = os.WriteFile(at, nil, 0o666)
		}
		if err = errors.Join(err, unix.Mount(m.Source, at, "", unix.MS_BIND|unix.MS_REC, "")); err == nil && m.Attr != 0 {
			err = unix.MountSetattr(unix.AT_FDCWD, at, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: m.Attr})
		}
		if err != nil {
			return fmt.Errorf("bind %s: %w", m.Target, err)
		}
	}
	for _, l := range p.Late {
		if err := os.Symlink(l.Target, root+l.Path); err != nil {
			return err
		}
	}
	if err := errors.Join(unix.Chdir(root), unix.PivotRoot(".", "."), unix.Unmount(".", unix.MNT_DETACH)); err != nil {
		return err
	}
	return syscall.Exec(fmt.Sprintf("/proc/self/fd/%d", guest.Fd()), args, []string{"GOMAXPROCS=2"})
}

// sandbox is a guest in namespaces of its own.
type sandbox struct {
	t      testing.TB
	cmd    *exec.Cmd
	socket string
	stderr bytes.Buffer
}

// newCommand is a guest that is the first process of its namespaces, with the plan
// of a file.
func newCommand(t testing.TB, doc string, args ...string) *sandbox {
	testprog.Root(t, "namespaces with all users")
	s := &sandbox{t: t, cmd: exec.Command("/proc/self/exe", args...)}
	s.cmd.Env = []string{planEnv + "=" + doc, guestEnv + "=" + guestProgram}
	s.cmd.Stderr = &s.stderr
	s.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		UidMappings: []syscall.SysProcIDMap{{Size: 65536}}, GidMappings: []syscall.SysProcIDMap{{Size: 65536}},
		GidMappingsEnableSetgroups: true, Pdeathsig: syscall.SIGKILL,
	}
	return s
}

func (s *sandbox) start() {
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		if s.t.Failed() && s.stderr.Len() > 0 {
			s.t.Logf("the guest said: %s", s.stderr.Bytes())
		}
	})
}

// listening is a guest that was given a listening socket.
func listening(t testing.TB) *sandbox {
	doc := filepath.Join(t.TempDir(), "plan")
	s := newCommand(t, doc)
	s.socket = filepath.Join(t.TempDir(), "guest")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	defer f.Close()
	if err := os.WriteFile(doc, testPlan(t).Append(nil), 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := os.Open(doc)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	s.cmd.ExtraFiles = []*os.File{f, p}
	s.start()
	return s
}

func (s *sandbox) connect() *guestconn.Conn {
	s.t.Helper()
	rw, err := net.Dial("unix", s.socket)
	if err != nil {
		s.t.Fatal(err)
	}
	return open(s.t, rw)
}

func open(t testing.TB, rw io.ReadWriteCloser) *guestconn.Conn {
	t.Helper()
	c, err := guestconn.Open(timeout(t), rw, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func timeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// overPipes is a guest that has nothing but its standard input and output.
func overPipes(t testing.TB) *guestconn.Conn {
	doc := filepath.Join(t.TempDir(), "plan")
	if err := errors.Join(os.WriteFile(doc, testPlan(t).Append(nil), 0o644), os.Chmod(filepath.Dir(doc), 0o755), os.Chmod(filepath.Dir(filepath.Dir(doc)), 0o755)); err != nil {
		t.Fatal(err)
	}
	s := newCommand(t, doc, "stdio", doc)
	in, err := s.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.start()
	return open(t, pipes{out, in})
}

type pipes struct {
	io.ReadCloser
	in io.WriteCloser
}

func (p pipes) Write(b []byte) (int, error) { return p.in.Write(b) }
func (p pipes) Close() error                { return errors.Join(p.in.Close(), p.ReadCloser.Close()) }

// result is what a program came to.
type result struct {
	out, err []byte
	*wire.ExitMessage
}

var ids int

func request(args ...string) *wire.ExecMessage {
	ids++
	return &wire.ExecMessage{ID: fmt.Sprintf("e%d", ids), Args: args, NoStdin: true}
}

// collect reads all of a process.
func collect(t testing.TB, p *guestconn.Process) result {
	t.Helper()
	type read struct {
		b   []byte
		err error
	}
	ch := [2]chan read{make(chan read, 1), make(chan read, 1)}
	for i, o := range []io.Reader{p.Stdout, p.Stderr} {
		go func() {
			b, err := io.ReadAll(o)
			ch[i] <- read{b, err}
		}()
	}
	m, err := p.Wait()
	if err != nil {
		t.Fatal(err)
	}
	out, errs := <-ch[0], <-ch[1]
	if err := errors.Join(out.err, errs.err); err != nil {
		t.Fatal(err)
	}
	p.Forget()
	return result{out.b, errs.b, m}
}

func run(t testing.TB, c *guestconn.Conn, m *wire.ExecMessage, stdin io.Reader) result {
	t.Helper()
	m.NoStdin = stdin == nil
	p, err := c.Exec(timeout(t), m)
	if err != nil {
		t.Fatal(err)
	}
	if stdin != nil {
		go func() {
			_, _ = io.Copy(p, stdin) // one that does not read ends it
			_ = p.CloseStdin()
		}()
	}
	return collect(t, p)
}

func shell(t testing.TB, c *guestconn.Conn, script string) result {
	t.Helper()
	return run(t, c, request("sh", "-c", script), nil)
}

// both runs a test over a socket and over pipes.
func both(t *testing.T, f func(t *testing.T, c *guestconn.Conn)) {
	t.Run("socket", func(t *testing.T) { f(t, listening(t).connect()) })
	t.Run("pipes", func(t *testing.T) { f(t, overPipes(t)) })
}

func TestExec(t *testing.T) {
	both(t, func(t *testing.T, c *guestconn.Conn) {
		r := shell(t, c, `echo out; echo err >&2; id -u; pwd; exit 7`)
		if string(r.out) != "out\n1000\n/home/user\n" || string(r.err) != "err\n" || r.Cause != wire.CauseExited || r.Code != 7 {
			t.Errorf("%q %q %+v", r.out, r.err, r.ExitMessage)
		}
		r = shell(t, c, `kill -KILL $$`)
		if r.Cause != wire.CauseSignaled || r.Signal != 9 {
			t.Errorf("%+v", r.ExitMessage)
		}
		want := bytes.Repeat([]byte("0123456789abcdef"), 1<<17)
		r = run(t, c, request("cat"), bytes.NewReader(want))
		if !bytes.Equal(r.out, want) || r.Code != 0 {
			t.Errorf("cat: %d bytes of %d, %+v", len(r.out), len(want), r.ExitMessage)
		}
		m := request("sh", "-c", "echo $A; pwd; ulimit -n; id -u")
		m.Env, m.Cwd, m.User, m.Rlimits = []string{"A=b c", "PATH=/usr/bin:/bin"}, "/tmp", "root", []wire.Rlimit{{Resource: unix.RLIMIT_NOFILE, Cur: 77, Max: 88}}
		if r = run(t, c, m, nil); string(r.out) != "b c\n/tmp\n77\n0\n" {
			t.Errorf("%q %q", r.out, r.err)
		}
		if _, err := c.Exec(timeout(t), request("no-such-program")); err == nil || !strings.Contains(err.Error(), "not found") {
			t.Errorf("a program that is not there: %v", err)
		}
		if err := c.Ping(timeout(t)); err != nil {
			t.Error(err)
		}
	})
}
