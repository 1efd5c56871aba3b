package microvm_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/microvm"
	"github.com/axocoatl/isolation/internal/cgroup"
	"github.com/axocoatl/isolation/internal/testprog"
)

// identity prints what must differ between two machines, one in each line: random
// bytes, a UUID, Python's random numbers and hash seed, and what names the machine.
const identity = `head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n'; echo
cat /proc/sys/kernel/random/uuid /etc/machine-id /proc/sys/kernel/random/boot_id
exec python3 -c 'import random, os; print(random.random()); print(hash("axo")); print(os.getrandom(8).hex())'`

// TestClonesDiffer: machines of one template have nothing secret in common, and
// the right time.
func TestClonesDiffer(t *testing.T) {
	const clones = 16
	d := newDriver(t, config(t))
	out := make([]string, clones)
	var g errgroup.Group
	g.SetLimit(2)
	for i := range clones {
		g.Go(func() error {
			sb, err := d.Create(context.Background(), "clone-"+strconv.Itoa(i), isolation.Spec{Requirement: isolation.Shell})
			if err != nil {
				return err
			}
			var e isolation.Exit
			before := time.Now()
			out[i], e = sh(t, sb, identity+"\n")
			if !e.Success() {
				t.Errorf("clone %d: %v: %s", i, e, out[i])
			}
			now, _ := sh(t, sb, "date +%s")
			if s, err := strconv.ParseInt(strings.TrimSpace(now), 10, 64); err != nil || s < before.Unix()-1 || s > time.Now().Unix()+1 {
				t.Errorf("clone %d: its time is %q, the host's %d", i, now, time.Now().Unix())
			}
			return sb.Delete(context.Background())
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for line, n := range alike(out) {
		if n > 1 {
			t.Errorf("line %d is the same in %d clones: %q", line, n, out)
		}
	}
}

// alike counts, for each line of texts, how many of them have the commonest.
func alike(texts []string) []int {
	most := make([]int, len(strings.Split(strings.TrimSpace(texts[0]), "\n")))
	for line := range most {
		seen := map[string]int{}
		for _, text := range texts {
			v := ""
			if l := strings.Split(strings.TrimSpace(text), "\n"); line < len(l) {
				v = l[line]
			}
			seen[v]++
			most[line] = max(most[line], seen[v])
		}
	}
	return most
}

// TestClonesDifferBySync is the control of TestClonesDiffer: without what SYNC
// brings, copies draw the same random numbers and have the same ids. The guest is
// one that does not stir the entropy that it is given.
func TestClonesDifferBySync(t *testing.T) {
	const clones = 3
	config(t)
	dir := t.TempDir()
	if err := testprog.BuildCommands(dir, []string{"axo-guest"}, "unstirred"); err != nil {
		t.Fatal(err)
	}
	b := builtFor
	var err error
	if b.Guest, err = os.ReadFile(filepath.Join(dir, "axo-guest")); err != nil {
		t.Fatal(err)
	}
	b.Reuse, b.Warm = filepath.Join(work, "templates", microvm.DefaultTemplate, "disk"), nil
	c := unbuilt()
	c.Templates = filepath.Join(dir, "templates")
	if _, err := microvm.Build(t.Context(), c, b); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second)
	var out []string
	// The generator's next seed, which has the processor's own randomness in it, may
	// come while a clone runs: of so many some draw before it. Python takes half a
	// second to start, so that what it draws comes after it on some hosts, and is
	// not looked at here.
	early := func() []int { return alike(out)[1:5] }
	for range 5 {
		for range clones {
			text, err := microvm.Unsynced(t.Context(), c, "date +%s; "+identity+"\n")
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, text)
		}
		if !slices.Contains(early(), 1) {
			break
		}
	}
	if at, _, _ := strings.Cut(out[0], "\n"); at >= strconv.FormatInt(time.Now().Add(-2*time.Second).Unix(), 10) {
		t.Errorf("its time is %s: it was not stopped", at)
	}
	for line, n := range early() {
		if n == 1 {
			t.Errorf("line %d differs without SYNC too: it shows nothing of SYNC: %q", line, out)
		}
	}
}

// TestGuest is what a program sees of its machine.
func TestGuest(t *testing.T) {
	d := newDriver(t, config(t))
	sb := create(t, d, "view", isolation.Spec{Hostname: "box", Resources: isolation.Resources{Pids: 64, MemoryBytes: 256 << 20}})
	out, e := sh(t, sb, `grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status | tr -d '\t'
hostname; id -u; pwd; grep -c . /proc/net/dev; uname -s
touch /usr/x /x 2>&1 | grep -c denied; touch /tmp/x /home/user/x && echo writable
kill -0 1 2>&1 | grep -c .; ls /dev/vport* /dev/vd* 2>/dev/null | wc -l; cat /proc/1/comm; ls /sys/class/virtio-ports 2>&1 | grep -c vport`)
	want := "CapEff:0000000000000000\nCapBnd:0000000000000000\nNoNewPrivs:1\nbox\n1000\n/home/user\n3\nLinux\n2\nwritable\n1\n0\n"
	if !strings.HasPrefix(out, want) || strings.Contains(out, "vport") {
		t.Errorf("%v\n%s", e, out)
	}
}

// TestJail looks at QEMU from the host, and at this process as the control.
func TestJail(t *testing.T) {
	if testVMM == microvm.Firecracker || testVMM == standIn {
		t.Skip("Firecracker's jail is another: internal/firecracker looks at it")
	}
	testprog.Root(t, "looks at another user's process")
	d := newDriver(t, config(t))
	qemu := func(id string) string {
		sb := create(t, d, id, isolation.Spec{})
		p, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"/bin/sleep", "1000"}}, isolation.Stdio{})
		if err != nil {
			t.Fatal(err)
		}
		return "/proc/" + strconv.Itoa(p.PID())
	}
	dir, other := qemu("jail"), qemu("jail-2")
	read := func(name string) string {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	field := func(dir, name string) string {
		_, rest, _ := strings.Cut(read(dir+"/status"), "\n"+name+":\t")
		line, _, _ := strings.Cut(rest, "\n")
		return line
	}
	for _, x := range []struct{ name, want string }{
		{"CapEff", "0000000000000000"}, {"CapPrm", "0000000000000000"}, {"CapInh", "0000000000000000"}, {"CapAmb", "0000000000000000"}, {"NoNewPrivs", "1"}, {"Seccomp", "2"},
	} {
		if got := field(dir, x.name); got != x.want {
			t.Errorf("%s is %q, want %q", x.name, got, x.want)
		}
	}
	if field("/proc/self", "CapEff") == "0000000000000000" {
		t.Error("the control: this process has no capabilities either")
	}
	// A user of its own, also among machines.
	for _, name := range []string{"Uid", "Gid"} {
		a, b := strings.Fields(field(dir, name)), strings.Fields(field(other, name))
		if len(a) != 4 || a[0] == "0" || a[0] == b[0] || a[0] != a[1] || a[0] != a[2] || a[0] != a[3] {
			t.Errorf("%s is %v, of another machine %v", name, a, b)
		}
	}
	for _, ns := range []string{"user", "pid", "mnt", "net", "ipc", "uts", "cgroup"} {
		theirs, err1 := os.Readlink(dir + "/ns/" + ns)
		ours, err2 := os.Readlink("/proc/self/ns/" + ns)
		if err1 != nil || err2 != nil || theirs == ours {
			t.Errorf("namespace %s: %s and %s, %v, %v", ns, theirs, ours, err1, err2)
		}
	}
	// A root of its own, in which there is nothing of the host's but programs'
	// parts, and no process but itself.
	for name, there := range map[string]bool{"/etc/passwd": false, "/etc/shadow": false, "/bin/sh": false, "/usr/bin/env": false, "/dev/null": false, "/root": false, "/proc/sys": false, "/usr/bin": true} {
		_, err := os.Stat(dir + "/root" + name)
		if there != (err == nil) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(name); err != nil {
			t.Errorf("the control: %v", err)
		}
	}
	if list := processes(t, dir+"/root/proc"); len(list) != 1 || list[0] != "1" {
		t.Errorf("QEMU sees the processes %v", list)
	}
	if len(processes(t, "/proc")) < 3 {
		t.Error("the control: this process sees as few")
	}
	for line := range strings.Lines(read(dir + "/mountinfo")) {
		f := strings.Fields(line)
		if options := strings.Split(f[5], ","); f[4] != "/proc" && !slices.Contains(options, "ro") || !slices.Contains(options, "nosuid") || !slices.Contains(options, "nodev") {
			t.Errorf("mounted on %s with %s", f[4], f[5])
		}
	}
	fds, err := os.ReadDir(dir + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		to, err := os.Readlink(dir + "/fd/" + fd.Name())
		if err == nil && strings.HasPrefix(to, "/") && !strings.HasPrefix(to, work) && !strings.HasPrefix(to, "/memfd:") && to != os.DevNull {
			t.Errorf("QEMU has %s open", to)
		}
	}
	if lines := strings.Split(strings.TrimSpace(read(dir+"/net/dev")), "\n"); len(lines) != 3 { // two of heads, and lo
		t.Errorf("network interfaces: %q", lines)
	}
	if cgroup.Find().Any() && !strings.Contains(read(dir+"/cgroup"), "/axo-microvm-jail-") {
		t.Errorf("QEMU is in no group of its own:\n%s", read(dir+"/cgroup"))
	}
}

