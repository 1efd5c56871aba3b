package guest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/guest/wire"
	"github.com/axocoatl/isolation/internal/cgroup"
	"github.com/axocoatl/isolation/internal/spawn"
)

// program is one that was started.
type program struct {
	pid    int
	fd     *os.File
	group  *cgroup.Group // of its own; nil: none
	before time.Duration // CPU time that was used before it began
	began  time.Time
}

// classError is an error with the class that the host gives it; see
// wire.FailMessage.
type classError struct {
	class string
	err   error
}

func (e *classError) Error() string { return e.err.Error() }
func (e *classError) Unwrap() error { return e.err }

const (
	classInvalid    = "invalid argument"
	classNotFound   = "not found"
	classPermission = "permission denied"
	classExhausted  = "resource exhausted"
	classExists     = "already exists"
	classFailed     = "failed precondition"
	classSupport    = "unsupported"
)

func failure(err error) *wire.FailMessage {
	m := &wire.FailMessage{Message: err.Error()}
	var c *classError
	if errors.As(err, &c) {
		m.Class = c.class
	}
	return m
}

// start starts a program with these files as its descriptors 0, 1 and 2, which
// are the caller's still.
func (g *guest) start(m *wire.SpawnMessage, files func(account) ([]*os.File, error)) (*program, error) {
	if err := g.mayStart(); err != nil {
		return nil, err
	}
	if len(m.Args) == 0 {
		return nil, &classError{classInvalid, errors.New("no arguments")}
	}
	var u account
	var dir, file string
	err := g.inside(func() (err error) {
		if u, err = g.user(m.User); err != nil {
			return err
		}
		dir = m.Cwd
		if dir == "" {
			dir = u.home
		}
		if dir == "" || m.Cwd == "" && !isDir(dir) {
			dir = "/"
		}
		if g.plan.Process.Image {
			m.Env = defaults(m.Env, u.home)
		}
		file, err = lookPath(m.Args[0], m.Env, dir)
		return err
	})
	if err != nil {
		return nil, err
	}
	open, err := files(u)
	if err != nil {
		return nil, err
	}
	if p := g.become(m, file, dir, open); p != nil {
		return p, nil
	}
	s := g.spec(u)
	s.Path, s.Args, s.Env, s.Dir, s.Files, s.ControllingTerminal = file, m.Args, m.Env, dir, open, m.Tty
	for _, l := range m.Rlimits {
		s.Rlimits = append(s.Rlimits, spawn.Rlimit{Resource: int(l.Resource), Cur: l.Cur, Max: l.Max})
	}
	p, err := g.launch(s)
	if err != nil {
		return nil, startError(file, err)
	}
	return p, nil
}

// launch starts a program in a control group of its own, where the guest makes
// some.
func (g *guest) launch(s spawn.Spec) (*program, error) {
	group, err := g.makeGroup()
	if err != nil {
		return nil, err
	}
	s.Tasks = append(s.Tasks, group.Joins()...)
	if into := group.Into(); into != nil {
		s.Group = into
	}
	p := &program{group: group, began: time.Now()}
	if p.pid, p.fd, err = g.spawner.Start(s); err != nil {
		go removeGroup(group)
		return nil, err
	}
	return p, nil
}

// mayStart reports why nothing can be started.
func (g *guest) mayStart() error {
	if g.needsSync.Load() {
		return &classError{classFailed, errors.New("the machine has not had its SYNC")}
	}
	return nil
}

// spec is what all programs of a user have in common.
func (g *guest) spec(u account) spawn.Spec {
	s := spawn.Spec{
		Tasks: g.tasks, Group: g.into, NewGroupNamespace: g.unified(), Filter: g.filter,
		Cred:             &spawn.Credential{UID: u.uid, GID: u.gid, Groups: u.groups, KeepGroups: g.plan.Process.KeepGroups},
		DropCapabilities: true, NoNewPrivs: g.plan.Process.NoNewPrivs,
	}
	if !g.plan.Process.KeepGroups {
		s.OOMScoreAdj = strconv.Itoa(g.plan.Process.OOMScoreAdj)
	}
	if n := g.plan.Process.CPUs; n > 0 {
		s.CPUs = firstCPUs(n)
	}
	return s
}

