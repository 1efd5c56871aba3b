package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The controllers that a group may have.
const (
	Memory  = "memory"
	Pids    = "pids"
	CPU     = "cpu"
	CPUAcct = "cpuacct" // version 1 only
	IO      = "io"      // version 1: blkio
	// Core is what every group of version 2 has: members, a way to kill
	// them, and their CPU time.
	Core = "core"
)

var controllers = []string{Memory, Pids, CPU, CPUAcct, IO}

// Limits bound a group. Zero is no limit.
type Limits struct {
	MemoryBytes int64   // memory, without swap beside it
	Pids        int64   // processes and threads
	CPUs        float64 // cores
	IO          []IOLimit
}

// Tree is where control groups can be made. On version 1 every controller
// may have a hierarchy of its own; on version 2 all share one.
type Tree struct {
	v2   bool
	base map[string]string // controller to directory
	why  map[string]string // controller to the reason that it is missing
	// whole: groups have all controllers of base, so that limits of the group
	// above them hold.
	whole bool
	// freezer is where, on version 1, groups are made in which processes stand still.
	freezer string
}

// Find finds this process's own groups, below which others are made. With only,
// it looks for no other controllers than those.
func Find(only ...string) *Tree {
	if len(only) == 0 {
		only = controllers
	}
	own, mounts, err := ownGroups()
	if err != nil {
		return None(err.Error())
	}
	t := &Tree{base: map[string]string{}, why: map[string]string{}}
	for _, c := range only {
		hierarchy := c
		if c == IO {
			hierarchy = "blkio"
		}
		if m, ok := mounts[hierarchy]; ok {
			t.try(c, m.join(own[hierarchy]))
		} else {
			t.why[c] = "no hierarchy with the controller is mounted"
		}
	}
	if len(t.base) > 0 {
		t.findFreezer(own, mounts)
		return t
	}
	m, ok := mounts[""]
	if !ok {
		return None("no control groups are mounted")
	}
	return findUnified(m, m.join(own[""]), only)
}

// FindUnified looks in the version 2 hierarchy only.
func FindUnified() *Tree {
	own, mounts, err := ownGroups()
	if err != nil {
		return None(err.Error())
	}
	m, ok := mounts[""]
	if !ok {
		return None("no version 2 hierarchy is mounted")
	}
	return findUnified(m, m.join(own[""]), controllers)
}

// None is a tree in which nothing can be made.
func None(why string) *Tree {
	t := &Tree{why: map[string]string{}}
	for _, c := range append([]string{Core, freezer}, controllers...) {
		t.why[c] = why
	}
	return t
}

// Has reports whether groups can have this controller.
func (t *Tree) Has(controller string) bool { return t.base[controller] != "" }

// Why says why groups cannot have this controller.
func (t *Tree) Why(controller string) string { return t.why[controller] }

// Base is the directory below which groups with this controller are made.
func (t *Tree) Base(controller string) string { return t.base[controller] }

// findUnified looks for a place in a version 2 hierarchy. A group with
// processes cannot give controllers to its children, so that unless it is the
// root, or the host program was put into a leaf of its own, the place is
// beside the host program's group, not below it.
func findUnified(m mount, own string, only []string) *Tree {
	var first *Tree
	for dir := own; ; dir = filepath.Dir(dir) {
		g := &Tree{v2: true, base: map[string]string{}, why: map[string]string{}}
		g.try(Core, dir)
		for _, c := range only {
			if c == CPUAcct {
				continue
			}
			if err := enable(dir, c); err != nil {
				g.why[c] = fmt.Sprintf("the controller cannot be enabled in %s: %v", dir, err)
			} else {
				g.try(c, dir)
			}
		}
		if slices.Contains(only, Memory) && g.base[Memory] != "" {
			return g
		}
		if first == nil || !first.Any() && g.Any() {
			first = g
		}
		if len(dir) <= len(m.point) {
			return first
		}
	}
}

