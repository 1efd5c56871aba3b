//go:build !linux

package wasm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/axocoatl/isolation"
)

// launcher starts worker processes where the Linux jail does not exist: the
// process of its own is the only second wall, and Features says so.
type launcher struct {
	config  *Config
	engine  *description
	prog    program
	progErr error
	jail    bool // false
	temp    string
}

func newLauncher(c *Config, e *description) (*launcher, error) {
	l := &launcher{config: c, engine: e}
	l.prog, l.progErr = findProgram(c, e)
	if l.progErr == nil && l.prog.content != nil {
		l.progErr = l.unpack()
	}
	return l, nil
}

// unpack writes the embedded program to a private directory.
func (l *launcher) unpack() (err error) {
	if l.temp, err = os.MkdirTemp("", "axo-wasm-"); err != nil {
		return err
	}
	l.prog.path = l.temp + string(os.PathSeparator) + executable(l.engine.program)
	return os.WriteFile(l.prog.path, l.prog.content, 0o700)
}

// child is a worker process and the pipes to it.
type child struct {
	io.Reader
	in     io.WriteCloser
	out    io.ReadCloser
	pid    int
	busy   atomic.Bool
	cmd    *exec.Cmd
	stderr tail
	once   sync.Once
	end    childEnd
}

// tail keeps the first of what a worker says.
type tail struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if room := 4096 - t.b.Len(); room > 0 {
		t.b.Write(b[:min(room, len(b))])
	}
	return len(b), nil
}

func (l *launcher) start(role string) (*child, error) {
	if l.progErr != nil {
		return nil, l.progErr
	}
	c := &child{}
	c.cmd = exec.Command(l.prog.path, role)
	c.cmd.Env = append([]string{}, l.prog.env...)
	c.cmd.Stderr = &c.stderr
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if c.out, err = c.cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", l.prog.how, err)
	}
	c.Reader, c.pid = c.out, c.cmd.Process.Pid
	return c, nil
}

func (c *child) Write(b []byte) (int, error) { return c.in.Write(b) }

func (c *child) Close() error { return errors.Join(c.in.Close(), c.out.Close()) }

// sendFiles writes the frame: the files go by their paths.
func (c *child) sendFiles(frame []byte, _ []*os.File) error {
	_, err := c.in.Write(frame)
	return err
}

func (c *child) kill() { _ = c.cmd.Process.Kill() }

func (c *child) wait() childEnd {
	c.once.Do(func() {
		st, err := c.cmd.Process.Wait()
		if err != nil {
			c.end.status = err.Error()
			return
		}
		c.end.status, c.end.cpu = st.String(), st.UserTime()+st.SystemTime()
		c.stderr.mu.Lock()
		defer c.stderr.mu.Unlock()
		first, _, _ := strings.Cut(c.stderr.b.String(), "\n")
		c.end.stderr = first
		c.end.memoryLimit = outOfMemory(first)
	})
	return c.end
}

// cpuTime is not known of a process that still runs.
func (c *child) cpuTime() (time.Duration, bool) { return 0, false }

func (l *launcher) close() {
	if l.temp != "" {
		os.RemoveAll(l.temp)
	}
}

func (l *launcher) depends() []string {
	if l.progErr != nil || l.temp != "" {
		return nil
	}
	return []string{l.prog.path}
}

func (l *launcher) describe() string { return l.prog.how }

func (l *launcher) memoryWall() string { return "" }

func (l *launcher) cgroupWall() isolation.Wall {
	return isolation.Wall{Name: "cgroup", Detail: "control groups are Linux's"}
}

func (l *launcher) warnings() []string {
	w := []string{"workers are not jailed on this system: the process of its own is the only second wall"}
	if l.prog.warning != "" {
		w = append(w, l.prog.warning)
	}
	return w
}