// reap waits for the end of a program and tells how it ended.
func (p *program) reap() *wire.ExitMessage {
	var ws unix.WaitStatus
	var ru unix.Rusage
	var err error
	try := func(flags int) bool {
		var pid int
		pid, err = unix.Wait4(p.pid, &ws, flags, &ru)
		return pid != 0 && err != unix.EINTR
	}
	rc, rerr := p.fd.SyscallConn()
	if rerr == nil {
		rerr = rc.Read(func(uintptr) bool { return try(unix.WNOHANG) })
	}
	for rerr != nil && !try(0) {
	}
	m := &wire.ExitMessage{
		Cause: wire.CauseExited, CPU: uint64(max(0, ru.Utime.Nano()+ru.Stime.Nano()-p.before.Nanoseconds())), PeakMemory: uint64(ru.Maxrss) << 10,
		ReadBytes: uint64(ru.Inblock) * 512, WrittenBytes: uint64(ru.Oublock) * 512, Wall: uint64(max(0, time.Since(p.began))),
	}
	switch {
	case err != nil:
		m.Cause, m.Detail = wire.CauseFailed, "wait: "+err.Error()
	case ws.Signaled():
		m.Cause, m.Signal = wire.CauseSignaled, uint64(ws.Signal())
	default:
		m.Code = uint64(ws.ExitStatus())
	}
	return m
}

// signal signals the program alone.
func (p *program) signal(sig unix.Signal) {
	_ = unix.PidfdSendSignal(fdOf(p.fd), sig, nil, 0) // one that has ended needs none
}

func startError(file string, err error) error {
	class := ""
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		class = classNotFound
	case errors.Is(err, unix.ENOEXEC), errors.Is(err, unix.E2BIG), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.EINVAL):
		class = classInvalid
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		class = classPermission
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		class = classExhausted
	}
	return &classError{class, fmt.Errorf("start %s: %w", file, err)}
}

// firstCPUs is a mask of the first n of those that this process may use.
func firstCPUs(n int) *unix.CPUSet {
	var all, set unix.CPUSet
	if unix.SchedGetaffinity(0, &all) != nil {
		return nil
	}
	for i := 0; n > 0 && i < 8*len(all)*8; i++ {
		if all.IsSet(i) {
			set.Set(i)
			n--
		}
	}
	return &set
}

func isDir(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}

// defaultPath is where programs are looked for without a PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// lookPath finds a program as execvp(3) does, with the program's own PATH. It
// is the guest that looks: whether the user may execute it is seen when he does.
func lookPath(name string, env []string, dir string) (string, error) {
	if name == "" {
		return "", &classError{classInvalid, errors.New("args[0] is empty")}
	}
	if strings.Contains(name, "/") {
		if !path.IsAbs(name) {
			name = path.Join(dir, name)
		}
		return name, executable(name)
	}
	list := defaultPath
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			list = v
		}
	}
	var denied error
	for p := range strings.SplitSeq(list, ":") {
		if !path.IsAbs(p) {
			p = path.Join(dir, p)
		}
		file := path.Join(p, name)
		err := executable(file)
		if err == nil {
			return file, nil
		}
		if errors.Is(err, fs.ErrPermission) {
			denied = err
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", &classError{classNotFound, fmt.Errorf("program %q is not in %s", name, list)}
}

// defaults adds what an environment lacks.
func defaults(env []string, home string) []string {
	if home == "" {
		home = "/"
	}
	for _, kv := range []string{"PATH=" + defaultPath, "HOME=" + home} {
		key := kv[:strings.IndexByte(kv, '=')+1]
		if !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, key) }) {
			env = append(env, kv)
		}
	}
	return env
}

