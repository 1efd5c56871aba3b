package guest

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/guest/layer"
	"github.com/axocoatl/isolation/guest/plan"
	"github.com/axocoatl/isolation/guest/wire"
	"github.com/axocoatl/isolation/internal/spawn"
)

// Main is the program. It ends with an error, or when the sandbox has ended.
func Main(args []string) error {
	_, err := unix.FcntlInt(plan.SocketFD, unix.F_GETFD, 0)
	switch {
	case len(args) > 2 && args[1] == "layer":
		return layer.Main(args[2:], os.Stdin, os.Stdout)
	case len(args) == 3 && args[1] == "stdio":
		return overPipes(args[2])
	case err == nil:
		return inContainer()
	case os.Getpid() == 1:
		return inMachine()
	}
	return errors.New("this program is started by the engine, not by hand")
}

// inContainer serves the socket that the program inherited: one connection until
// it ends, which ends the container, or, if it is listening, one after the other.
func inContainer() error {
	for fd := plan.SocketFD; fd <= plan.PlanFD; fd++ {
		unix.CloseOnExec(fd)
	}
	listening, err := isListening(plan.SocketFD)
	if err != nil {
		return err
	}
	g := newGuest()
	err = g.setUp(os.NewFile(plan.PlanFD, "plan"))
	if listening {
		if err != nil {
			return err
		}
		return g.listen(plan.SocketFD)
	}
	return g.serveOne(newLink(&socket{fd: plan.SocketFD, unix: true}), err)
}

// overPipes serves descriptors 0 and 1, for what passes nothing else into a
// sandbox. The plan is a file.
func overPipes(name string) error {
	for fd := range 2 {
		if err := unix.SetNonblock(fd, true); err != nil {
			return os.NewSyscallError("fcntl", err)
		}
		unix.CloseOnExec(fd)
	}
	g := newGuest()
	f, err := os.Open(name)
	if err == nil {
		err = g.setUp(f)
	}
	return g.serveOne(newLink(&stream{in: os.NewFile(0, "stdin"), out: os.NewFile(1, "stdout")}), err)
}

// serveOne serves the only connection that there will be, or says on it what has
// failed.
func (g *guest) serveOne(l *link, failed error) error {
	if failed != nil {
		m := wire.FailMessage{Message: failed.Error()}
		return errors.Join(failed, l.send(wire.Fail, 0, m.Append(nil), -1))
	}
	return g.serve(l)
}

// listen serves one connection at a time: a new one replaces the one before,
// which may be dead.
func (g *guest) listen(fd int) error {
	var last *link
	var done chan struct{}
	for {
		l, err := accept(fd)
		if err != nil {
			return err
		}
		if last != nil {
			last.shut()
			<-done
		}
		last, done = l, make(chan struct{})
		go func(done chan struct{}) {
			defer close(done)
			_ = g.serve(l) // whatever it was, the next connection is a new one
		}(done)
	}
}

type guest struct {
	plan    plan.Plan
	notes   []string // what the host does not allow, for Features
	steps   []wire.Step
	spawner spawn.Spawner
	bounded bool       // its thread is: see bound
	tasks   []*os.File // version 1: control groups of every program
	into    *os.File   // version 2: the group of every program; nil: none
	// filter is the one of programs, where they load it themselves: see confine.
	filter  []unix.SockFilter
	lookers threads  // look for programs and users
	filers  threads  // do file operations, which may take long
	proc    *os.File // of this process's pid namespace; nil: there is none
	vm      *machine // nil: this is a container

	needsSync atomic.Bool
	ready     preparedSlot
	ports     ports

	mu        sync.Mutex
	processes map[string]*process // by id: those that run, and those whose end was not acknowledged
	ended     []*process          // of these, oldest first
}

func newGuest() *guest { return &guest{processes: map[string]*process{}} }

func (g *guest) readPlan(f *os.File) error {
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	b := make([]byte, info.Size())
	if n, err := f.ReadAt(b, 0); err != nil {
		return fmt.Errorf("plan: %d of %d bytes: %w", n, len(b), err)
	}
	return g.plan.Parse(b)
}

func (g *guest) setUp(f *os.File) error {
	if err := g.readPlan(f); err != nil {
		return err
	}
	// Nobody but the host reads this process's memory.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	for _, fd := range g.plan.Tasks {
		unix.CloseOnExec(fd)
		g.tasks = append(g.tasks, os.NewFile(uintptr(fd), "tasks"))
	}
	if fd := g.plan.Group; fd > 0 {
		unix.CloseOnExec(fd)
		g.into = os.NewFile(uintptr(fd), "group")
	}
	for _, fd := range g.plan.Held {
		unix.CloseOnExec(fd)
	}
	build := g.awaitRoot
	if g.plan.Made {
		build = g.enterRoot
	}
	init, err := build()
	if err != nil {
		return err
	}
	defer init.Close()
	if g.plan.Loopback {
		if err := loopbackUp(); err != nil {
			return fmt.Errorf("bring up lo: %w", err)
		}
	}
	if err := g.confine(init); err != nil {
		return err
	}
	return g.keepCapabilities()
}

// kept is what starting and ending programs of other users takes, and files of
// theirs. See confine for the one that is kept besides on version 2.
var kept = []uint{unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_SETPCAP, unix.CAP_KILL, unix.CAP_DAC_OVERRIDE, unix.CAP_CHOWN, unix.CAP_FOWNER}

// keepCapabilities drops what only the making of the container took, in all
// threads.
func (g *guest) keepCapabilities() error {
	header := [2]uint32{unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]struct{ effective, permitted, inheritable uint32 }
	keep := kept
	if g.unified() {
		keep = append(slices.Clone(kept), unix.CAP_SYS_ADMIN)
	}
	for _, c := range keep {
		data[c/32].permitted |= 1 << (c % 32)
		data[c/32].effective |= 1 << (c % 32)
	}
	_, _, e := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data)), 0)
	runtime.KeepAlive(&data)
	if e != 0 {
		return os.NewSyscallError("capset", e)
	}
	return nil
}
