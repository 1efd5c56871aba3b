package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/driver/internal/root"
	"github.com/axocoatl/isolation/driver/oci/internal/seccomp"
	"github.com/axocoatl/isolation/guest/plan"
	"github.com/axocoatl/isolation/guest/wire"
	"github.com/axocoatl/isolation/internal/cgroup"
	"github.com/axocoatl/isolation/internal/failpoint"
	"github.com/axocoatl/isolation/internal/spawn"
)

// New returns the engine "builtin".
func New(c Config) (*Driver, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	if c.DiskBytes == 0 {
		c.DiskBytes = min(1<<30, hostMemory()/4)
	}
	e := &builtin{cfg: c}
	e.guest, e.guestErr = findGuest(&c)
	return proc.New(e, c.Drain), nil
}

func hostMemory() int64 {
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) != nil {
		return 4 << 30
	}
	return int64(si.Totalram) * int64(si.Unit)
}

// memoryFile puts a program into a memory file that nobody can change.
func memoryFile(name string, data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(data); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL); err != nil {
		f.Close()
		return nil, os.NewSyscallError("fcntl", err)
	}
	return f, nil
}

// builtin is the engine that makes containers itself.
type builtin struct {
	cfg      Config
	guest    program
	guestErr error
	ranges   ranges
	spawner  spawn.Spawner
	closing  sync.Once

	mu    sync.Mutex
	found *cgroup.Tree // nil: not looked for yet
}

func (e *builtin) Name() string { return "builtin" }

func (e *builtin) Close() error {
	e.spawner.Close()
	e.closing.Do(func() {
		if e.guest.file != nil {
			_ = e.guest.file.Close() // nothing was written to it
		}
	})
	return nil
}

// groups says where control groups can be made, as of the last look.
func (e *builtin) groups(again bool) *cgroup.Tree {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.found == nil || again {
		if e.cfg.NoCgroup {
			e.found = cgroup.None("turned off by configuration")
		} else {
			e.found = cgroup.Find()
		}
	}
	return e.found
}

func (e *builtin) Features() isolation.Features {
	f := isolation.Features{
		Tier: isolation.TierOCI, Engine: "builtin", Version: "host rootfs",
		Runs: []isolation.Requirement{isolation.Python, isolation.Shell, isolation.Arbitrary},
		Enforces: []isolation.Enforcement{
			{Limit: isolation.LimitWall, Enforced: true, By: "host timer"},
			{Limit: isolation.LimitOutput, Enforced: true, By: "host pump"},
			{Limit: isolation.LimitDisk, Enforced: true, Uncounted: true, By: "size of the tmpfs that holds all that is writable; read-write mounts are not bounded"},
			{Limit: isolation.LimitFiles, Enforced: true, By: "RLIMIT_NOFILE, of each process"},
			{Limit: isolation.LimitFuel, Reason: "native programs have no fuel"},
		},
		Walls: []isolation.Wall{
			{Name: "namespaces", Present: true, Detail: "user, pid, mount, network (loopback only), ipc, uts, cgroup"},
			{Name: "capabilities", Present: true, Detail: "none, no_new_privs"},
			{Name: "seccomp", Present: true, Detail: "moby's default profile"},
		},
		Abilities: []string{isolation.AbilityPrepare},
		Options: []isolation.Option{
			isolation.OptionCwd, isolation.OptionUser, isolation.OptionHostname, isolation.OptionMounts, isolation.OptionTerminal, isolation.OptionRootPath,
		},
	}
	if e.cfg.Images != nil {
		f.Runs = append(f.Runs, isolation.ContainerImage)
		f.Options = append(f.Options, isolation.OptionImage)
	}
	if e.guest.path != "" {
		f.Depends = []string{e.guest.path}
	}
	return f
}

