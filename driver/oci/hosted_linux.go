package oci

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/driver/oci/internal/bundle"
	"github.com/axocoatl/isolation/driver/oci/internal/document"
	"github.com/axocoatl/isolation/guest/plan"
	"github.com/axocoatl/isolation/internal/brand"
	"github.com/axocoatl/isolation/internal/cgroup"
	"github.com/axocoatl/isolation/internal/failpoint"
	"github.com/axocoatl/isolation/internal/spawn"
)

// hosted is an engine whose containers another program makes: an OCI runtime.
// The first process of a container is axo-guest there too, on the same
// connection, and programs run in the same control groups: all that is known
// of them is known in the same way.
type hosted struct {
	*builtin
	kind runtimeKind
	path string // of the runtime
	err  error  // why there is none

	unpack    sync.Once
	unpacked  string
	unpackErr error
}

// newHosted looks for the runtime.
func newHosted(e *builtin, kind runtimeKind) *hosted {
	h := &hosted{builtin: e, kind: kind, path: e.cfg.Runtime}
	if h.path == "" {
		h.path, h.err = exec.LookPath(kind.name)
	} else {
		_, h.err = os.Stat(h.path)
	}
	if h.err == nil {
		h.path, h.err = filepath.Abs(h.path)
	}
	switch {
	case h.err != nil:
		h.err = &isolation.UnsupportedError{Feature: kind.name + " without its program", Need: kind.get}
	case os.Geteuid() != 0:
		h.err = &isolation.UnsupportedError{Feature: kind.name + " as an ordinary user", Need: `root; the engine "builtin" does without`}
	}
	return h
}

func (h *hosted) Name() string { return h.kind.name }

func (h *hosted) Features() isolation.Features {
	f := h.builtin.Features()
	f.Engine, f.Version = h.kind.name, ""
	if h.kind.piped {
		// What it speaks on ends with this process.
		f.Abilities = slices.DeleteFunc(f.Abilities, func(a string) bool {
			return a == isolation.AbilityFiles || a == isolation.AbilityWatch || a == isolation.AbilityAttach || a == isolation.AbilityRecover || a == isolation.AbilityStats || a == isolation.AbilityPause
		})
		f.Options = slices.DeleteFunc(f.Options, func(o isolation.Option) bool { return o == isolation.OptionWritable || o == isolation.OptionDetached })
	}
	if h.kind.wall != "" {
		f.Walls = append(f.Walls, isolation.Wall{Name: h.kind.name, Present: true, Detail: h.kind.wall})
	}
	if h.path != "" {
		f.Depends = append(f.Depends, h.path)
	}
	return f
}

// Probe makes a container with the runtime and runs something in it.
func (h *hosted) Probe(ctx context.Context, f *isolation.Features) error {
	if h.err != nil {
		return h.err
	}
	var err error
	if f.Version, err = h.version(ctx); err != nil {
		return err
	}
	if err := h.probeWith(ctx, f, h.make); err != nil || !h.kind.piped {
		return err
	}
	for i := range f.Enforces {
		x := &f.Enforces[i]
		switch x.Limit {
		case isolation.LimitMemory:
			if x.Enforced {
				x.By += fmt.Sprintf(", %d MiB above it for the runtime's own kernel", pipedRoom>>20)
				x.Fatal = true
			}
		case isolation.LimitPids:
			*x = isolation.Enforcement{Limit: x.Limit, Enforced: true, Uncounted: true, By: "RLIMIT_NPROC in the sandbox, of each user"}
		case isolation.LimitCPUTime:
			x.By = "process clocks of the sandbox, polled, and RLIMIT_CPU behind it"
		}
	}
	return nil
}

// make makes a sandbox in the way of the runtime.
func (h *hosted) make(ctx context.Context, id string, spec isolation.Spec) (sandbox, error) {
	if h.kind.piped {
		return made(h.createPiped(ctx, id, spec))
	}
	return made(h.create(ctx, id, spec))
}