func enable(dir, controller string) error {
	file := filepath.Join(dir, "cgroup.subtree_control")
	b, err := os.ReadFile(file)
	if err != nil || slices.Contains(strings.Fields(string(b)), controller) {
		return err
	}
	if b, err = os.ReadFile(filepath.Join(dir, "cgroup.controllers")); err != nil {
		return err
	}
	if !slices.Contains(strings.Fields(string(b)), controller) {
		return errors.New("it is not there")
	}
	return write(file, "+"+controller)
}

// try looks whether groups can be made in dir. It makes none to find out: one
// of a program that is killed meanwhile would be left.
func (t *Tree) try(controller, dir string) {
	if controller == IO && len(Disks()) == 0 {
		t.why[controller] = "the host has no block devices"
		return
	}
	if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		t.why[controller] = fmt.Sprintf("no group can be made in %s: %v", dir, err)
		return
	}
	t.base[controller] = dir
}

// Version is "cgroup v1" or "cgroup v2".
func (t *Tree) Version() string {
	if t.v2 {
		return "cgroup v2"
	}
	return "cgroup v1"
}

// Any reports whether a group can be made at all.
func (t *Tree) Any() bool { return len(t.needed(Limits{})) > 0 }

// CountsCPU: on version 2 every group does, whatever its controllers.
func (t *Tree) CountsCPU() bool { return t.Any() && (t.v2 || t.base[CPUAcct] != "") }

// Group is a directory in each hierarchy that it needs.
type Group struct {
	v2      bool
	dir     map[string]string // controller to directory
	dirs    []string          // each once
	tasks   []*os.File        // version 1: by which a child joins each
	into    *os.File          // version 2: in which a child is made
	keeper  *os.File          // the group beside it; nil: none
	more    []string          // directories besides, in the order in which they go
	maxPids string            // what pids.max is to be
	outer   bool              // its members are in groups below
	whole   bool              // see Tree
	oom     *os.File          // its events; nil: nobody waits for any

	freezing sync.Mutex // held by who sets whether members stand still
	freezer  string     // version 1: the group in which they do; empty: none
	dying    bool       // guarded by freezing: they are being killed, and never stand still again
}

// Create makes a group with the limits of r. Memory, pids and CPU time are
// also counted where they are not limited.
func (t *Tree) Create(name string, r Limits) (_ *Group, err error) {
	gr := &Group{v2: t.v2, dir: map[string]string{}, maxPids: "max"}
	defer func() {
		if err != nil {
			_ = gr.Delete(context.Background())
		}
	}()
	if err := t.make(gr, name, r); err != nil {
		return nil, err
	}
	return gr, gr.Impose(r)
}

// make makes the directories of a group that is to have these limits.
func (t *Tree) make(gr *Group, name string, r Limits) (err error) {
	for _, c := range t.needed(r) {
		dir := filepath.Join(t.base[c], name)
		if !slices.Contains(gr.dirs, dir) {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
			gr.dirs = append(gr.dirs, dir)
		}
		gr.dir[c] = dir
	}
	if t.freezer != "" {
		gr.freezer = filepath.Join(t.freezer, name)
	}
	gr.whole = t.whole
	if gr.v2 {
		gr.into, err = openDir(gr.dirs[0])
		return err
	}
	for _, dir := range gr.dirs {
		name := filepath.Join(dir, "tasks")
		fd, err := open(name, unix.O_WRONLY)
		if err != nil {
			return err
		}
		gr.tasks = append(gr.tasks, os.NewFile(uintptr(fd), name))
	}
	return nil
}

// Impose sets the limits of a new group, which was made for them.
func (g *Group) Impose(r Limits) error {
	if g == nil {
		return nil
	}
	if err := g.limit(r); err != nil || !g.whole {
		return err
	}
	return g.dieAsOne()
}

func openDir(dir string) (*os.File, error) {
	return os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
}

// Below returns the tree of the groups in a group, which then has no members of
// its own.
func (g *Group) Below() (*Tree, error) {
	g.outer = true
	t := &Tree{v2: g.v2, base: maps.Clone(g.dir), why: map[string]string{}, whole: true}
	for c := range g.dir {
		if !g.v2 || c == Core {
			continue
		}
		if err := enable(g.dir[c], c); err != nil {
			return nil, fmt.Errorf("give controller %s to groups in %s: %w", c, g.dir[c], err)
		}
	}
	return t, nil
}