// Probe makes a container and runs something in it.
func (e *builtin) Probe(ctx context.Context, f *isolation.Features) error {
	if e.guestErr != nil {
		return e.guestErr
	}
	g := e.groups(true)
	for _, l := range []struct {
		limit      isolation.Limit
		controller string
	}{{isolation.LimitMemory, cgroup.Memory}, {isolation.LimitPids, cgroup.Pids}, {isolation.LimitCPUs, cgroup.CPU}} {
		x := isolation.Enforcement{Limit: l.limit, Enforced: g.Has(l.controller), By: g.Version()}
		if !x.Enforced {
			x.By, x.Reason = "", g.Why(l.controller)
		}
		f.Enforces = append(f.Enforces, x)
	}
	cpu := "process clocks, polled, and RLIMIT_CPU behind it"
	if g.CountsCPU() {
		cpu = g.Version() + ", polled, and RLIMIT_CPU behind it"
	}
	f.Enforces = append(f.Enforces, isolation.Enforcement{Limit: isolation.LimitCPUTime, Enforced: true, By: cpu})
	if g.Any() {
		f.Walls = append(f.Walls, isolation.Wall{Name: "cgroup", Present: true, Detail: g.Version()})
	} else {
		f.Walls = append(f.Walls, isolation.Wall{Name: "cgroup", Detail: g.Why(cgroup.Memory)})
	}
	notes, err := e.probe(ctx)
	if err != nil {
		return explain(err)
	}
	f.Warnings = append(f.Warnings, notes...)
	if err := e.probeOverlay(ctx); err != nil {
		f.Runs = slices.DeleteFunc(f.Runs, func(r isolation.Requirement) bool { return r == isolation.ContainerImage })
		f.Options = slices.DeleteFunc(f.Options, func(o isolation.Option) bool { return o == isolation.OptionImage || o == isolation.OptionRootPath })
		f.Warnings = append(f.Warnings, "no images, no --root: "+err.Error())
	}
	return nil
}

var probes atomic.Int64

func (e *builtin) probe(ctx context.Context) (notes []string, err error) {
	id := fmt.Sprintf("probe-%d-%d", os.Getpid(), probes.Add(1))
	pl, err := e.create(ctx, id, isolation.Spec{Requirement: isolation.Shell})
	if err != nil {
		return nil, err
	}
	defer func() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		err = errors.Join(err, pl.Remove(undo))
	}()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	ch, err := pl.conn.spawn(ctx, &wire.SpawnMessage{Args: []string{"/bin/sh", "-c", "exit 7"}, Rlimits: rlimits(isolation.Limits{}, pl.brand)},
		[]*os.File{null, null, null})
	if err != nil {
		return nil, err
	}
	select {
	case <-ch.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	st, err := ch.Wait()
	if err == nil && (st.Code != 7 || st.Signal != 0) {
		err = fmt.Errorf("a shell that exits with 7 has status %d, signal %d", st.Code, st.Signal)
	}
	return pl.notes, err
}

// explain adds what a person can do about a host that allows no containers.
func explain(err error) error {
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.ENOSPC) {
		return err
	}
	for _, s := range []struct{ file, bad, fix string }{
		{"/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000"},
		{"/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1, or run as root"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or run as root"},
	} {
		if b, rerr := os.ReadFile(s.file); rerr == nil && strings.TrimSpace(string(b)) == s.bad {
			return fmt.Errorf("%w; this host does not allow user namespaces (%s is %s): %s", err, s.file, s.bad, s.fix)
		}
	}
	return err
}

func (e *builtin) Check(spec isolation.Spec) error {
	switch {
	case e.guestErr != nil:
		return e.guestErr
	case !slices.Contains(e.Features().Runs, spec.Requirement):
		return proc.Unsupported("requirement "+spec.Requirement.String(), "another tier or engine")
	case !spec.Module.IsZero():
		return proc.Unsupported("a module", "the wasm tier")
	case spec.Func != "":
		return proc.Unsupported("func", `engine "func"`)
	case spec.Root.Image != "" && e.cfg.Images == nil:
		return proc.Unsupported("an image", "a store of images in Config.Images")
	case spec.Requirement == isolation.ContainerImage && spec.Root.Image == "":
		return fmt.Errorf("a container image is to run, and none is named: %w", isolation.ErrInvalidArgument)
	case spec.Profile == "session":
		return proc.Unsupported("profile session", "a later version of this engine")
	case spec.Language != "":
		return proc.Unsupported("language "+spec.Language, "a tier with an interpreter for it")
	}
	for _, m := range spec.Mounts {
		if err := e.checkMount(m); err != nil {
			return err
		}
	}
	g := e.groups(false)
	for _, l := range []struct {
		asked            bool
		what, controller string
	}{
		{spec.Resources.MemoryBytes > 0, "memory limit", cgroup.Memory},
		{spec.Resources.Pids > 0, "pids limit", cgroup.Pids},
		{spec.Resources.CPUs > 0, "cpu limit", cgroup.CPU},
	} {
		if l.asked && !g.Has(l.controller) {
			return proc.Unsupported(l.what, "a cgroup with the controller "+l.controller+": "+g.Why(l.controller))
		}
	}
	return nil
}

