package microvm

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/guestconn"
	"github.com/axocoatl/isolation/driver/internal/ids"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/driver/microvm/internal/qemu"
	"github.com/axocoatl/isolation/guest/wire"
	"github.com/axocoatl/isolation/internal/cgroup"
	"github.com/axocoatl/isolation/internal/failpoint"
)

// machine is one sandbox. It implements [proc.Place].
type machine struct {
	guestconn.Programs
	eng   *engine
	name  string
	user  *ids.Range    // who its VMM is; nil: nobody, or this process's user
	entry Entry         // nil: none
	group *cgroup.Group // nil: none
	vm    vm            // nil: not started
	dir   string        // of its sockets; "": none

	from     *Template
	spec     isolation.Spec
	token    []byte  // of the last SYNC that gave one
	borrowed *loaded // the snapshot that it was made of; nil: none

	memory int64 // bytes that the guest has
	still  stillness

	kept *keeping    // its record, if it outlives this process; nil: it does not
	left atomic.Bool // it goes on without this process

	killed atomic.Bool // by this driver, for good
	ending sync.Mutex  // one Remove at a time
	ended  bool        // the VMM is gone, and nothing of it is left here
}

// Attachable implements [proc.Attachable].
func (m *machine) Attachable() {}

// undoTimeout bounds what is done to clean up after a caller gave up.
const undoTimeout = 10 * time.Second

// Create implements [proc.Engine].
func (e *engine) Create(ctx context.Context, id string, spec isolation.Spec) (proc.Place, error) {
	m, err := e.create(ctx, id, spec)
	if err != nil {
		return nil, err
	}
	return m.place(), nil
}

func (e *engine) create(ctx context.Context, id string, spec isolation.Spec) (*machine, error) {
	t, err := e.template(ctx, spec)
	if err != nil {
		return nil, err
	}
	defer e.release(t)
	return e.raise(ctx, id, spec, t)
}

// raise starts a machine that goes on where another was stopped, and makes it
// unlike that before anything else.
func (e *engine) raise(ctx context.Context, id string, spec isolation.Spec, t *loaded) (_ *machine, err error) {
	q, err := e.vmm()
	if err != nil {
		return nil, err
	}
	m := &machine{eng: e, name: "axo-microvm-" + id + "-" + rand.Text()[:10], from: t.Template, spec: spec}
	defer func() {
		if err != nil {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
			defer cancel()
			err = errors.Join(err, m.Remove(undo))
		}
	}()
	m.memory = int64(t.Shape.MemoryMiB) << 20
	if err := m.takeUser(); err != nil {
		return nil, err
	}
	if spec.Detached {
		if err := m.keepNew(id); err != nil {
			return nil, err
		}
	}
	if err := m.account(t.Shape); err != nil {
		return nil, err
	}
	dir, err := m.sockets()
	if err != nil {
		return nil, err
	}
	data, err := e.copied(ctx, q, t, spec.Mounts)
	if err != nil {
		return nil, err
	}
	if data != nil {
		defer data.Close()
	}
	// Each machine reads the state from its beginning.
	state, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", t.state.Fd()))
	if err != nil {
		return nil, err
	}
	defer state.Close()
	m.vm, err = q.restore(ctx, &e.spawner, &restoreConfig{
		machineConfig: machineConfig{
			shape: t.Shape, dir: dir, session: m.kept != nil, ram: t.ram, disk: t.disk, data: data, uid: m.uid(), tasks: m.group.Joins(), group: m.group.Into(), started: m.started,
		}, state: state, live: t.Live != nil,
	})
	if err != nil {
		return nil, err
	}
	failpoint.Hit(failpoint.VMRestored)
	m.Programs = guestconn.Programs{Resources: spec.Resources, Request: t.request(spec.Requirement), PID: m.vm.pid(), Lost: m.lost}
	for tries := 1; ; tries++ {
		err := m.introduce(ctx, spec, t.token())
		if err == nil && m.kept != nil {
			if err := m.describe(); err != nil {
				return nil, fmt.Errorf("record %s: %w", m.name, err)
			}
		}
		if err == nil {
			failpoint.Hit(failpoint.VMSynced)
			return m, nil
		}
		if !q.caps().resets || tries == 3 || ctx.Err() != nil {
			return nil, err
		}
	}
}