func (h *hosted) Check(spec isolation.Spec) error {
	if h.err != nil {
		return h.err
	}
	for _, m := range spec.Mounts {
		if h.kind.piped && !m.ReadOnly {
			return proc.Unsupported("a writable mount", "a read-only one, or another engine: who makes files for "+h.kind.name+" is not their owner")
		}
	}
	return h.builtin.Check(spec)
}

func (h *hosted) Create(ctx context.Context, id string, spec isolation.Spec) (proc.Place, error) {
	if h.kind.piped {
		return made(h.createPiped(ctx, id, spec))
	}
	return place(h.create(ctx, id, spec))
}

// maxSaid bounds what is read of what a runtime says.
const maxSaid = 4096

// command runs the runtime to its end, for anything but a container.
func (h *hosted) command(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, undoTimeout)
	defer cancel()
	c := exec.CommandContext(ctx, h.path, args...)
	c.Env, c.Dir, c.WaitDelay = runtimeEnv, "/", time.Second
	var out limited
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	said := strings.TrimSpace(strings.ToValidUTF8(out.String(), "?"))
	if err != nil {
		return said, fmt.Errorf("%s %s: %w: %s", h.kind.name, args[0], err, said)
	}
	return said, nil
}

// runtimeEnv is what runtimes get of an environment.
var runtimeEnv = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "LANG=C"}

// limited keeps the first maxSaid bytes.
type limited struct{ bytes.Buffer }

func (l *limited) Write(b []byte) (int, error) {
	l.Buffer.Write(b[:min(len(b), maxSaid-l.Len())])
	return len(b), nil
}

// version is the first line of what the runtime says of itself.
func (h *hosted) version(ctx context.Context) (string, error) {
	said, err := h.command(ctx, "--version")
	line, _, _ := strings.Cut(said, "\n")
	return strings.TrimSpace(strings.Replace(line, " version ", " ", 1)), err
}

func (h *hosted) create(ctx context.Context, id string, spec isolation.Spec) (*container, error) {
	return h.createWith(ctx, id, spec, h.launch)
}

// guestFile is a path of the guest's program. One that is embedded is unpacked
// under the name of its content.
func (h *hosted) guestFile() (string, error) {
	if h.guest.path != "" {
		return h.guest.path, nil
	}
	h.unpack.Do(func() { h.unpacked, h.unpackErr = unpackGuest(h.cfg.StateDir) })
	return h.unpacked, h.unpackErr
}