func (e *builtin) CheckProcess(p isolation.ProcessSpec) error {
	if p.Limits.Fuel > 0 {
		return proc.Unsupported("fuel limit", "the wasm tier")
	}
	return nil
}

// undoTimeout bounds what is done to clean up after a caller gave up.
const undoTimeout = 10 * time.Second

func (e *builtin) Create(ctx context.Context, id string, spec isolation.Spec) (proc.Place, error) {
	pl, err := e.create(ctx, id, spec)
	if err != nil {
		return nil, err
	}
	return pl, nil
}

func (e *builtin) create(ctx context.Context, id string, spec isolation.Spec) (_ *container, err error) {
	if e.guestErr != nil {
		return nil, e.guestErr
	}
	c := &container{eng: e, req: spec.Requirement}
	defer func() {
		if err != nil {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
			defer cancel()
			err = errors.Join(err, c.Remove(undo))
		}
	}()
	if c.brand, err = proc.NewBrand(); err != nil {
		return nil, err
	}
	if err := e.account(c, id, spec.Resources); err != nil {
		return nil, err
	}
	c.Tracked = proc.NewTracked(proc.TrackedConfig{
		Brand: c.brand, Group: c.group, Resources: spec.Resources, Drain: e.cfg.Drain, Start: c.startProgram,
	})
	if c.ids, err = e.ranges.take(); err != nil {
		return nil, err
	}
	if err := e.openRoot(ctx, c, spec); err != nil {
		return nil, err
	}
	if err := e.launch(ctx, c, id, spec); err != nil {
		return nil, err
	}
	return c, nil
}

// account makes the journal's entry and the control groups.
func (e *builtin) account(c *container, id string, res isolation.Resources) (err error) {
	name := fmt.Sprintf("axo-oci-%s-%s", id, c.brand.Name())
	if r := e.cfg.Recorder; r != nil {
		if c.entry, err = r.Record(name); err != nil {
			return fmt.Errorf("record %s: %w", name, err)
		}
	}
	failpoint.Hit(failpoint.OCIRecorded)
	g := e.groups(false)
	if !g.Any() {
		return nil
	}
	limits := cgroup.Limits{MemoryBytes: res.MemoryBytes, Pids: res.Pids, CPUs: res.CPUs}
	if c.entry != nil {
		for _, dir := range g.Paths(name, limits) {
			if err := c.entry.AddPath("cgroup", dir); err != nil {
				return fmt.Errorf("record %s: %w", name, err)
			}
		}
	}
	if c.group, err = g.Create(name, limits); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	failpoint.Hit(failpoint.OCIGroup)
	return nil
}

// makePlan describes the container, and opens what the guest gets by
// descriptor.
func (e *builtin) makePlan(c *container, id string, spec isolation.Spec) (*plan.Plan, error) {
	p := &plan.Plan{Hostname: spec.Hostname, Loopback: true}
	if p.Hostname == "" {
		p.Hostname = "sandbox"
	}
	p.Process = plan.Process{UID: userID, GID: userID, KeepGroups: c.ids.single}
	p.Root.Size, p.Root.Inodes = spec.Resources.DiskBytes, 1<<20
	if p.Root.Size == 0 {
		p.Root.Size = e.cfg.DiskBytes
	}
	if n := spec.Resources.CPUs; n > 0 {
		p.Process.CPUs = int(math.Ceil(n))
	}
	sources := slices.Clone(systemDirs)
	if c.root == nil {
		hostRoot(p)
	} else {
		if err := givenRoot(c, p); err != nil {
			return nil, err
		}
		sources = c.root.Layers
	}
	kernelFiles(p)
	p.Root.Files = append(p.Root.Files,
		plan.File{Path: "/etc/hostname", Mode: 0o644, Data: p.Hostname + "\n"},
		plan.File{Path: "/etc/hosts", Mode: 0o644, Data: "127.0.0.1\tlocalhost " + p.Hostname + "\n::1\tlocalhost\n"},
	)
	writable := false
	var err error
	for _, m := range spec.Mounts {
		writable = writable || !m.ReadOnly
		sources = append(sources, filepath.Clean(m.Source))
	}
	if p.Staging, err = staging(sources); err != nil {
		return nil, err
	}
	if writable {
		p.Process.Filter, err = seccomp.DefaultWritable()
	} else {
		p.Process.Filter, err = seccomp.Default()
	}
	return p, err
}

