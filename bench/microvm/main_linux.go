// Command microvm measures virtual machines and prints the table of docs/CLAIMS.md,
// by KVM where it works and else emulated:
//
//	make bench-microvm
//
// It takes the path of axo, whose `axo setup microvm` builds the template, and a
// directory for it.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/all"
	"github.com/axocoatl/isolation/driver/microvm"
	"github.com/axocoatl/isolation/pool"
)

var (
	axo   = flag.String("axo", "bin/axo", "path of axo")
	state = flag.String("state", "", "directory for the template; it is kept. Empty: a temporary one")
	vmm   = flag.String("qemu", "", "path of qemu-system-x86_64; empty: the one in PATH")
	accel = flag.String("accel", "", "kvm or tcg; empty: what works")
	runs  = flag.Int("n", 20, "how often the short ones are measured")
	many  = flag.Int("many", 100, "machines that live at once")
	only  = flag.String("only", "", "what is measured, with commas between: once, create, claim, session, idle, alive; empty: all")
)

func main() {
	flag.Parse()
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	dir := *state
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "axo-bench-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	}
	if *vmm != "" {
		if err := os.Setenv("AXO_QEMU_PATH", *vmm); err != nil { // for axo
			return err
		}
	}
	setup := exec.CommandContext(ctx, *axo, "--state-dir", dir, "setup", "microvm", "--quiet")
	if *accel != "" {
		setup.Args = append(setup.Args, "--accel", *accel)
	}
	setup.Stdout, setup.Stderr = os.Stderr, os.Stderr
	if err := setup.Run(); err != nil {
		return fmt.Errorf("axo setup microvm: %w", err)
	}
	b := &bench{state: dir, cfg: microvm.Config{Templates: filepath.Join(dir, all.TemplatesDir), QEMU: *vmm, RunDir: filepath.Join(dir, "run")}}
	t, err := microvm.ReadTemplate(b.cfg.Templates, microvm.DefaultTemplate)
	if err != nil {
		return err
	}
	fmt.Printf("%s, QEMU %s, %d MiB and %d processor(s) a machine, Linux %s; host: %d processors\n\n",
		t.Shape.Accel, t.VMM, t.Shape.MemoryMiB, t.Shape.CPUs, t.Key.Kernel, runtime.NumCPU())
	fmt.Println("| what | median | 10th to 90th percentile | processor time | n |\n|---|---|---|---|---|")
	for _, m := range []struct {
		name string
		f    func(context.Context) error
	}{{"once", b.once}, {"create", b.create}, {"claim", b.claim}, {"session", b.session}, {"idle", b.idle}, {"alive", b.alive}} {
		if *only != "" && !slices.Contains(strings.Split(*only, ","), m.name) {
			continue
		}
		if err := m.f(ctx); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return nil
}

type bench struct {
	state string
	cfg   microvm.Config
	ids   int
}

var spec = isolation.Spec{Requirement: isolation.Python}

func (b *bench) id() string {
	b.ids++
	return "bench-" + strconv.Itoa(b.ids)
}

// sample is one measured run.
type sample struct{ wall, cpu time.Duration }

// row prints what runs came to.
func row(what string, s []sample) {
	at := func(by func(sample) time.Duration, part int) time.Duration {
		v := make([]time.Duration, len(s))
		for i := range s {
			v[i] = by(s[i])
		}
		slices.Sort(v)
		return v[min(len(v)-1, len(v)*part/100)]
	}
	wall := func(x sample) time.Duration { return x.wall }
	fmt.Printf("| %s | %s | %s to %s | %s | %d |\n", what, ms(at(wall, 50)), ms(at(wall, 10)), ms(at(wall, 90)),
		ms(at(func(x sample) time.Duration { return x.cpu }, 50)), len(s))
}

func ms(d time.Duration) string {
	return strconv.FormatFloat(float64(d.Microseconds())/1000, 'f', 1, 64) + " ms"
}

// program runs one to its end.
func program(ctx context.Context, sb isolation.Sandbox, args ...string) error {
	var out bytes.Buffer
	p, err := sb.Exec(ctx, isolation.ProcessSpec{Args: args}, isolation.Stdio{Stdout: &out, Stderr: &out})
	if err != nil {
		return err
	}
	e, err := p.Wait(ctx)
	if err == nil && !e.Success() {
		err = fmt.Errorf("%q: %v: %.200q", args, e, out.String())
	}
	return err
}

// timed measures f, with the processor time of all machines and of this process.
func timed(f func() error) (sample, error) {
	cpu, begin := used(), time.Now()
	err := f()
	return sample{time.Since(begin), max(0, used()-cpu)}, err
}

// once runs a program with nothing but the template there before.
func (b *bench) once(ctx context.Context) error {
	var first, whole []sample
	for range *runs {
		cmd := exec.CommandContext(ctx, *axo, "--state-dir", b.state, "run", "--tier", "microvm", "--allow-emulated", "--", "/bin/echo", "42")
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		begin := time.Now()
		var x sample
		y, err := timed(func() error {
			if err := cmd.Start(); err != nil {
				return err
			}
			var answer [2]byte
			if _, err := io.ReadFull(out, answer[:]); err != nil || string(answer[:]) != "42" {
				return errors.Join(fmt.Errorf("it says %q: %w", answer, err), cmd.Wait())
			}
			x.wall = time.Since(begin)
			return cmd.Wait()
		})
		if err != nil {
			return err
		}
		x.cpu = y.cpu // it is known when all has ended
		first, whole = append(first, x), append(whole, y)
	}
	row("`axo run`, no daemon, until its program has answered", first)
	row("until it has ended", whole)
	return nil
}

func (b *bench) create(ctx context.Context) error {
	d, err := microvm.New(b.cfg)
	if err != nil {
		return err
	}
	defer d.Close()
	var made, first, later, all []sample
	for i := range *runs + 1 {
		var sb isolation.Sandbox
		x, err := timed(func() (err error) {
			sb, err = d.Create(ctx, b.id(), spec)
			return err
		})
		if err != nil {
			return err
		}
		y, err := timed(func() error { return program(ctx, sb, "/bin/true") })
		if err != nil {
			return err
		}
		z, err := timed(func() error { return program(ctx, sb, "/bin/true") })
		if err != nil {
			return err
		}
		if err := sb.Delete(ctx); err != nil {
			return err
		}
		if i > 0 { // the first reads the template
			made, first, later = append(made, x), append(first, y), append(later, z)
			all = append(all, sample{x.wall + y.wall, x.cpu + y.cpu})
		}
	}
	row("create by restore, until the guest is synced", made)
	row("its first program, /bin/true", first)
	row("the two together", all)
	row("its second program", later)
	return nil
}

func (b *bench) claim(ctx context.Context) error {
	const size = 4
	d, err := microvm.New(b.cfg)
	if err != nil {
		return err
	}
	p, err := pool.New(pool.Config{
		Driver: d, Freeze: true, MakeTimeout: 2 * time.Minute, RefillAfter: all.VMRefillAfter,
		Templates: []pool.Template{{Spec: spec, Size: size, Warm: []isolation.ProcessSpec{{Args: []string{"/bin/true"}}, {Args: []string{"/bin/true"}}}, Prepare: "python"}},
	})
	if err != nil {
		return err
	}
	defer p.Close()
	for _, x := range []struct {
		what string
		args []string
	}{{"/bin/true", []string{"/bin/true"}}, {"python3 -c", []string{"python3", "-c", "print(6*7)"}}} {
		var claimed, both []sample
		for range *runs {
			full(p, size)
			var sb isolation.Sandbox
			c, err := timed(func() (err error) {
				sb, err = p.Create(ctx, b.id(), spec)
				return err
			})
			if err != nil {
				return err
			}
			e, err := timed(func() error { return program(ctx, sb, x.args...) })
			if err != nil {
				return err
			}
			if err := sb.Delete(ctx); err != nil {
				return err
			}
			claimed, both = append(claimed, c), append(both, sample{c.wall + e.wall, c.cpu + e.cpu})
		}
		if x.what == "/bin/true" {
			row("warm claim, until the guest is synced", claimed)
		}
		row("warm claim, until "+x.what+" is answered", both)
	}
	if st := p.Stats(); st.Misses > 0 || st.Failures > 0 {
		return fmt.Errorf("the pool was not warm: %+v", st)
	}
	return nil
}

// full waits until a pool is, and nothing else goes on.
func full(p *pool.Pool, size int) {
	for st := p.Stats(); st.Idle < size || st.Removing > 0 || st.Making > 0; st = p.Stats() {
		time.Sleep(5 * time.Millisecond)
	}
}

// grown is a session that has written 256 MiB of memory, and waits.
const grown = `import time
b = bytearray(256 << 20)
for i in range(0, len(b), 4096): b[i:i+8] = i.to_bytes(8, 'little')
open('/tmp/ready', 'w').close()
time.sleep(100000)`

func (b *bench) session(ctx context.Context) error {
	d, err := microvm.New(b.cfg)
	if err != nil {
		return err
	}
	defer d.Close()
	sb, err := d.Create(ctx, b.id(), spec)
	if err != nil {
		return err
	}
	if _, err := sb.Exec(ctx, isolation.ProcessSpec{Args: []string{"python3", "-c", grown}}, isolation.Stdio{}); err != nil {
		return err
	}
	if err := program(ctx, sb, "/bin/sh", "-c", "until test -e /tmp/ready; do sleep 0.1; done"); err != nil {
		return err
	}
	pauser, _ := isolation.As[isolation.Pauser](sb)
	snapshotter, _ := isolation.As[isolation.Snapshotter](sb)
	forker, _ := isolation.As[isolation.Forker](sb)
	restorer, ok := isolation.As[isolation.Restorer](d)
	if !ok {
		return fmt.Errorf("the driver restores nothing")
	}
	var paused, resumed, kept, back, forked []sample
	step := func(to *[]sample, f func() error) error {
		x, err := timed(f)
		*to = append(*to, x)
		return err
	}
	var info isolation.SnapshotInfo
	for i := range max(3, *runs/4) {
		name := "bench-" + strconv.Itoa(i)
		err := step(&paused, func() error { return pauser.Pause(ctx) })
		if err == nil {
			err = step(&resumed, func() error { return pauser.Resume(ctx) })
		}
		if err == nil {
			err = step(&kept, func() error { return snapshotter.Snapshot(ctx, name) })
		}
		if err != nil {
			return err
		}
		list, err := restorer.Snapshots(ctx)
		if err != nil {
			return err
		}
		for _, x := range list {
			if x.Name == name {
				info = x
			}
		}
		var again isolation.Sandbox
		err = step(&back, func() (err error) {
			again, err = restorer.Restore(ctx, b.id(), name)
			return err
		})
		if err == nil {
			err = again.Delete(ctx)
		}
		if err == nil {
			err = restorer.RemoveSnapshot(ctx, name)
		}
		if err != nil {
			return err
		}
		var forks []isolation.Sandbox
		err = step(&forked, func() (err error) {
			forks, err = forker.Fork(ctx, []string{b.id(), b.id(), b.id(), b.id()})
			return err
		})
		for _, f := range forks {
			if derr := f.Delete(ctx); err == nil {
				err = derr
			}
		}
		if err != nil {
			return err
		}
	}
	row("session with 256 MiB written: pause in memory", paused)
	row("resume of that, synced", resumed)
	row(fmt.Sprintf("snapshot of it to the disk (%d MiB, stands still for %s)", info.Bytes>>20, ms(info.Stopped)), kept)
	row("restore of that, verified and synced", back)
	row("fork of it into 4 that run, synced", forked)
	return nil
}

// idle measures the memory of frozen machines: as they are made, after a program has
// run, and with an interpreter that waits.
func (b *bench) idle(ctx context.Context) error {
	ran := []isolation.ProcessSpec{{Args: []string{"/bin/true"}}}
	for _, x := range []struct {
		what    string
		warm    []isolation.ProcessSpec
		prepare string
	}{{"synced", nil, ""}, {"that has run a program", ran, ""}, {"that has a Python interpreter waiting", ran, "python"}} {
		const size = 10
		d, err := microvm.New(b.cfg)
		if err != nil {
			return err
		}
		t := pool.Template{Spec: spec, Size: size, Warm: x.warm, Prepare: x.prepare}
		p, err := pool.New(pool.Config{Driver: d, Freeze: true, Makers: 2, MakeTimeout: 2 * time.Minute, Templates: []pool.Template{t}})
		if err != nil {
			return err
		}
		full(p, size)
		n, pss, _ := machines()
		if err := p.Close(); err != nil {
			return err
		}
		fmt.Printf("| memory (PSS) of a frozen machine %s | %.1f MiB | | | %d |\n", x.what, float64(pss)/float64(max(n, 1))/(1<<20), n)
	}
	return nil
}

// alive has many machines live, unfrozen, and each answer.
func (b *bench) alive(ctx context.Context) error {
	d, err := microvm.New(b.cfg)
	if err != nil {
		return err
	}
	defer d.Close()
	all := make([]isolation.Sandbox, *many)
	begin := time.Now()
	each := func(f func(i int) error) error {
		var g errgroup.Group
		g.SetLimit(2 * runtime.NumCPU())
		for i := range all {
			g.Go(func() error { return f(i) })
		}
		return g.Wait()
	}
	ids := make([]string, len(all))
	for i := range ids {
		ids[i] = b.id()
	}
	err = each(func(i int) (err error) {
		if all[i], err = d.Create(ctx, ids[i], spec); err == nil {
			err = program(ctx, all[i], "/bin/true")
		}
		return err
	})
	if err != nil {
		return err
	}
	made := time.Since(begin)
	x, err := timed(func() error {
		return each(func(i int) error { return program(ctx, all[i], "/bin/sh", "-c", "test $((6*7)) = 42") })
	})
	if err != nil {
		return err
	}
	n, pss, _ := machines()
	fmt.Printf("| %d machines alive at once: all made and a program run in each | %.1f s | | | |\n", len(all), made.Seconds())
	fmt.Printf("| then all answering once more, %d at a time | %.1f s | | %.1f s | |\n", 2*runtime.NumCPU(), x.wall.Seconds(), x.cpu.Seconds())
	fmt.Printf("| memory (PSS) of each of them | %.1f MiB | | | %d |\n", float64(pss)/float64(max(n, 1))/(1<<20), n)
	return nil
}

// machines counts the QEMUs below this process, their memory in bytes, each page
// divided among those who share it (proc_pid_smaps(5)), and their processor time.
func machines() (n int, pss int64, cpu time.Duration) {
	parents := map[int]int{}
	names := map[int]string{}
	times := map[int]time.Duration{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it has ended
		}
		head, rest, _ := strings.Cut(string(stat), ") ")
		_, names[pid], _ = strings.Cut(head, "(")
		if f := strings.Fields(rest); len(f) > 12 {
			parents[pid], _ = strconv.Atoi(f[1])
			user, _ := strconv.Atoi(f[11])
			sys, _ := strconv.Atoi(f[12])
			times[pid] = time.Duration(user+sys) * 10 * time.Millisecond // USER_HZ is 100
		}
	}
	for pid := range parents {
		up := parents[pid]
		for up > 1 && up != os.Getpid() {
			up = parents[up]
		}
		if up != os.Getpid() || !strings.HasPrefix(names[pid], "qemu") {
			continue
		}
		n++
		cpu += times[pid]
		rollup, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		for line := range strings.Lines(string(rollup)) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == "Pss:" {
				kib, _ := strconv.ParseInt(f[1], 10, 64)
				pss += kib << 10
			}
		}
	}
	return n, pss, cpu
}

// used is the processor time of this process, its children that have ended, and its
// machines.
func used() time.Duration {
	var own, children syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &own) != nil || syscall.Getrusage(syscall.RUSAGE_CHILDREN, &children) != nil {
		return 0
	}
	_, _, cpu := machines()
	for _, t := range []syscall.Timeval{own.Utime, own.Stime, children.Utime, children.Stime} {
		cpu += time.Duration(t.Nano())
	}
	return cpu
}