// Limit sets other limits. What is zero is not limited any more.
func (g *Group) Limit(r Limits) error {
	if _, ok := g.dir[Pids]; ok && r.Pids == 0 {
		g.maxPids = "max"
		if err := g.set(Pids, "pids.max", g.maxPids); err != nil {
			return err
		}
	}
	if _, ok := g.dir[Memory]; ok && r.MemoryBytes == 0 {
		file, none := "memory.limit_in_bytes", "-1"
		if g.v2 {
			file, none = "memory.max", "max"
		}
		if err := g.set(Memory, file, none); err != nil {
			return err
		}
	}
	if _, ok := g.dir[CPU]; ok && r.CPUs == 0 {
		file, none := "cpu.cfs_quota_us", "-1"
		if g.v2 {
			file, none = "cpu.max", "max"
		}
		if err := g.set(CPU, file, none); err != nil {
			return err
		}
	}
	return g.limit(r)
}

// Freeze stops all members, and those of groups below, or lets them go on. It
// is of version 2 only.
func (g *Group) Freeze(on bool) error {
	if !g.v2 {
		return errors.ErrUnsupported
	}
	value := "0"
	if on {
		value = "1"
	}
	return write(filepath.Join(g.dirs[0], "cgroup.freeze"), value)
}

// Populated reports whether there are members, here or below; true where that cannot
// be told.
func (g *Group) Populated() bool { return !g.v2 || value(g.dirs[0], "cgroup.events", "populated") == 1 }

// Frozen reports whether Freeze has reached all members.
func (g *Group) Frozen() bool { return g.v2 && value(g.dirs[0], "cgroup.events", "frozen") == 1 }

// needed lists the controllers of a group. The directory of the first is where
// the members are listed.
func (t *Tree) needed(r Limits) []string {
	all := []string{Core, Pids, Memory, CPUAcct}
	if r.CPUs > 0 || t.v2 || t.whole {
		all = append(all, CPU)
	}
	if len(r.IO) > 0 {
		all = append(all, IO)
	}
	return slices.DeleteFunc(all, func(c string) bool { return t.base[c] == "" })
}

// Paths are the directories of a group of this name, in the order in which they
// can be removed.
func (t *Tree) Paths(name string, r Limits) []string {
	var out []string
	for _, c := range t.needed(r) {
		if dir := filepath.Join(t.base[c], name); !slices.Contains(out, dir) {
			out = append(out, dir)
		}
	}
	return out
}

// Joins are the files by which, on version 1, a child of one thread becomes a
// member, with those of its children that are yet to come: it writes "0" into
// each. One thread moves itself by tasks without the lock that moving a process
// takes: once that lock has rested it costs milliseconds.
func (g *Group) Joins() []*os.File {
	if g == nil {
		return nil
	}
	return g.tasks
}

// Into is the directory of a group of version 2, where a child can be made
// (clone(2), CLONE_INTO_CGROUP), which moves nobody; else nil.
func (g *Group) Into() *os.File {
	if g == nil {
		return nil
	}
	return g.into
}

// Keeper is the directory of the group beside one of [Tree.CreateKept]; else nil.
func (g *Group) Keeper() *os.File {
	if g == nil {
		return nil
	}
	return g.keeper
}