func unpackGuest(dir string) (string, error) {
	name := filepath.Join(dir, fmt.Sprintf("%s-%x", guestName, sha256.Sum256(embeddedGuest)))
	if b, err := os.ReadFile(name); err == nil && bytes.Equal(b, embeddedGuest) {
		return name, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	f, err := os.CreateTemp(dir, guestName+"-*")
	if err != nil {
		return "", err
	}
	_, err = f.Write(embeddedGuest)
	err = errors.Join(err, f.Chmod(0o755), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return name, err
}

// runtimeContainer is what a container has beside the rest when a runtime
// makes it.
type runtimeContainer struct {
	h       *hosted
	c       *container
	spawner spawn.Spawner // its thread is in the stage's mount namespace
	pid     int           // of the runtime, which is the guest's parent and ends after it
	pidfd   *os.File
	killed  bool // the runtime was, and has not cleaned up
}

// root is where the runtime notes the container, and nothing else, in whatever
// form. It is short: runtimes put sockets there (unix(7), 108 bytes).
func (r *runtimeContainer) root() string { return filepath.Join(r.h.cfg.StateDir, r.c.brand.Name()) }

// id is the container's for the runtime.
func (r *runtimeContainer) id() string { return "axo-" + r.c.brand.Name() }

// groups is the name of the control groups that the runtime makes. They are not
// those of the programs: a runtime ends what is in there. On version 2 it is the
// one beside theirs, where the guest has to be. Empty: it makes none.
func (r *runtimeContainer) groups() string {
	if !r.h.kind.ownGroups {
		return ""
	}
	if path := r.c.group.KeeperPath(); path != "" {
		return path
	}
	return r.c.name + "-" + r.h.kind.name
}

// record writes down what the runtime may leave, before it can.
func (r *runtimeContainer) record() error {
	e := r.c.entry
	if e == nil {
		return nil
	}
	if err := e.AddPath("temp", r.root()); err != nil {
		return err
	}
	if r.groups() == "" || r.c.group.Keeper() != nil { // that is in the entry
		return nil
	}
	dirs, err := cgroup.Named(r.groups())
	for i := 0; err == nil && i < len(dirs); i++ {
		err = e.AddPath("cgroup", dirs[i])
	}
	return err
}

// stage describes a container's bundle, and writes down what may be left of it.
func (h *hosted) stage(c *container, b *bundle.Bundle, d *document.Container) (*runtimeContainer, *stage, error) {
	r := &runtimeContainer{h: h, c: c}
	c.runtime = r
	if err := r.record(); err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(r.root(), 0o700); err != nil {
		return nil, nil, err
	}
	guest, err := h.guestFile()
	if err != nil {
		return nil, nil, err
	}
	s := &stage{spawner: &r.spawner, dir: d.Plan.Staging, base: c.ids.base, b: b, config: b.Hosted(guest), noUnified: h.kind.noUnified, setID: d.Plan.Root.SetID}
	s.config.Linux.CgroupsPath = r.groups()
	d.Plan.Made = true
	if len(d.Plan.Root.Overlay) == 0 {
		d.Plan.Root.Dirs, d.Plan.Root.Files = nil, nil // they are in the stage
	}
	return r, s, nil
}

// launch has the runtime start the guest.
func (h *hosted) launch(ctx context.Context, c *container, b *bundle.Bundle, d *document.Container) error {
	if err := c.bound(d.Limits); err != nil {
		return err
	}
	r, s, err := h.stage(c, b, d)
	if err != nil {
		return err
	}
	if err := s.make(); err != nil {
		return fmt.Errorf("make the bundle: %w", err)
	}
	return r.start(ctx, s, &d.Plan)
}

// pidFile is where the runtime writes, in the stage, who the guest is.
const pidFile = "pid"

// run starts the runtime, in the control groups of spec. The guest gets the files.
func (r *runtimeContainer) run(l *launch, s *stage, spec spawn.Spec) error {
	name := r.h.kind.name
	args := append([]string{name}, r.h.kind.global...)
	if s.setID {
		args = append(args, r.h.kind.session...)
	}
	args = append(args, "--root", r.root(), "run", "--bundle", s.dir, "--pid-file", s.path(pidFile))
	if r.c.kept != nil {
		args = append(args, "--detach") // else it would stay with the container, and end with this process
	}
	if n := len(l.files) - plan.SocketFD; n > 0 {
		args = append(args, "--preserve-fds", strconv.Itoa(n))
	}
	var err error
	spec.Path, spec.Args, spec.Env, spec.Dir, spec.Files = r.h.path, append(args, r.id()), runtimeEnv, "/", l.files
	spec.ParentDeathSignal, spec.Rlimits = r.c.deathSignal(), r.c.guestLimits()
	r.pid, r.pidfd, err = r.spawner.Start(spec)
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	failpoint.Hit(failpoint.OCIStarted)
	l.close() // the guest's ends among them: a guest that ends is seen
	if r.c.entry != nil {
		return r.c.entry.AddProcess(r.pid)
	}
	return nil
}

// start starts the runtime and waits for the guest's HELLO.
func (r *runtimeContainer) start(ctx context.Context, s *stage, p *plan.Plan) error {
	c := r.c
	var l launch
	defer l.close()
	if err := r.h.connect(c, &l); err != nil {
		return err
	}
	p.Loopback = true
	l.share(c, p)
	if err := l.plan(p); err != nil {
		return err
	}
	if err := r.run(&l, s, spawn.Spec{Group: c.group.Keeper()}); err != nil {
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
	if err := r.findGuest(ctx, s.path(pidFile)); err != nil {
		return err
	}
	if c.kept != nil {
		if err := r.leave(ctx); err != nil {
			return err
		}
	}
	failpoint.Hit(failpoint.OCIMade)
	return c.conn.begin(hello)
}

// findGuest gets hold of the first process. The runtime waits for it, and has
// not ended: the number is not another's. It writes the number after it has
// started the process, which may have said HELLO by then.
func (r *runtimeContainer) findGuest(ctx context.Context, file string) error {
	pid := 0
	for pid == 0 {
		var b []byte
		err := r.spawner.Do(func() (err error) {
			b, err = os.ReadFile(file)
			return err
		})
		switch {
		case err == nil && len(b) > 0:
			if pid, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
				return fmt.Errorf("pid file of %s: %w", r.h.kind.name, err)
			}
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case r.ended():
			return fmt.Errorf("%s has ended%s", r.h.kind.name, r.c.lastWords())
		default:
			time.Sleep(100 * time.Microsecond)
		}
	}
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	r.c.pid, r.c.pidfd = pid, os.NewFile(uintptr(fd), "pidfd")
	// A runtime that does not stay may have ended: then only its mark tells that the
	// number is not another's by now.
	if r.c.kept != nil && brand.Of(pid) != r.c.brand.Guest() {
		r.c.pidfd.Close()
		r.c.pidfd = nil
		return fmt.Errorf("process %d, of which %s says that it is the container's, is not%s", pid, r.h.kind.name, r.c.lastWords())
	}
	if r.c.entry != nil {
		return r.c.entry.AddProcess(pid)
	}
	return nil
}

// ended reports whether the runtime has (pidfd_open(2), poll).
func (r *runtimeContainer) ended() bool {
	rc, err := r.pidfd.SyscallConn()
	if err != nil {
		return true
	}
	n := 0
	_ = rc.Control(func(fd uintptr) { n, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0) })
	return n > 0
}

// leave waits for a runtime that does not stay with its container.
func (r *runtimeContainer) leave(ctx context.Context) error {
	if err := awaitEnd(ctx, r.pid, r.pidfd); err != nil {
		return fmt.Errorf("%s: %w", r.h.kind.name, err)
	}
	r.pidfd.Close()
	r.pidfd = nil
	r.spawner.Close()
	return nil
}

// runtimeGrace is how long a runtime may take to see its container ended and to
// forget it.
const runtimeGrace = 5 * time.Second

// remove ends the container, and what its runtime knows of it.
func (r *runtimeContainer) remove(ctx context.Context) error {
	defer r.spawner.Close()
	if r.c.pidfd != nil {
		r.c.killGuest()
	}
	if r.pidfd != nil {
		if err := r.await(ctx); err != nil {
			return err
		}
		r.pidfd.Close()
		r.pidfd = nil
	}
	if r.c.kept != nil {
		if err := r.c.endGuest(ctx); err != nil {
			return err
		}
	}
	if r.c.pidfd != nil {
		r.c.pidfd.Close()
		r.c.pidfd = nil
	}
	if r.killed || r.c.kept != nil {
		// What it says is not told: it may know nothing of the container, and
		// what counts is what is left.
		_, _ = r.h.command(ctx, slices.Concat(r.h.kind.global, []string{"--root", r.root(), "delete", "--force", r.id()})...)
	}
	if name := r.groups(); name != "" && r.c.kept != nil && r.c.group.Keeper() == nil {
		dirs, err := cgroup.Named(name)
		if err == nil {
			err = cgroup.Remove(ctx, dirs)
		}
		if err != nil {
			return err
		}
	}
	return os.RemoveAll(r.root())
}

// await waits for the runtime, which ends by itself when the guest has. One
// that has no guest yet, or that does not end, is killed.
func (r *runtimeContainer) await(ctx context.Context) error {
	if r.c.pidfd != nil {
		soon, cancel := context.WithTimeout(ctx, runtimeGrace)
		err := awaitChild(soon, r.pid, r.pidfd)
		cancel()
		if err == nil {
			return nil
		}
	}
	r.killed = true
	rc, err := r.pidfd.SyscallConn()
	if err == nil {
		_ = rc.Control(func(fd uintptr) { _ = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	}
	if err := awaitChild(ctx, r.pid, r.pidfd); err != nil {
		return fmt.Errorf("%s: %w", r.h.kind.name, err)
	}
	return nil
}