// processes lists those that a proc file system shows.
func processes(t *testing.T, proc string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(proc)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err == nil {
			list = append(list, e.Name())
		}
	}
	return list
}

// TestLost: the death of QEMU is not the program's.
func TestLost(t *testing.T) {
	d := newDriver(t, config(t))
	sb := create(t, d, "lost", isolation.Spec{})
	p, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"/bin/sleep", "1000"}}, isolation.Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	qemu, err := os.FindProcess(p.PID())
	if err == nil {
		err = qemu.Kill()
	}
	if err != nil {
		t.Fatal(err)
	}
	e, err := p.Wait(t.Context())
	if err != nil || e.Reason != isolation.ReasonSandboxLost {
		t.Errorf("%v, %v", e, err)
	}
	if _, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"/bin/true"}}, isolation.Stdio{}); err == nil {
		t.Error("a machine that is gone runs something")
	}
}

// TestTemplateIsChecked: no machine is made of a template in which anything has
// changed.
func TestTemplateIsChecked(t *testing.T) {
	c := config(t)
	copied := filepath.Join(t.TempDir(), "templates")
	dir := filepath.Join(copied, microvm.DefaultTemplate)
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(c.Templates, microvm.DefaultTemplate))); err != nil {
		t.Fatal(err)
	}
	c.Templates = copied
	usable := func() error {
		d := newDriver(t, c)
		sb, err := d.Create(t.Context(), "x", isolation.Spec{Requirement: isolation.Shell})
		if err != nil {
			return err
		}
		return sb.Delete(context.Background())
	}
	if err := usable(); err != nil {
		t.Fatalf("a copy: %v", err)
	}
	for _, name := range []string{"disk", "ram", "state", "template.json"} {
		file := filepath.Join(dir, name)
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		at := len(b) / 3
		for b[at] < '0' || b[at] > '8' { // a digit, so that JSON stays JSON
			at++
		}
		changed := append([]byte(nil), b...)
		changed[at]++
		if err := os.WriteFile(file, changed, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := usable(); !errors.Is(err, isolation.ErrFailedPrecondition) {
			t.Errorf("%s was changed: %v", name, err)
		}
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := usable(); err != nil {
		t.Errorf("put right again: %v", err)
	}
	list, err := microvm.Templates(copied)
	if err != nil || len(list) != 1 || list[0].Name != microvm.DefaultTemplate {
		t.Errorf("%v, %v", list, err)
	}
	if err := microvm.RemoveTemplate(copied, microvm.DefaultTemplate); err != nil {
		t.Error(err)
	}
	if err := usable(); !errors.Is(err, isolation.ErrUnsupported) {
		t.Errorf("without a template: %v", err)
	}
}

func TestBuildRefuses(t *testing.T) {
	config(t)
	for name, change := range map[string]func(*microvm.BuildConfig){
		"name":      func(b *microvm.BuildConfig) { b.Name = "../x" },
		"memory":    func(b *microvm.BuildConfig) { b.MemoryMiB = 1 },
		"cpus":      func(b *microvm.BuildConfig) { b.CPUs = 1000 },
		"accel":     func(b *microvm.BuildConfig) { b.Accel = "xen" },
		"no guest":  func(b *microvm.BuildConfig) { b.Guest = nil },
		"no kernel": func(b *microvm.BuildConfig) { b.Kernel = "" },
	} {
		b := builtFor
		change(&b)
		if _, err := microvm.Build(t.Context(), unbuilt(), b); !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A warm-up that fails leaves the template that there is.
	b := builtFor
	b.Warm = [][]string{{"/bin/false"}}
	if _, err := microvm.Build(t.Context(), unbuilt(), b); !errors.Is(err, isolation.ErrFailedPrecondition) {
		t.Errorf("a warm-up that fails: %v", err)
	}
	list, err := microvm.Templates(unbuilt().Templates)
	if err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	entries, err := os.ReadDir(unbuilt().Templates)
	if err != nil || len(entries) != 2 { // it, and the lock
		t.Errorf("%v, %v", entries, err)
	}
}
