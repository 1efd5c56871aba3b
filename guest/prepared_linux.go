package guest

import (
	_ "embed"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/guest/wire"
	"github.com/axocoatl/isolation/internal/cgroup"
)

// bootstrap is what a prepared interpreter runs: it says that it is ready,
// waits for a program, and becomes it. It is used once, so that its seeds of
// hashes and random numbers are nobody else's.
//
//go:embed python.py
var bootstrap string

// prepared is an interpreter that waits for its program.
type prepared struct {
	file  string   // the interpreter
	env   []string // that it looked at when it started, sorted
	pid   int
	pidfd *os.File
	group *cgroup.Group // of its own; nil: none
	sock  *os.File      // our end
	// beside is the CPU time that its group had used by its start, but for its own.
	beside time.Duration
}

// preparedSlot holds the one that is ready.
type preparedSlot struct {
	mu sync.Mutex
	p  *prepared
}

// take returns the prepared interpreter if a program can run in it, and leaves
// none; nil: none.
func (s *preparedSlot) take(m *wire.SpawnMessage, file string) *prepared {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.p
	if p == nil || !p.fits(m, file) {
		return nil
	}
	s.p = nil
	return p
}

// put makes p the one that is ready. One that was is given up.
func (s *preparedSlot) put(p *prepared) {
	s.mu.Lock()
	old := s.p
	s.p = p
	s.mu.Unlock()
	if old != nil {
		old.discard()
	}
}

// prepareTimeout bounds the start of an interpreter, and dressTimeout its
// answer to what it shall run: one that is slower is not worth the wait.
const (
	prepareTimeout = 20 * time.Second
	dressTimeout   = 250 * time.Millisecond
)

// prepare starts an interpreter and waits until it is ready.
func (g *guest) prepare(m *wire.PrepareMessage) error {
	if m.Language != "python" {
		return &classError{classSupport, fmt.Errorf("no interpreter of %q can be prepared; python can", m.Language)}
	}
	const name = "python3"
	var file string
	var u account
	err := g.inside(func() (err error) {
		if file, err = lookPath(name, m.Env, "/"); err == nil {
			u, err = g.user("")
		}
		return err
	})
	if err != nil {
		return err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "interpreter"), os.NewFile(uintptr(pair[1]), "interpreter")
	defer theirs.Close()
	// Its own end must block: it is a plain program.
	if err := unix.SetNonblock(pair[1], false); err != nil {
		ours.Close()
		return err
	}
	// Pipes, as the program's own streams will be: what the interpreter finds
	// out about them at its start stays right.
	in, inEnd, err := os.Pipe()
	if err != nil {
		ours.Close()
		return err
	}
	outEnd, out, err := os.Pipe()
	if err != nil {
		ours.Close()
		in.Close()
		inEnd.Close()
		return err
	}
	defer func() {
		for _, f := range []*os.File{in, inEnd, outEnd, out} {
			f.Close()
		}
	}()
	s := g.spec(u)
	env := looked(m.Env)
	s.Path, s.Args, s.Env, s.Dir = file, []string{name, "-c", bootstrap}, append(slices.Clone(env), "PATH="+defaultPath), "/"
	if g.vm != nil && g.vm.groups.tree != nil { // whose group tells what that takes
		s.Args = append(s.Args, "rehearse")
	}
	s.Files = []*os.File{in, out, out, theirs}
	started, err := g.launch(s)
	if err != nil {
		ours.Close()
		return startError(file, err)
	}
	p := &prepared{file: file, env: env, sock: ours, pid: started.pid, pidfd: started.fd, group: started.group}
	if err := p.expect('R', prepareTimeout); err != nil {
		p.discard()
		return &classError{"unavailable", fmt.Errorf("prepare %s: %w", file, err)}
	}
	p.beside = max(0, p.group.Read().CPU-p.clock())
	g.ready.put(p)
	return nil
}

