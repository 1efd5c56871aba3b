package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/driver/oci/internal/bundle"
	"github.com/axocoatl/isolation/driver/oci/internal/document"
	"github.com/axocoatl/isolation/guest/plan"
	"github.com/axocoatl/isolation/internal/failpoint"
	"github.com/axocoatl/isolation/internal/spawn"
)

// namespaces are those that document.Read wants, but for the one of control groups:
// programs get that when they are in theirs.
const namespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUTS

// launch is the start of one guest: what it gets, by descriptor.
type launch struct {
	files []*os.File // by their numbers in the guest
	open  []*os.File // ours, closed when it runs
}

// keep closes f when the guest runs.
func (l *launch) keep(f *os.File) *os.File {
	l.open = append(l.open, f)
	return f
}

// pass gives the guest f and returns its number there.
func (l *launch) pass(f *os.File) int {
	l.files = append(l.files, f)
	return len(l.files) - 1
}

// share gives the guest what it needs of the host for as long as it lives.
func (l *launch) share(c *container, p *plan.Plan) {
	p.GroupNamespace = true
	for _, f := range c.group.Joins() {
		p.Tasks = append(p.Tasks, l.pass(f))
	}
	if f := c.group.Into(); f != nil {
		p.Group = l.pass(f)
	}
	if c.ids.lock != nil {
		p.Held = append(p.Held, l.pass(c.ids.lock))
	}
	if c.kept != nil && c.root != nil && c.root.Lease != nil {
		p.Held = append(p.Held, l.pass(c.root.Lease))
	}
}

// plan gives the guest its plan.
func (l *launch) plan(p *plan.Plan) error {
	f, err := memoryFile("plan", p.Append(nil))
	if err != nil {
		return err
	}
	l.files[plan.PlanFD] = l.keep(f)
	return nil
}

func (l *launch) close() {
	for _, f := range l.open {
		f.Close()
	}
	l.open = nil
}

// launch starts the guest and waits for it to have made the container.
func (e *builtin) launch(ctx context.Context, c *container, _ *bundle.Bundle, d *document.Container) (err error) {
	var l launch
	defer l.close()
	if err := e.connect(c, &l); err != nil {
		return err
	}
	p := &d.Plan
	l.share(c, p)
	layers, err := c.openLayers()
	l.open = append(l.open, layers...)
	if err != nil {
		return err
	}
	for i, f := range layers {
		p.Root.Overlay[i] = plan.Layer{FD: int(f.Fd())}
	}
	for _, x := range d.Idmapped {
		m := &p.Mounts[x.Mount]
		f, err := detached(m.Source, m.Attr, x)
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Source, err)
		}
		m.FD = int(l.keep(f).Fd())
	}
	var steps []*spawn.Script
	made := *p
	if v := l.visit(c); v != nil {
		made.GroupNamespace, made.InitGroups = false, true
		steps = append(steps, v.script())
	}
	if c.kind != nil {
		steps = append(steps, c.kind.steps)
	} else {
		steps = append(steps, makeRoot(p, c.ids.credential()))
	}
	var notes []spawn.Note
	made.Init, made.Ready = l.pass(nil), l.pass(nil)
	made.Root.Dirs, made.Root.Files, made.Root.Links, made.Late, made.Masked, made.ReadOnly = nil, nil, nil, nil, nil, nil
	if err := l.plan(&made); err != nil {
		return err
	}
	guest, err := e.guest.open()
	if err != nil {
		return fmt.Errorf("embedded %s: %w", guestName, err)
	}
	limits, err := l.onlyThese()
	if err != nil {
		return err
	}
	oom := ""
	if c.ids.single {
		// Programs have it from the guest: without a root in its user namespace the
		// files of what cannot be read belong to nobody there.
		oom = strconv.Itoa(p.Process.OOMScoreAdj)
	}
	pid, pidfd, err := e.spawner.Start(spawn.Spec{
		Program: guest, Args: []string{guestName}, Env: []string{"GOMAXPROCS=1"}, Dir: "/", Files: l.files,
		Cred: c.ids.credential(), KeepCapabilities: c.ids.single, OOMScoreAdj: oom,
		ParentDeathSignal: c.deathSignal(), Rlimits: append(limits, c.guestLimits()...),
		Namespaces: namespaces, Group: c.group.Keeper(),
		Beside: steps, Notes: &notes, BesideInit: made.Init, BesideDone: made.Ready,
		Map: func(pid int) error {
			if err := c.ids.writeMaps(pid, d.UIDMap, d.GIDMap); err != nil {
				return err
			}
			return mapLayers(pid, layers)
		},
	})
	if err != nil {
		return fmt.Errorf("start the guest: %w", err)
	}
	c.pid, c.pidfd = pid, pidfd
	failpoint.Hit(failpoint.OCIStarted)
	if c.entry != nil {
		if err := c.entry.AddProcess(pid); err != nil {
			return err
		}
	}
	l.close() // the guest's ends among them: a guest that ends is seen
	if err := c.bound(d.Limits); err != nil {
		return err
	}
	if err := c.dial(); err != nil {
		return err
	}
	hello, err := c.conn.hello(ctx)
	if err != nil {
		return fmt.Errorf("make the container: %w%s", err, c.lastWords())
	}
	c.notes = hello.Notes
	for _, n := range notes {
		c.notes = append(c.notes, fmt.Sprintf("%s: %v", n.Name, n.Err))
	}
	failpoint.Hit(failpoint.OCIMade)
	return c.conn.begin(hello)
}