// launch starts the guest and waits for it to have made the container.
func (e *builtin) launch(ctx context.Context, c *container, id string, spec isolation.Spec) (err error) {
	p, err := e.makePlan(c, id, spec)
	if err != nil {
		return err
	}
	var open []*os.File
	defer func() {
		for _, f := range open {
			f.Close()
		}
	}()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	open = append(open, null)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "guest")
	open = append(open, theirs)
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		return err
	}
	c.conn = newConn(os.NewFile(uintptr(fds[0]), "guest"))
	c.conn.member = c.isMember
	said, errs, err := os.Pipe() // what the guest says when it cannot go on
	if err != nil {
		return err
	}
	c.stderr = said
	open = append(open, errs)

	files := []*os.File{null, null, errs, theirs, nil}
	pass := func(f *os.File) int {
		files = append(files, f)
		return len(files) - 1
	}
	for _, f := range c.group.Joins() {
		p.Tasks = append(p.Tasks, pass(f))
	}
	layers, err := c.openLayers()
	open = append(open, layers...)
	if err != nil {
		return err
	}
	for i, f := range layers {
		p.Root.Overlay[i] = plan.Layer{FD: pass(f)}
	}
	mounts, err := e.openMounts(c, p, spec.Mounts)
	open = append(open, mounts...)
	if err != nil {
		return err
	}
	for i := range p.Mounts {
		if n := p.Mounts[i].FD; n > 0 { // its number in mounts, from 1
			p.Mounts[i].FD = pass(mounts[n-1])
		}
	}
	doc, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if files[plan.PlanFD], err = memoryFile("plan", doc); err != nil {
		return err
	}
	open = append(open, files[plan.PlanFD])
	if _, err := files[plan.PlanFD].Seek(0, io.SeekStart); err != nil {
		return err
	}
	// By a number above all that the guest gets: it is looked up when those
	// are in place.
	exe, err := dupAbove(e.guest.file, len(files))
	if err != nil {
		return err
	}
	open = append(open, exe)
	pid, pidfd, err := e.spawner.Start(spawn.Spec{
		Path: fmt.Sprintf("/proc/self/fd/%d", exe.Fd()), Args: []string{guestName}, Env: []string{"GOMAXPROCS=2"}, Dir: "/", Files: files,
		Cred:              c.ids.credential(),
		ParentDeathSignal: syscall.SIGKILL,
		Namespaces: unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC |
			unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP,
		Map: func(pid int) error {
			if err := c.ids.write(pid); err != nil {
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
	theirs.Close()
	errs.Close()
	hello, err := c.conn.hello(ctx)
	if err != nil {
		return fmt.Errorf("make the container: %w%s", err, c.lastWords())
	}
	c.notes = hello.Notes
	go c.conn.serve()
	return nil
}

func dupAbove(f *os.File, n int) (*os.File, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	cerr := rc.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, n+64) })
	if err := errors.Join(cerr, err); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// container is one sandbox.
type container struct {
	*proc.Tracked
	eng    *builtin
	brand  proc.Brand
	group  *cgroup.Group // nil: none
	entry  Entry         // nil: none
	ids    *idMap
	root   *root.FS // nil: the host's system directories
	req    isolation.Requirement
	conn   *conn
	pid    int
	pidfd  *os.File
	stderr *os.File
	notes  []string
}

// isMember reports whether a process is one of this sandbox's programs.
func (c *container) isMember(pid int) bool {
	// One that has ended by now is in no group any more, and has its brand.
	if proc.BrandOf(pid).SameSandbox(c.brand) {
		return true
	}
	if c.group == nil {
		return false
	}
	pids, err := c.group.PIDs()
	return err == nil && slices.Contains(pids, pid)
}

// lastWords is what the guest wrote before it ended.
func (c *container) lastWords() string {
	if c.pidfd != nil {
		c.killGuest()
	}
	_ = c.stderr.SetReadDeadline(time.Now().Add(time.Second))
	b, _ := io.ReadAll(io.LimitReader(c.stderr, 2048))
	if b = bytes.TrimSpace(b); len(b) == 0 {
		return ""
	}
	return "; the guest said: " + strings.ToValidUTF8(string(b), "?")
}

// Lost reports whether the container has ended by itself.
func (c *container) Lost() bool { return isClosed(c.conn.gone) }

func (c *container) killGuest() {
	rc, err := c.pidfd.SyscallConn()
	if err == nil {
		_ = rc.Control(func(fd uintptr) { _ = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	}
}

// startProgram is the Start of a [proc.Tracked].
func (c *container) startProgram(ctx context.Context, p *proc.Process, files [3]*os.File, b proc.Brand) (proc.Child, error) {
	s := p.Spec
	if c.root != nil {
		var err error
		if s, err = c.root.Config.Process(c.req, s); err != nil {
			return nil, err
		}
		s.User = p.Spec.User // the image's is in the plan
	}
	m := wire.SpawnMessage{
		Args: s.Args, Env: s.Env, Cwd: s.Cwd, User: s.User, Rlimits: rlimits(s.Limits, b),
		Tty: s.Terminal, Rows: uint64(s.Size.Rows), Cols: uint64(s.Size.Cols),
	}
	ch, err := c.conn.spawn(ctx, &m, files[:])
	if err != nil {
		return nil, err
	}
	return ch, nil
}

// Prepare implements [proc.Preparer].
func (c *container) Prepare(ctx context.Context, language string) error {
	c.Occupied()
	return c.conn.prepare(ctx, language)
}

const softFiles, hardFiles = 1024, 4096

// rlimits are those of a program: what it may, and the brand.
func rlimits(l isolation.Limits, b proc.Brand) []wire.Rlimit {
	files := wire.Rlimit{Resource: unix.RLIMIT_NOFILE, Cur: softFiles, Max: hardFiles}
	if n := uint64(l.OpenFiles); n > 0 {
		files.Cur, files.Max = n, n
	}
	out := []wire.Rlimit{{Resource: unix.RLIMIT_CORE}, {Resource: unix.RLIMIT_RTTIME, Cur: uint64(b), Max: uint64(b)}, files}
	if l.CPU > 0 {
		// As for tier none: what is left if the host cannot watch.
		s := uint64(l.CPU.Seconds()) + 2
		out = append(out, wire.Rlimit{Resource: unix.RLIMIT_CPU, Cur: s, Max: s + 1})
	}
	return out
}

// Remove ends the container and everything in it: with the first process of a
// pid namespace the kernel kills all others (pid_namespaces(7)), and the
// namespaces and mounts go with the last of them.
func (c *container) Remove(ctx context.Context) error {
	if c.pidfd != nil {
		c.killGuest()
		if err := awaitChild(ctx, c.pid, c.pidfd); err != nil {
			return fmt.Errorf("the container's first process: %w", err)
		}
		c.pidfd.Close()
		c.pidfd = nil
	}
	if c.conn != nil {
		c.conn.f.Close()
	}
	if c.stderr != nil {
		c.stderr.Close()
		c.stderr = nil
	}
	if c.Tracked != nil {
		if err := c.Tracked.Remove(ctx); err != nil {
			return err
		}
	} else if err := c.group.Delete(ctx); err != nil {
		return err
	}
	c.group = nil
	failpoint.Hit(failpoint.OCIRemoved)
	if c.ids != nil {
		c.ids.release()
	}
	c.root.Release()
	if c.entry != nil {
		return c.entry.Done()
	}
	return nil
}

// awaitChild reaps a child of this process.
func awaitChild(ctx context.Context, pid int, pidfd *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = pidfd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	rc, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var werr error
	err = rc.Read(func(uintptr) bool {
		for {
			var got int
			got, werr = unix.Wait4(pid, nil, unix.WNOHANG, nil)
			if werr != unix.EINTR {
				return got != 0
			}
		}
	})
	if err != nil && ctx.Err() != nil {
		_ = pidfd.SetReadDeadline(time.Time{})
		return ctx.Err()
	}
	if err == nil && werr != nil && werr != unix.ECHILD {
		err = os.NewSyscallError("wait4", werr)
	}
	return err
}