func (g *Group) limit(r Limits) error {
	for _, l := range r.IO {
		if err := g.limitIO(l); err != nil {
			return err
		}
	}
	if n := r.MemoryBytes; n > 0 {
		// Swap would turn a limit into a slow-down; where the kernel does not
		// account for it, there is no file.
		limits := []struct{ file, value string }{{"memory.limit_in_bytes", itoa(n)}, {"memory.memsw.limit_in_bytes", itoa(n)}}
		if g.v2 {
			limits[0].file, limits[1].file, limits[1].value = "memory.max", "memory.swap.max", "0"
		}
		if err := g.set(Memory, limits[0].file, limits[0].value); err != nil {
			return err
		}
		if g.v2 {
			// Not before Linux 4.19.
			if err := g.dieAsOne(); err != nil {
				return err
			}
		}
		if err := g.set(Memory, limits[1].file, limits[1].value); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if r.Pids > 0 {
		g.maxPids = itoa(r.Pids)
		if err := g.set(Pids, "pids.max", g.maxPids); err != nil {
			return err
		}
	}
	if r.CPUs > 0 {
		const period = 100_000 // microseconds; the kernel's default on version 1
		// The kernel takes no quota below 1 ms.
		quota := itoa(int64(math.Max(1000, math.Ceil(r.CPUs*period))))
		if g.v2 {
			return g.set(CPU, "cpu.max", quota+" "+itoa(period))
		}
		return g.set(CPU, "cpu.cfs_quota_us", quota)
	}
	return nil
}

// dieAsOne has the rest of a version 2 group die with the first that the kernel
// kills for want of memory. A group with groups in it does not: they do, each.
func (g *Group) dieAsOne() error {
	if _, ok := g.dir[Memory]; !g.v2 || !ok || g.outer {
		return nil
	}
	if err := g.set(Memory, "memory.oom.group", "1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Memory is what the group takes now; 0: not known.
func (g *Group) Memory() int64 {
	if g == nil || g.dir[Memory] == "" {
		return 0
	}
	if g.v2 {
		return value(g.dir[Memory], "memory.current", "")
	}
	return value(g.dir[Memory], "memory.usage_in_bytes", "")
}

// Cache is how much of Memory is of files that the kernel can read again.
func (g *Group) Cache() int64 {
	if g == nil || g.dir[Memory] == "" {
		return 0
	}
	keys := []string{"total_inactive_file", "total_active_file"}
	if g.v2 {
		keys = []string{"inactive_file", "active_file"}
	}
	var n int64
	for _, k := range keys {
		n += value(g.dir[Memory], "memory.stat", k)
	}
	return n
}

// LimitMemory bounds the memory of a group that has members.
func (g *Group) LimitMemory(bytes int64) error { return g.limit(Limits{MemoryBytes: bytes}) }

func (g *Group) set(controller, file, value string) error {
	return write(filepath.Join(g.dir[controller], file), value)
}

// write writes a file of the kernel's, which takes no part of a value.
func write(file, value string) error {
	fd, err := open(file, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for {
		if _, err = unix.Write(fd, []byte(value)); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return &os.PathError{Op: "write", Path: file, Err: err}
	}
	return nil
}

// open opens a file that the runtime's poller is not to know: these are written and
// closed, several for each group.
func open(file string, flags int) (int, error) {
	for {
		fd, err := unix.Open(file, flags|unix.O_CLOEXEC, 0)
		switch err {
		case nil:
			return fd, nil
		case unix.EINTR:
		default:
			return -1, &os.PathError{Op: "open", Path: file, Err: err}
		}
	}
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// Counters are what the kernel has counted of a group by now.
type Counters struct {
	CPU    time.Duration
	HasCPU bool
	Peak   int64 // 0: not known
	OOM    int64 // processes that it killed for want of memory
	Pids   int64 // forks that it refused
}

// Read is of nothing where there is no group.
func (g *Group) Read() (c Counters) {
	if g == nil {
		return c
	}
	oom, peak := "memory.oom_control", "memory.max_usage_in_bytes"
	if g.v2 {
		oom, peak = "memory.events", "memory.peak"
	}
	if dir, ok := g.dir[Memory]; ok {
		c.OOM = value(dir, oom, "oom_kill")
		c.Peak = value(dir, peak, "")
	}
	if dir, ok := g.dir[Pids]; ok {
		c.Pids = value(dir, "pids.events", "max")
	}
	if dir, ok := g.dir[CPUAcct]; ok {
		c.CPU, c.HasCPU = time.Duration(value(dir, "cpuacct.usage", "")), true
	} else if g.v2 {
		c.CPU, c.HasCPU = time.Duration(value(g.dirs[0], "cpu.stat", "usage_usec"))*time.Microsecond, true
	}
	return c
}

// value reads a number: the whole file, or the line of key.
func value(dir, file, key string) int64 {
	var buf [4096]byte // more than any of these files has, up to what is asked for
	fd, err := unix.Open(filepath.Join(dir, file), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	n, err := unix.Read(fd, buf[:])
	unix.Close(fd)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(buf[:n])) {
		f := strings.Fields(line)
		if key == "" && len(f) == 1 || len(f) == 2 && f[0] == key {
			n, _ := strconv.ParseInt(f[len(f)-1], 10, 64)
			return n
		}
	}
	return 0
}

// Add makes a process a member, with those of its children that are yet to come.
func (g *Group) Add(pid int) error {
	for _, dir := range g.dirs {
		if err := write(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("join %s: %w", dir, err)
		}
	}
	return nil
}

// Dirs are the group's directories, each once.
func (g *Group) Dirs() []string { return g.dirs }

// PIDs lists the members, as this process sees them.
func (g *Group) PIDs() ([]int, error) { return pidsOf(g.dirs[0]) }

func pidsOf(dir string) ([]int, error) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var out []int
	for f := range strings.FieldsSeq(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 0 { // 0: of a namespace outside
			out = append(out, pid)
		}
	}
	return out, nil
}

// Kill ends all members and waits until none is left. On version 2 the kernel
// does it. On version 1 forks are refused meanwhile, so that a pass over the
// members misses none. (Freezing them would do as well, but a frozen process
// does not die before it is thawed: so they are, once they are to die.)
func (g *Group) Kill(ctx context.Context) error {
	g.freezing.Lock()
	g.dying = true
	g.freezing.Unlock()
	pids, err := g.PIDs()
	if err != nil || len(pids) == 0 {
		return err
	}
	if !g.v2 || write(filepath.Join(g.dirs[0], "cgroup.kill"), "1") != nil {
		if _, ok := g.dir[Pids]; ok {
			if err := g.set(Pids, "pids.max", "0"); err != nil {
				return err
			}
			defer g.set(Pids, "pids.max", g.maxPids)
		}
	}
	for wait := time.Millisecond / 4; ; wait = min(2*wait, 20*time.Millisecond) {
		if err := g.killPass(); err != nil {
			return err
		}
		if !g.v2 {
			if err := g.Thaw(); err != nil {
				return err
			}
		}
		if pids, err = g.PIDs(); err != nil || len(pids) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("processes %v have not ended: %w", pids, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// maxHeld bounds the descriptors that a pass takes of this process.
const maxHeld = 256

// killPass kills who is a member before and after his pidfd was opened: a
// number that was given to another process in between is not.
func (g *Group) killPass() error {
	pids, err := g.PIDs()
	if err != nil {
		return err
	}
	for batch := range slices.Chunk(pids, maxHeld) {
		held := map[int]int{}
		for _, pid := range batch {
			if fd, err := unix.PidfdOpen(pid, 0); err == nil {
				held[pid] = fd
			}
		}
		still, err := g.PIDs()
		for pid, fd := range held {
			if slices.Contains(still, pid) {
				_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			}
			_ = unix.Close(fd)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Close gives up what this process has of the group, which stays.
func (g *Group) Close() {
	if g == nil {
		return
	}
	for _, f := range append(g.tasks, g.into, g.keeper, g.oom) {
		if f != nil {
			f.Close()
		}
	}
	g.tasks, g.into, g.keeper, g.oom = nil, nil, nil, nil
}

// Delete removes the directories.
func (g *Group) Delete(ctx context.Context) error {
	if g == nil {
		return nil
	}
	g.Close()
	dirs := slices.Concat(g.dirs, g.more)
	if g.freezer != "" {
		dirs = append(dirs, g.freezer)
	}
	return Remove(ctx, dirs)
}

// Remove removes the directories of groups. A process that was killed is a member
// until the kernel is done with it.
func Remove(ctx context.Context, dirs []string) error {
	for _, dir := range dirs {
		for wait := time.Millisecond / 4; ; wait = min(2*wait, 20*time.Millisecond) {
			err := unix.Rmdir(dir)
			if err == nil || err == unix.ENOENT {
				break
			}
			if err == unix.EINTR {
				continue
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("remove %s: %w (%w)", dir, err, ctx.Err())
			case <-time.After(wait):
			}
			if err == unix.EBUSY {
				continue
			}
			return fmt.Errorf("remove %s: %w", dir, err)
		}
	}
	return nil
}