// introduce connects to the guest and makes the machine unlike all others. It
// can be done again: nothing has run yet.
func (m *machine) introduce(ctx context.Context, spec isolation.Spec, token []byte) error {
	rw, err := m.vm.DialGuest(ctx)
	if err != nil {
		return err
	}
	if m.Conn, err = guestconn.Open(ctx, rw, token); err != nil {
		return fmt.Errorf("%w%s", err, m.vm.LastWords())
	}
	sync := unlike(spec)
	if err := m.Conn.Sync(ctx, sync); err != nil {
		m.Conn.Close()
		return fmt.Errorf("sync: %w", err)
	}
	m.token = sync.Token
	return m.mountCopied(ctx, spec.Mounts)
}

// token is what a guest that was connected to another host, and may be amidst a
// frame, waits for; nil: nothing.
func (t *Template) token() []byte {
	if t.Live == nil {
		return nil
	}
	return t.Live.Token
}

// sockets is a directory for the machine's sockets: that of its record, or one of
// its own.
func (m *machine) sockets() (_ string, err error) {
	if m.kept != nil {
		return m.kept.Dir(), nil
	}
	m.dir, err = m.eng.runDir()
	return m.dir, err
}

// unlike makes what tells a machine from all others of its template.
func unlike(spec isolation.Spec) *wire.SyncMessage {
	u := random(16)
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80 // RFC 9562, version 4
	s := again(spec.Resources)
	s.Hostname = spec.Hostname
	if s.Hostname == "" {
		s.Hostname = "sandbox"
	}
	s.MachineID, s.BootID = hex.EncodeToString(random(16)), fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
	s.Token = random(wire.TokenBytes)
	return s
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// takeUser gives the machine's VMM a user of its own on the host, which is nobody
// else: not of this host's, nor of another sandbox.
func (m *machine) takeUser() (err error) {
	if os.Geteuid() == 0 && m.eng.Name() == QEMU {
		m.user, err = m.eng.users.Take()
	}
	return err
}

func (m *machine) uid() int {
	if m.user == nil {
		return 0
	}
	return m.user.Base
}

// account makes the journal's entry and the control group.
func (m *machine) account(s qemu.Shape) (err error) {
	if r := m.eng.cfg.Recorder; r != nil && m.kept == nil {
		if m.entry, err = r.Record(m.name); err != nil {
			return fmt.Errorf("record %s: %w", m.name, err)
		}
		failpoint.Hit(failpoint.VMRecorded)
	}
	g := m.eng.tree()
	if !g.Any() {
		return nil
	}
	limits := groupLimits(g, s)
	if m.entry != nil {
		for _, dir := range g.Paths(m.name, limits) {
			if err := m.entry.AddPath("cgroup", dir); err != nil {
				return fmt.Errorf("record %s: %w", m.name, err)
			}
		}
	}
	m.group, err = g.Create(m.name, limits)
	failpoint.Hit(failpoint.VMGroup)
	return err
}

// groupLimits are those of a machine's control group.
func groupLimits(g *cgroup.Tree, s qemu.Shape) (l cgroup.Limits) {
	if g.Has(cgroup.Memory) {
		l.MemoryBytes = s.HostBytes()
	}
	if g.Has(cgroup.Pids) {
		l.Pids = maxThreads
	}
	return l
}

// maxThreads bounds the threads of a VMM.
const maxThreads = 64

func (m *machine) started(pid int) error {
	failpoint.Hit(failpoint.VMStarted)
	if m.entry == nil {
		return nil
	}
	return m.entry.AddProcess(pid)
}

// runDir makes a directory for the sockets of a machine.
func (e *engine) runDir() (string, error) {
	if err := os.MkdirAll(e.cfg.RunDir, 0o700); err != nil {
		return "", err
	}
	if err := e.ownsRunDir(); err != nil {
		return "", err
	}
	// The process that has it is in the name: see sweepGone.
	return os.MkdirTemp(e.cfg.RunDir, owned(""))
}

// ownsRunDir reports why somebody else may have a hand in that directory: nil if
// nobody has.
func (e *engine) ownsRunDir() error {
	info, err := os.Lstat(e.cfg.RunDir)
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !info.IsDir() || ok && int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s is not a directory of this user's alone: %w", e.cfg.RunDir, isolation.ErrPermissionDenied)
	}
	return nil
}