// onlyThese bounds the descriptors of the guest to those that it gets, until package
// syscall's start raises the limit to the hard one. Before that Go's runtime has a look
// at the control groups' limit on CPUs, whatever GOMAXPROCS says, and reads the whole
// mount table of the host for it; it does without if it cannot.
func (l *launch) onlyThese() ([]spawn.Rlimit, error) {
	var host unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &host); err != nil {
		return nil, os.NewSyscallError("getrlimit", err)
	}
	return []spawn.Rlimit{{Resource: unix.RLIMIT_NOFILE, Cur: uint64(len(l.files)), Max: host.Max}}, nil
}

// visit is how a process gets into a container's control groups of version 1 and out
// again: files of them, and of those above.
type visit struct{ in, out []int }

// visit is nil where there is no such way.
func (l *launch) visit(c *container) *visit {
	if c.group.Into() != nil {
		return nil
	}
	v := &visit{}
	for _, f := range c.group.Joins() {
		above, err := os.OpenFile(filepath.Join(filepath.Dir(filepath.Dir(f.Name())), "tasks"), os.O_WRONLY, 0)
		if err != nil {
			return nil
		}
		v.in, v.out = append(v.in, int(f.Fd())), append(v.out, int(l.keep(above).Fd()))
	}
	return v
}

// connect makes the first descriptors of a guest: a null device, what it says
// when it cannot go on, the connection. That of the plan is left open.
func (e *builtin) connect(c *container, l *launch) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	l.keep(null)
	theirs, err := c.socket()
	if err != nil {
		return err
	}
	l.keep(theirs)
	said, errs, err := os.Pipe()
	if err != nil {
		return err
	}
	c.stderr = said
	l.files = []*os.File{null, null, l.keep(errs), theirs, nil}
	return nil
}

// socket makes the guest's end of the connection, and this side's of one that ends
// with this process.
func (c *container) socket() (*os.File, error) {
	if c.kept != nil {
		return listen(c.kept.Dir())
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "guest")
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		theirs.Close()
		return nil, err
	}
	c.conn = newConn(os.NewFile(uintptr(fds[0]), "guest"))
	c.conn.member = c.isMember
	return theirs, nil
}

// staging is a directory of the host that every user can reach and that nothing
// below sources is in.
func staging(sources []string) (string, error) {
	for _, dir := range []string{"/mnt", "/media", "/srv", "/opt", "/run", "/var/tmp", "/tmp"} {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() || info.Mode().Perm()&0o5 != 0o5 {
			continue
		}
		if !slices.ContainsFunc(sources, func(s string) bool { return s == dir || strings.HasPrefix(s, dir+"/") }) {
			return dir, nil
		}
	}
	return "", errors.New("the host has none of /mnt, /media, /srv, /opt, /run and /tmp to build a root on that is not shared with the sandbox")
}