// clock is the CPU time of the interpreter alone.
func (p *prepared) clock() time.Duration {
	var ts unix.Timespec
	// The CPU clock of another process (clock_getcpuclockid(3), as glibc
	// makes its number).
	if unix.ClockGettime(int32(^p.pid<<3|2), &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// expect reads the interpreter's word.
func (p *prepared) expect(word byte, limit time.Duration) error {
	if err := p.sock.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	var b [1]byte
	if _, err := io.ReadFull(p.sock, b[:]); err != nil {
		return fmt.Errorf("the interpreter is not ready: %w", err)
	}
	if b[0] != word {
		return fmt.Errorf("the interpreter said %q, want %q", b[0], word)
	}
	return nil
}

// discard ends one that nobody wants.
func (p *prepared) discard() {
	_ = unix.PidfdSendSignal(fdOf(p.pidfd), unix.SIGKILL, nil, 0)
	p.sock.Close()
	for {
		if _, err := unix.Wait4(p.pid, nil, 0, nil); err != unix.EINTR {
			break
		}
	}
	p.pidfd.Close()
	removeGroup(p.group)
}

// fits reports whether a program can run in an interpreter that is started
// already: code on the command line, for the default user, and nothing that the
// interpreter would have looked at when it started.
func (p *prepared) fits(m *wire.SpawnMessage, file string) bool {
	if m.Tty || m.User != "" || file != p.file || len(m.Args) < 3 || m.Args[1] != "-c" || path.Base(m.Args[0]) != path.Base(p.file) && path.Base(m.Args[0]) != "python3" {
		return false
	}
	return slices.Equal(looked(m.Env), p.env)
}

// looked is what of an environment an interpreter, or the libraries below it, look
// at when they start, sorted.
func looked(env []string) (out []string) {
	for _, e := range env {
		for _, prefix := range []string{"PYTHON", "LC_", "LANG", "LD_", "MALLOC_", "GLIBC_"} {
			if strings.HasPrefix(e, prefix) {
				out = append(out, e)
				break
			}
		}
	}
	slices.Sort(out)
	return out
}

// dress makes the interpreter ready to run the program. Until the word of go it
// runs nothing of it.
func (p *prepared) dress(m *wire.SpawnMessage, dir string, files []*os.File) error {
	body := appendStrings(nil, m.Args)
	body = appendStrings(body, m.Env)
	body = appendString(body, dir)
	body = binary.BigEndian.AppendUint32(body, uint32(len(m.Rlimits)))
	for _, l := range m.Rlimits {
		body = binary.BigEndian.AppendUint32(body, l.Resource)
		body = binary.BigEndian.AppendUint64(body, l.Cur)
		body = binary.BigEndian.AppendUint64(body, l.Max)
	}
	head := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = fdOf(f)
	}
	if err := unix.Sendmsg(fdOf(p.sock), head, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL); err != nil {
		return os.NewSyscallError("sendmsg", err)
	}
	if err := p.sock.SetWriteDeadline(time.Now().Add(dressTimeout)); err != nil {
		return err
	}
	if _, err := p.sock.Write(body); err != nil {
		return err
	}
	return p.expect('K', dressTimeout)
}

// run lets the program run. The time is what the interpreter's group has used by then.
func (p *prepared) run() (used time.Duration, err error) {
	used = p.clock() + p.beside
	_, err = p.sock.Write([]byte{'G'})
	return used, err
}

// become runs a program in the interpreter that is ready for it. It returns nil
// when none is, and then nothing of the program has run.
func (g *guest) become(m *wire.SpawnMessage, file, dir string, files []*os.File) *program {
	r := g.ready.take(m, file)
	if r == nil {
		return nil
	}
	err := r.dress(m, dir, files)
	p := &program{pid: r.pid, fd: r.pidfd, group: r.group, began: time.Now()}
	if err == nil {
		p.before, err = r.run()
	}
	if err != nil {
		r.discard()
		return nil
	}
	r.sock.Close()
	return p
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

func appendStrings(b []byte, l []string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(l)))
	for _, s := range l {
		b = appendString(b, s)
	}
	return b
}

// fdOf returns a file's descriptor and leaves it as it is: File.Fd makes it
// block.
func fdOf(f *os.File) int {
	n := -1
	if rc, err := f.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) { n = int(fd) }) // n stays -1 when it is closed
	}
	return n
}