// owned begins the name of a directory of this process.
func owned(prefix string) string {
	return fmt.Sprintf("%s%d.%d-", prefix, os.Getpid(), started(os.Getpid()))
}

// sweepGone removes the directories of processes that are gone; see owned.
func sweepGone(dir, prefix string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, d := range entries {
		var pid int
		var start uint64
		if _, err := fmt.Sscanf(d.Name(), prefix+"%d.%d-", &pid, &start); err == nil && started(pid) != start {
			_ = os.RemoveAll(filepath.Join(dir, d.Name())) // the next one tries again
		}
	}
}

// started is when a process started, in ticks since the boot
// (proc_pid_stat(5)); 0: there is none.
func started(pid int) uint64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name of the program, in parentheses, may have any.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 {
		return 0
	}
	n, err := strconv.ParseUint(f[19], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// request makes the guest's requests of processes.
func (t *Template) request(req isolation.Requirement) func(*proc.Process) (*wire.ExecMessage, error) {
	image, config := t.Image, t.Config
	return func(p *proc.Process) (*wire.ExecMessage, error) {
		s := p.Spec
		if image {
			var err error
			if s, err = config.Process(req, s); err != nil {
				return nil, err
			}
			s.User = p.Spec.User // the image's is in the guest's plan
		}
		return execMessage(s), nil
	}
}

const softFiles, hardFiles = 1024, 4096

func execMessage(s isolation.ProcessSpec) *wire.ExecMessage {
	m := &wire.ExecMessage{
		Args: s.Args, Env: s.Env, Cwd: s.Cwd, User: s.User, Tty: s.Terminal, Rows: uint64(s.Size.Rows), Cols: uint64(s.Size.Cols),
	}
	files := wire.Rlimit{Resource: unix.RLIMIT_NOFILE, Cur: softFiles, Max: hardFiles}
	if n := uint64(s.Limits.OpenFiles); n > 0 {
		files.Cur, files.Max = n, n
	}
	m.Rlimits = append(m.Rlimits, files, wire.Rlimit{Resource: unix.RLIMIT_CORE})
	if c := s.Limits.CPU; c > 0 {
		// What is left if the host cannot watch.
		n := uint64(c.Seconds()) + 2
		m.Rlimits = append(m.Rlimits, wire.Rlimit{Resource: unix.RLIMIT_CPU, Cur: n, Max: n + 1})
	}
	return m
}

// Start implements [proc.Place].
func (m *machine) Start(ctx context.Context, p *proc.Process) (proc.Task, error) {
	before := m.vm.CPU()
	start := m.Programs.Start
	if m.kept != nil {
		start = m.startKept
	}
	t, err := start(ctx, p)
	if err != nil {
		return nil, err
	}
	return m.task(p.ID(), t, before), nil
}

func (m *machine) task(id string, t proc.Task, before time.Duration) *task {
	return &task{Holder: t.(proc.Holder), id: id, m: m, before: before, over: make(chan struct{})}
}

// Adopt implements [proc.Adopter].
func (m *machine) Adopt(ctx context.Context, p *proc.Process, ran time.Duration) (proc.Task, error) {
	if m.kept != nil {
		if err := m.adoptKept(p, ran); err != nil {
			return nil, fmt.Errorf("write down the process: %w", err)
		}
	}
	t, err := m.Programs.Adopt(ctx, p)
	if err != nil {
		return nil, err
	}
	return m.task(p.ID(), t, -1<<62), nil // what its VMM used before is not known
}

// task is a program whose machine ends if the guest does not end it.
type task struct {
	proc.Holder
	id     string
	m      *machine
	ended  atomic.Bool
	over   chan struct{} // closed when it has ended and its output is delivered
	killed atomic.Bool   // its machine was, because the guest did not end it

	before time.Duration // what the VMM had used when the program was started
	most   atomic.Int64  // ns that it can have used, as of the last look
	used   atomic.Int64  // ns that it had used, as of then
}

// obeys is how long a guest has to end a program.
const obeys = 5 * time.Second

// CPU implements [proc.Task]. An emulated guest takes the time in which the host
// had no processor for it for its programs' own: what the VMM has used bounds that.
func (t *task) CPU() time.Duration {
	if t.m.still.is.Load() {
		return time.Duration(t.used.Load()) // a machine that stands still answers nothing
	}
	used := t.bounded(t.Holder.CPU())
	t.used.Store(int64(used))
	return used
}

func (t *task) bounded(guest time.Duration) time.Duration {
	if now := t.m.vm.CPU(); now > t.before {
		t.most.Store(int64(now - t.before))
	}
	if most := time.Duration(t.most.Load()); most > 0 {
		return min(guest, most)
	}
	return guest
}

func (t *task) Settle(st *proc.Status) {
	t.Holder.Settle(st)
	close(t.over)
	st.CPU = t.bounded(st.CPU)
}

// Signal implements [proc.Task]. What does not end a program waits in a paused
// machine.
func (t *task) Signal(sig isolation.Signal) error {
	err := t.Holder.Signal(sig)
	if err == nil && sig == isolation.SIGKILL && t.m.still.is.Load() {
		go t.m.letEnd(t)
	}
	return err
}

func (t *task) Kill() {
	t.Holder.Kill()
	if t.m.still.is.Load() {
		go t.m.letEnd(t)
		return
	}
	time.AfterFunc(obeys, func() {
		switch {
		case t.ended.Load():
		case t.m.still.is.Load(): // paused before it could obey
			t.m.letEnd(t)
		default:
			t.killed.Store(true)
			t.m.vm.Kill()
		}
	})
}

func (t *task) Wait() proc.Status {
	st := t.Holder.Wait()
	t.ended.Store(true)
	if st.Lost && (t.m.killed.Load() || t.killed.Load()) {
		// It is known what became of it: it ended with its machine.
		st = proc.Status{Signal: isolation.SIGKILL, Forced: true, Ended: st.Ended, CPU: st.CPU}
	}
	for i, h := range st.Hits {
		if h.Limit == isolation.LimitMemory && h.Value == 0 {
			// None was asked for: it is the machine that has no more.
			st.Hits[i].Value, st.Detail = t.m.memory, fmt.Sprintf("all %d MiB of the machine were in use", t.m.memory>>20)
		}
	}
	return st
}

// Forget implements [proc.Holder].
func (t *task) Forget() {
	t.Holder.Forget()
	if t.m.kept == nil {
		return
	}
	if err := t.m.kept.unnote(t.id); err != nil {
		t.m.eng.cfg.Logger.Warn("the record of a program that has ended stays", "sandbox", t.m.name, "program", t.id, "error", err)
	}
}

// Resize implements the ability of a process with a terminal.
func (t *task) Resize(ctx context.Context, size isolation.TerminalSize) error {
	r, ok := t.Holder.(isolation.Resizer)
	if !ok {
		return proc.Unsupported("resize", "a process with a terminal")
	}
	return r.Resize(ctx, size)
}

// Prepare implements [proc.Preparer].
func (m *machine) Prepare(ctx context.Context, language string) error {
	return m.Conn.Prepare(ctx, language, nil)
}

// Files implements [proc.Filer].
func (m *machine) Files() proc.Files { return &guestconn.Files{Conn: m.Conn, Users: true} }

// Ports implements [proc.Porter].
func (m *machine) Ports() proc.Ports { return &guestconn.Ports{Conn: m.Conn} }

// Lost reports whether nothing can be run any more.
func (m *machine) Lost() bool {
	select {
	case <-m.Conn.Gone():
		return true
	default:
		return false
	}
}

// lost says why the connection has ended.
func (m *machine) lost(err error) error {
	if m.left.Load() {
		return err
	}
	// A machine that has died says so a moment later.
	select {
	case <-m.vm.Ended():
	case <-time.After(obeys / 10):
		return fmt.Errorf("the guest: %w", err)
	}
	return m.fate()
}

// fate says what ended a machine that this driver did not end.
func (m *machine) fate() error {
	if sig := m.vm.KilledBy(); sig != 0 {
		if c := m.group.Read(); sig == int(unix.SIGKILL) && c.OOM > 0 {
			return errors.New("the host's kernel killed the machine's VMM for want of memory, at the limit of its control group")
		}
		return fmt.Errorf("the machine's VMM was killed by signal %d", sig)
	}
	if p := m.vm.Panicked(); p != "" {
		return fmt.Errorf("the guest's kernel: %.300s", p)
	}
	return errors.New("the guest has switched its machine off, or reset it")
}

// Kill implements [proc.Place].
func (m *machine) Kill(context.Context) error {
	m.killed.Store(true)
	m.vm.Kill()
	return nil
}

// Remove implements [proc.Place].
func (m *machine) Remove(ctx context.Context) error {
	m.ending.Lock()
	defer m.ending.Unlock()
	if m.kept != nil && m.entry != nil {
		if err := m.kept.Unready(); err != nil {
			return err
		}
	}
	if m.vm != nil && !m.ended {
		m.vm.Kill()
		select {
		case <-m.vm.Ended():
		case <-ctx.Done():
			return fmt.Errorf("the VMM, process %d, has not ended: %w", m.vm.pid(), ctx.Err())
		}
		m.vm.Wait()
		m.ended = true
	}
	failpoint.Hit(failpoint.VMEnded)
	if m.Conn != nil {
		m.Conn.Close()
	}
	if m.group != nil {
		if err := m.group.Delete(ctx); err != nil {
			return err
		}
		m.group = nil
	}
	failpoint.Hit(failpoint.VMUngrouped)
	if m.dir != "" {
		if err := os.RemoveAll(m.dir); err != nil {
			return err
		}
		m.dir = ""
	}
	if m.user != nil {
		m.user.File.Close()
		m.user = nil
	}
	if m.borrowed != nil {
		m.eng.release(m.borrowed)
		m.borrowed = nil
	}
	failpoint.Hit(failpoint.VMRemoved)
	if m.entry != nil {
		if err := m.entry.Done(); err != nil {
			return err
		}
		m.entry = nil
	}
	return nil
}

// run runs a program of the driver's own, and returns its status.
func run(ctx context.Context, c *guestconn.Conn, args ...string) (int, error) {
	p, err := c.Exec(ctx, &wire.ExecMessage{ID: "axo-" + rand.Text()[:8], Args: args, NoStdin: true})
	if err != nil {
		return 0, fmt.Errorf("run %s: %w", args[0], err)
	}
	defer p.Forget()
	go func() { _, _ = io.Copy(io.Discard, p.Stdout) }()
	go func() { _, _ = io.Copy(io.Discard, p.Stderr) }()
	select {
	case <-p.Done():
	case <-ctx.Done():
		return 0, fmt.Errorf("run %s: %w", args[0], ctx.Err())
	}
	m, err := p.Wait()
	if err != nil {
		return 0, fmt.Errorf("run %s: %w", args[0], err)
	}
	if m.Cause == wire.CauseSignaled {
		return 128 + int(m.Signal), nil
	}
	return int(m.Code), nil
}