func executable(name string) error {
	info, err := os.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return &classError{classNotFound, err}
	case errors.Is(err, fs.ErrPermission):
		return &classError{classPermission, err}
	case err != nil:
		return &classError{classInvalid, err}
	case info.IsDir():
		return &classError{classPermission, fmt.Errorf("%s is a directory: %w", name, fs.ErrPermission)}
	case info.Mode()&0o111 == 0:
		return &classError{classPermission, fmt.Errorf("%s is not executable: %w", name, fs.ErrPermission)}
	}
	return nil
}

// account is a user of the container.
type account struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// user finds "", name, uid, or either with ":group".
func (g *guest) user(s string) (account, error) {
	p := g.plan.Process
	if s == "" {
		s = p.User
	}
	if s == "" {
		return account{uint32(p.UID), uint32(p.GID), nil, p.Home}, nil
	}
	name, group, both := strings.Cut(s, ":")
	a := account{}
	n, nerr := strconv.ParseUint(name, 10, 31)
	found := false
	err := records("/etc/passwd", func(f []string) bool {
		if len(f) < 7 || f[0] != name && (nerr != nil || f[2] != name) {
			return true
		}
		uid, err1 := strconv.ParseUint(f[2], 10, 31)
		gid, err2 := strconv.ParseUint(f[3], 10, 31)
		if err1 != nil || err2 != nil {
			return true
		}
		a.uid, a.gid, a.home, found = uint32(uid), uint32(gid), f[5], true
		name = f[0]
		return false
	})
	switch {
	case found:
	case nerr == nil:
		if a.uid = uint32(n); !p.Image {
			a.gid = a.uid
		}
	case err != nil:
		return a, &classError{classInvalid, fmt.Errorf("user %q: %w", s, err)}
	default:
		return a, &classError{classNotFound, fmt.Errorf("there is no user %q in the sandbox", name)}
	}
	if both {
		gid, err := g.group(group)
		if err != nil {
			return a, err
		}
		a.gid = gid
	} else if found && !p.KeepGroups {
		a.groups = groupsOf(name)
	}
	if p.KeepGroups && (int(a.uid) != p.UID || int(a.gid) != p.GID) {
		return a, &classError{"unsupported", fmt.Errorf("user %q: this host gives the sandbox one user only, %d:%d; run as root, or grant ids in /etc/subuid", s, p.UID, p.GID)}
	}
	return a, nil
}

func (g *guest) group(s string) (uint32, error) {
	n, nerr := strconv.ParseUint(s, 10, 31)
	if nerr == nil {
		return uint32(n), nil
	}
	var gid uint64
	found := false
	_ = records("/etc/group", func(f []string) bool {
		if len(f) < 3 || f[0] != s {
			return true
		}
		var err error
		gid, err = strconv.ParseUint(f[2], 10, 31)
		found = err == nil
		return !found
	})
	if !found {
		return 0, &classError{classNotFound, fmt.Errorf("there is no group %q in the sandbox", s)}
	}
	return uint32(gid), nil
}

// maxGroups bounds what a hostile /etc/group can make of a user.
const maxGroups = 1 << 10

// groupsOf lists the groups that have a user as a member.
func groupsOf(name string) (list []uint32) {
	_ = records("/etc/group", func(f []string) bool {
		if len(f) < 4 || !slices.Contains(strings.Split(f[3], ","), name) {
			return true
		}
		if n, err := strconv.ParseUint(f[2], 10, 31); err == nil {
			list = append(list, uint32(n))
		}
		return len(list) < maxGroups
	})
	return list
}

// maxRecords bounds what is read of a file that belongs to the image, or to the
// programs.
const maxRecords = 1 << 20

// records calls each with the fields of every line, until it returns false.
func records(name string, each func([]string) bool) error {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", name)
	}
	for s := bufio.NewScanner(io.LimitReader(f, maxRecords)); s.Scan(); {
		if !each(strings.Split(s.Text(), ":")) {
			break
		}
	}
	return nil
}
