package wasm

import (
	"io"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
)

type launcher struct {
	config *Config
	prog   program
	jail   bool
	err    error
}

func newLauncher(c *Config) (*launcher, error) {
	l := &launcher{config: c, jail: true}
	l.prog, l.err = findProgram(c)
	return l, nil
}

type child struct {
	*os.File
	busy atomic.Bool // reads look for a while before they sleep
	pid  int
	cmd  *exec.Cmd
	once sync.Once
	end  childEnd
}

func (l *launcher) start(role string) (*child, error) {
	if l.err != nil {
		return nil, l.err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	unix.SetNonblock(fds[0], true)
	theirs := os.NewFile(uintptr(fds[1]), "worker")
	defer theirs.Close()
	cmd := exec.Command(l.prog.path, role)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Env = append([]string{}, l.prog.env...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &child{File: os.NewFile(uintptr(fds[0]), "worker"), pid: cmd.Process.Pid, cmd: cmd}, nil
}

func (c *child) sendFiles(frame []byte, files []*os.File) error {
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = rc.Write(func(fd uintptr) bool {
		serr = unix.Sendmsg(int(fd), frame, unix.UnixRights(fds...), nil, 0)
		return serr != unix.EAGAIN
	})
	if err == nil {
		err = serr
	}
	return err
}

func (c *child) kill() { c.cmd.Process.Kill() }

func (c *child) wait() childEnd {
	c.once.Do(func() {
		c.cmd.Wait()
		st := c.cmd.ProcessState
		c.end.status = st.String()
		c.end.cpu = st.UserTime() + st.SystemTime()
	})
	return c.end
}

func (c *child) cpuTime() (time.Duration, bool) {
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^c.pid<<3|2), &ts); err != nil {
		return 0, false
	}
	return time.Duration(ts.Nano()), true
}

func (l *launcher) close()                     {}
func (l *launcher) depends() []string          { return []string{l.prog.path} }
func (l *launcher) memoryWall() string         { return "" }
func (l *launcher) describe() string           { return l.prog.how }
func (l *launcher) cgroupWall() isolation.Wall { return isolation.Wall{Name: "cgroup"} }
func (l *launcher) warnings() []string         { return nil }

var _ = syscall.SIGKILL

// Read reads from the worker. While busy is set it looks again and again for a
// short time before it sleeps.
func (c *child) Read(b []byte) (int, error) {
	if !c.busy.Load() {
		return c.File.Read(b)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n int
	var rerr error
	begin := time.Now()
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, rerr = unix.Read(int(fd), b)
			if rerr != unix.EAGAIN && rerr != unix.EINTR || time.Since(begin) > linger {
				return true
			}
		}
	})
	if err != nil {
		return 0, err
	}
	if rerr == unix.EAGAIN || rerr == unix.EINTR {
		return c.File.Read(b)
	}
	if rerr != nil {
		return 0, os.NewSyscallError("read", rerr)
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}
