package oci_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/oci"
	"github.com/axocoatl/isolation/internal/testprog"
)

func newDriver(t testing.TB, c oci.Config) isolation.Driver {
	t.Helper()
	c.Guest = guestProgram
	d, err := oci.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

var ids atomic.Int64

func nextID() string { return fmt.Sprintf("t-%d", ids.Add(1)) }

// result is what a script did.
type result struct {
	out  string // both streams
	exit isolation.Exit
}

// lines is the output by lines.
func (r result) lines() []string { return strings.Split(strings.TrimSuffix(r.out, "\n"), "\n") }

// start runs a shell script in a sandbox of its own. The sandbox is the test's
// to delete, which happens at its end as well.
func start(t testing.TB, d isolation.Driver, spec isolation.Spec, p isolation.ProcessSpec, out io.Writer, script string) (isolation.Sandbox, isolation.Process) {
	t.Helper()
	spec.Requirement = isolation.Shell
	sb, err := d.Create(t.Context(), nextID(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sb.Delete(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return sb, script2(t, sb, p, out, script)
}

func script2(t testing.TB, sb isolation.Sandbox, p isolation.ProcessSpec, out io.Writer, script string) isolation.Process {
	t.Helper()
	p.Args = []string{"/bin/sh", "-c", script}
	if p.Env == nil {
		p.Env = []string{"PATH=/usr/bin:/bin:/usr/sbin:/sbin"}
	}
	ps, err := sb.Exec(t.Context(), p, isolation.Stdio{Stdout: out, Stderr: out})
	if err != nil {
		t.Fatal(err)
	}
	return ps
}

func wait(t testing.TB, p isolation.Process) isolation.Exit {
	t.Helper()
	e, err := p.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// sh runs a script to its end.
func sh(t testing.TB, d isolation.Driver, spec isolation.Spec, p isolation.ProcessSpec, script string) result {
	t.Helper()
	var out bytes.Buffer
	sb, ps := start(t, d, spec, p, &out, script)
	e := wait(t, ps)
	if err := sb.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	return result{out.String(), e}
}

// needs skips a test for which the host has no controller; with AXO_REQUIRE it
// fails.
func needs(t testing.TB, d isolation.Driver, l isolation.Limit) {
	t.Helper()
	f, err := d.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if x := f.Enforcement(l); !x.Enforced {
		if os.Getenv("AXO_REQUIRE") != "" && os.Geteuid() == 0 {
			t.Fatalf("no %s limit: %s", l, x.Reason)
		}
		t.Skipf("SKIPPED, NOT PROVED: no %s limit: %s", l, x.Reason)
	}
}

// TestView is what a program sees of itself.
func TestView(t *testing.T) { eachEngine(t, testView) }

func testView(t *testing.T, c oci.Config) {
	d := newDriver(t, c)
	r := sh(t, d, isolation.Spec{Hostname: "box"}, isolation.ProcessSpec{}, `
cat /proc/self/status | grep -E '^(Cap|NoNew|Seccomp:)'
hostname; id -u; pwd; echo $$ >/dev/null
grep -c . /proc/net/dev; readlink /proc/1/exe | wc -l
umask; cat /proc/self/oom_score_adj; ulimit -c
touch /usr/x /etc/x /x 2>&1 | grep -cE 'Read-only|Permission denied'
touch /tmp/x /var/tmp/x /dev/shm/x /home/user/x && echo writable
cat /proc/sys/kernel/hostname; (echo 1 > /proc/sys/kernel/pid_max) 2>&1 | grep -c .
cat /proc/kcore 2>/dev/null | wc -c; ls -A /sys/firmware | wc -l
(: > /proc/self/comm) && echo comm
kill -0 1 2>&1 | grep -c .`)
	want := `CapInh:	0000000000000000
CapPrm:	0000000000000000
CapEff:	0000000000000000
CapBnd:	0000000000000000
CapAmb:	0000000000000000
NoNewPrivs:	1
Seccomp:	2
box
1000
/home/user
3
0
0022
1000
0
3
writable
box
1
0
0
comm
1`
	if got := strings.TrimSpace(r.out); got != want || r.exit.Code != 0 {
		t.Errorf("%v\n%s", r.exit, got)
	}
}

// TestMountFlags: nothing that a program can reach is set-user-ID or a device of
// the host's disks, and all of the host is read-only.
func TestMountFlags(t *testing.T) { eachEngine(t, testMountFlags) }

func testMountFlags(t *testing.T, c oci.Config) {
	if c.Engine == "runsc" {
		t.Skip("its kernel has flags of its own, and no devices of the host")
	}
	d := newDriver(t, c)
	dir := t.TempDir()
	r := sh(t, d, isolation.Spec{Mounts: []isolation.Mount{{Source: dir, Destination: "/data"}, {Source: dir, Destination: "/ro", ReadOnly: true}}},
		isolation.ProcessSpec{}, "cat /proc/self/mountinfo")
	for _, l := range r.lines() {
		f := strings.Fields(l)
		if len(f) < 6 {
			t.Fatalf("%q", r.out)
		}
		place, flags := f[4], ","+f[5]+","
		if !strings.Contains(flags, ",nosuid,") {
			t.Errorf("%s is %s", place, flags)
		}
		if !strings.Contains(flags, ",nodev,") && place != "/dev" && !strings.HasPrefix(place, "/dev/") && !strings.HasPrefix(place, "/proc/") {
			t.Errorf("%s is %s", place, flags)
		}
		if strings.HasPrefix(place, "/usr") || strings.HasPrefix(place, "/etc") || place == "/" || place == "/ro" || place == "/proc/sys" {
			if !strings.Contains(flags, ",ro,") {
				t.Errorf("%s is %s", place, flags)
			}
		}
	}
}

// TestHostDirectory: files of a mount belong to who they belong to.
func TestHostDirectory(t *testing.T) { eachEngine(t, testHostDirectory) }

func testHostDirectory(t *testing.T, c oci.Config) {
	if os.Geteuid() != 0 {
		t.Skip("root's; TestOrdinary is everybody's")
	}
	d := newDriver(t, c)
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o700); err != nil { // only root gets there
		t.Fatal(err)
	}
	for name, owner := range map[string]int{"": 4711, "theirs": 4711, "roots": 0} {
		p := filepath.Join(dir, name)
		if name != "" {
			if err := os.WriteFile(p, []byte(name+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chown(p, owner, owner); err != nil {
			t.Fatal(err)
		}
	}
	if c.Engine == "runsc" {
		_, err := d.Create(t.Context(), nextID(), isolation.Spec{Requirement: isolation.Shell, Mounts: []isolation.Mount{{Source: dir, Destination: "/data"}}})
		if !errors.Is(err, isolation.ErrUnsupported) || !strings.Contains(err.Error(), "writable mount") {
			t.Errorf("a writable mount: %v", err)
		}
		r := sh(t, d, isolation.Spec{Mounts: []isolation.Mount{{Source: dir, Destination: "/data", ReadOnly: true}}}, isolation.ProcessSpec{},
			`stat -c %u /data/theirs; cat /data/theirs; cat /data/roots 2>&1 | grep -c denied; (: > /data/x) 2>&1 | grep -c .`)
		if want := "1000\ntheirs\n1\n1\n"; r.out != want {
			t.Errorf("%v %q, want %q", r.exit, r.out, want)
		}
		return
	}
	spec := isolation.Spec{Mounts: []isolation.Mount{{Source: dir, Destination: "/scratch/data"}}}
	r := sh(t, d, spec, isolation.ProcessSpec{Cwd: "/scratch/data"}, `stat -c %u . theirs roots; cat theirs; cat roots 2>&1 | grep -c denied; echo new > new; chmod 4755 new 2>&1 | grep -c .; mknod n p && rm n && mv new new2`)
	if want := "1000\n1000\n65534\ntheirs\n1\n1\n"; r.out != want {
		t.Errorf("%v %q, want %q", r.exit, r.out, want)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(dir, "new2"), &st); err != nil || st.Uid != 4711 || st.Gid != 4711 || st.Mode&0o7777 != 0o644 {
		t.Errorf("outside: %v, owner %d:%d, mode %o", err, st.Uid, st.Gid, st.Mode)
	}
	// A file can be given, too.
	r = sh(t, d, isolation.Spec{Mounts: []isolation.Mount{{Source: filepath.Join(dir, "theirs"), Destination: "/data/one", ReadOnly: true}}},
		isolation.ProcessSpec{}, `cat /data/one; (echo x > /data/one) 2>&1 | grep -c 'Read-only'`)
	if r.out != "theirs\n1\n" {
		t.Errorf("a file: %v %q", r.exit, r.out)
	}
	for _, m := range []isolation.Mount{
		{Source: filepath.Join(dir, "no"), Destination: "/x"}, {Source: dir, Destination: "/usr/lib"}, {Source: dir, Destination: "/"},
		{Source: dir, Destination: "/x/../etc"}, {Source: dir, Destination: "/proc"},
	} {
		if sb, err := d.Create(t.Context(), nextID(), isolation.Spec{Requirement: isolation.Shell, Mounts: []isolation.Mount{m}}); err == nil {
			t.Errorf("%+v: no error", m)
			_ = sb.Delete(t.Context())
		} else if !errors.Is(err, isolation.ErrNotFound) && !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("%+v: %v", m, err)
		}
	}
}

// TestOrdinary is run by TestConformanceOrdinaryUser, too.
func TestOrdinary(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("TestConformanceOrdinaryUser runs it")
	}
	d := newDriver(t, oci.Config{})
	dir := t.TempDir()
	r := sh(t, d, isolation.Spec{Mounts: []isolation.Mount{{Source: dir, Destination: "/data"}}}, isolation.ProcessSpec{},
		`id -u; echo x > /data/x; stat -c %u /data/x /usr; grep ' 1000 ' /proc/self/uid_map | tr -s ' '; grep CapBnd /proc/self/status`)
	if want := fmt.Sprintf("1000\n1000\n65534\n 1000 %d 1\nCapBnd:\t0000000000000000\n", os.Geteuid()); r.out != want {
		t.Errorf("%v %q, want %q", r.exit, r.out, want)
	}
	if info, err := os.Stat(filepath.Join(dir, "x")); err != nil || info.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()) {
		t.Errorf("outside: %v", err)
	}
	if granted(t, d) {
		return // TestRunsAsSeveral
	}
	sb, err := d.Create(t.Context(), nextID(), isolation.Spec{Requirement: isolation.Shell})
	if err != nil {
		t.Fatal(err)
	}
	defer sb.Delete(t.Context())
	_, err = sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"/bin/true"}, User: "0"}, isolation.Stdio{})
	if !errors.Is(err, isolation.ErrUnsupported) || !strings.Contains(err.Error(), "one user only") {
		t.Errorf("root: %v", err)
	}
}

// granted reports whether sandboxes have a range of ids.
func granted(t *testing.T, d isolation.Driver) bool {
	t.Helper()
	f, err := d.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return f.Has(isolation.OptionSession)
}

// TestRunsAsSeveral is run by TestConformanceGrantedUser: there are several users
// inside, and of the host's files only those are theirs that are the caller's.
func TestRunsAsSeveral(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("TestConformanceGrantedUser runs it")
	}
	d := newDriver(t, oci.Config{})
	dir := t.TempDir()
	spec := isolation.Spec{Mounts: []isolation.Mount{{Source: dir, Destination: "/data"}}}
	r := sh(t, d, spec, isolation.ProcessSpec{User: "77:78"}, `id -u; id -g; (echo x > /data/x) 2>/dev/null || echo not mine; echo y > /tmp/y && stat -c '%u %g' /tmp/y /data /usr`)
	if want := "77\n78\nnot mine\n77 78\n1000 1000\n65534 65534\n"; r.out != want {
		t.Errorf("%v %q, want %q", r.exit, r.out, want)
	}
	// Root inside is not the caller, and no root of the host's.
	r = sh(t, d, spec, isolation.ProcessSpec{User: "0"}, `id -u; (echo x > /data/x) 2>/dev/null || echo not mine; grep -c . /proc/self/uid_map; grep CapEff /proc/self/status`)
	if want := "0\nnot mine\n3\nCapEff:\t0000000000000000\n"; r.out != want {
		t.Errorf("%v %q, want %q", r.exit, r.out, want)
	}
}

// TestLimits are those of a sandbox that need the kernel.
func TestLimits(t *testing.T) { eachEngine(t, testLimits) }

func testLimits(t *testing.T, c oci.Config) {
	d := newDriver(t, c)
	hits := func(e isolation.Exit, l isolation.Limit) (n int64) {
		for _, h := range e.LimitsHit {
			if h.Limit == l {
				n += h.Count
			}
		}
		return n
	}
	t.Run("memory", func(t *testing.T) {
		needs(t, d, isolation.LimitMemory)
		spec := isolation.Spec{Resources: isolation.Resources{MemoryBytes: 32 << 20}}
		// In the program itself, in a child of it, and in files in memory.
		for name, script := range map[string]string{
			"itself": "exec tail /dev/zero", "a child": "tail /dev/zero; exit 3", "background": "tail /dev/zero & sleep 60",
		} {
			t.Run(name, func(t *testing.T) {
				begin := time.Now()
				r := sh(t, d, spec, isolation.ProcessSpec{Limits: isolation.Limits{Wall: 50 * time.Second}}, script)
				if r.exit.Reason != isolation.ReasonOOM || hits(r.exit, isolation.LimitMemory) == 0 {
					t.Errorf("after %v: %+v %q", time.Since(begin), r.exit, r.out)
				}
				if p := r.exit.Usage.PeakMemoryBytes; p < 24<<20 || p > 33<<20 {
					t.Errorf("peak %d", p)
				}
			})
		}
	})
	t.Run("pids", func(t *testing.T) {
		needs(t, d, isolation.LimitPids)
		r := sh(t, d, isolation.Spec{Resources: isolation.Resources{Pids: 8}}, isolation.ProcessSpec{},
			`for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done 2>/dev/null; echo went on`)
		if c.Engine == "runsc" { // where nobody counts, and the shell gives up
			if r.exit.Code != 2 || r.out != "" {
				t.Errorf("%+v %q", r.exit, r.out)
			}
		} else if hits(r.exit, isolation.LimitPids) == 0 {
			t.Errorf("%+v %q", r.exit, r.out)
		}
	})
	t.Run("cpus", func(t *testing.T) {
		needs(t, d, isolation.LimitCPUs)
		r := sh(t, d, isolation.Spec{Resources: isolation.Resources{CPUs: 0.5}}, isolation.ProcessSpec{}, `nproc; grep -c ^processor /proc/cpuinfo >/dev/null`)
		if r.out != "1\n" {
			t.Errorf("nproc: %q", r.out)
		}
	})
	t.Run("disk", func(t *testing.T) {
		r := sh(t, d, isolation.Spec{Resources: isolation.Resources{DiskBytes: 4 << 20}}, isolation.ProcessSpec{}, `
for d in /tmp /var/tmp /dev/shm ~; do dd if=/dev/zero of=$d/x bs=1M count=1 2>/dev/null && echo ok; done
dd if=/dev/zero of=/tmp/y bs=1M count=4 2>&1 | grep -c 'No space'`)
		// Some of the size is the file system's own.
		if !strings.HasSuffix(r.out, "1\n") || !strings.HasPrefix(r.out, "ok\nok\nok\n") || hits(r.exit, isolation.LimitDisk) == 0 {
			t.Errorf("%+v %q", r.exit, r.out)
		}
	})
}

// TestRefused: what cannot be done is said, and leaves nothing.
func TestRefused(t *testing.T) {
	d := newDriver(t, oci.Config{NoCgroup: true})
	for name, spec := range map[string]isolation.Spec{
		"memory": {Resources: isolation.Resources{MemoryBytes: 1 << 20}}, "pids": {Resources: isolation.Resources{Pids: 1}},
		"cpu": {Resources: isolation.Resources{CPUs: 1}}, "language": {Language: "lua"}, "image": {Root: isolation.Root{Image: "x"}},
		"module": {Module: isolation.Module{Path: "/x"}}, "func": {Func: "f"},
	} {
		spec.Requirement = isolation.Shell
		if sb, err := d.Create(t.Context(), nextID(), spec); !errors.Is(err, isolation.ErrUnsupported) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
			if err == nil {
				_ = sb.Delete(t.Context())
			}
		}
	}
}

// TestLandlock: a file system that everybody can write to is not written to where
// none was meant to be. It enters the namespaces of a sandbox as the host's root.
func TestLandlock(t *testing.T) { eachEngine(t, testLandlock) }

func testLandlock(t *testing.T, c oci.Config) {
	if os.Geteuid() != 0 {
		t.Skip("takes root to change a sandbox from outside")
	}
	d := newDriver(t, c)
	f, err := d.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range f.Walls {
		if w.Name == "landlock" && !w.Present {
			t.Skipf("SKIPPED, NOT PROVED: %s", w.Detail)
		}
	}
	pr, pw := io.Pipe()
	sb, p := start(t, d, isolation.Spec{}, isolation.ProcessSpec{}, pw, `echo up; sleep 60`)
	if _, err := io.ReadFull(pr, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, pr)
	enter := exec.Command("nsenter", "-t", fmt.Sprint(p.PID()), "-m", "mount", "-t", "tmpfs", "-o", "mode=777", "open", "/mnt")
	if out, err := enter.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	var out bytes.Buffer
	q := script2(t, sb, isolation.ProcessSpec{}, &out, `(: > /mnt/x); (: > /tmp/y) && echo tmp`)
	wait(t, q)
	if !strings.Contains(out.String(), "Permission denied") || !strings.Contains(out.String(), "tmp\n") {
		t.Errorf("%q", out.String())
	}
}

// imageRoot is a directory with a root file system: busybox, a set-user-ID su,
// and a root without a password.
func imageRoot(t *testing.T) string {
	t.Helper()
	busybox, err := os.ReadFile(testprog.Busybox(t))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, d := range []string{"bin", "etc", "tmp", "home/app"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]os.FileMode{"busybox": 0o755, "su": 0o755 | os.ModeSetuid} {
		p := filepath.Join(dir, "bin", name)
		if err := os.WriteFile(p, busybox, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"sh", "id", "cat", "grep", "mount", "mknod", "chown", "stat", "chroot", "unshare", "rm", "cp", "chmod", "ls", "head", "hostname", "kill", "ping"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"passwd": "root::0:0::/:/bin/sh\napp:x:77:77::/home/app:/bin/sh\n", "group": "root:x:0:\napp:x:77:\n", "securetty": ""} {
		if err := os.WriteFile(filepath.Join(dir, "etc", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestSession: set-user-ID programs of the root work, with docker's capabilities
// among the sandbox's own users, and nothing of the host's.
func TestSession(t *testing.T) { eachEngine(t, testSession) }

func testSession(t *testing.T, c oci.Config) {
	d := newDriver(t, c)
	root := isolation.Root{Path: imageRoot(t)}
	if !granted(t, d) {
		_, err := d.Create(t.Context(), nextID(), isolation.Spec{Requirement: isolation.Shell, Profile: "session", Root: root})
		if !errors.Is(err, isolation.ErrUnsupported) || !strings.Contains(err.Error(), "range of user ids") {
			t.Errorf("without a range: %v", err)
		}
		return
	}
	const become = `/bin/su -c 'id -u; grep -E "^(CapEff|CapBnd|NoNew|Seccomp:)" /proc/self/status' root 2>&1 || echo no`
	app := isolation.ProcessSpec{User: "app"}
	r := sh(t, d, isolation.Spec{Root: root, Profile: "session"}, app, become)
	if want := "0\nCapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\nNoNewPrivs:\t0\nSeccomp:\t2\n"; r.out != want {
		t.Errorf("session: %v %q, want %q", r.exit, r.out, want)
	}
	if r := sh(t, d, isolation.Spec{Root: root}, app, become); !strings.HasSuffix(r.out, "no\n") || strings.Contains(r.out, "CapEff") {
		t.Errorf("default: %v %q", r.exit, r.out)
	}
	// As root, what belongs to the sandbox can be changed, and nothing else.
	dir := t.TempDir()
	bait := filepath.Join(dir, "bait")
	if err := os.WriteFile(bait, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	spec := isolation.Spec{Root: root, Profile: "session", Mounts: []isolation.Mount{{Source: dir, Destination: "/data", ReadOnly: c.Engine == "runsc"}}}
	r = sh(t, d, isolation.Spec{Root: root, Profile: "session"}, isolation.ProcessSpec{User: "root"}, `
cp /bin/busybox /home/app/x && chown app /home/app/x && chmod 4755 /home/app/x && stat -c '%U %a' /home/app/x`)
	if r.out != "app 4755\n" {
		t.Errorf("root: %v %q", r.exit, r.out)
	}
	r = sh(t, d, spec, isolation.ProcessSpec{User: "root"}, `
for try in 'mount -t tmpfs t /tmp' 'mknod /tmp/sda b 8 0 && head -c 1 /tmp/sda' 'unshare -U id' 'unshare -m id' 'chmod 4777 /data/bait' 'hostname x'; do
	sh -c "$try" >/dev/null 2>&1 && echo "works: $try"
done
(echo 1 > /proc/sys/kernel/panic) 2>/dev/null && echo works: sysctl
grep /data /proc/self/mountinfo | grep -c nosuid`)
	if want := "1\n"; r.out != want {
		t.Errorf("what root can do: %v %q, want %q", r.exit, r.out, want)
	}
	if info, err := os.Stat(bait); err != nil || info.Mode()&os.ModeSetuid != 0 {
		t.Errorf("outside: %v %v", info.Mode(), err)
	}
	_, err := d.Create(t.Context(), nextID(), isolation.Spec{Requirement: isolation.Shell, Profile: "session"})
	if !errors.Is(err, isolation.ErrUnsupported) || !strings.Contains(err.Error(), "session") {
		t.Errorf("without a root: %v", err)
	}
}

// TestTerminal: a program has a terminal of the asked size, which follows.
func TestTerminal(t *testing.T) {
	d := newDriver(t, oci.Config{})
	sb, err := d.Create(t.Context(), nextID(), isolation.Spec{Requirement: isolation.Shell})
	if err != nil {
		t.Fatal(err)
	}
	defer sb.Delete(context.Background())
	in, feed := io.Pipe()
	out, told := io.Pipe()
	p, err := sb.Exec(t.Context(), isolation.ProcessSpec{
		Args: []string{"/bin/sh", "-c", "tty; stty size; echo go; read x; until [ \"$(stty size)\" = '40 132' ]; do sleep 0.01; done; stty size; exec sleep 60"}, Env: []string{"PATH=/usr/bin:/bin"},
		Terminal: true, Size: isolation.TerminalSize{Rows: 24, Cols: 80},
	}, isolation.Stdio{Stdin: in, Stdout: told})
	if err != nil {
		t.Fatal(err)
	}
	s := bufio.NewScanner(out)
	next := func() string {
		if !s.Scan() {
			t.Fatalf("the output has ended: %v", s.Err())
		}
		return strings.TrimRight(s.Text(), "\r")
	}
	if got := next() + "," + next() + "," + next(); got != "/dev/pts/0,24 80,go" {
		t.Errorf("at first: %q", got)
	}
	r, ok := isolation.As[isolation.Resizer](p)
	if !ok {
		t.Fatal("no Resizer")
	}
	// What is typed goes to the terminal by another way than its size, and may be
	// there first.
	if err := r.Resize(t.Context(), isolation.TerminalSize{Rows: 40, Cols: 132}); err != nil {
		t.Fatal(err)
	}
	if _, err := feed.Write([]byte("x\n")); err != nil {
		t.Fatal(err)
	}
	if got := next() + "," + next(); got != "x,40 132" { // the terminal echoes
		t.Errorf("then: %q", got)
	}
	go io.Copy(io.Discard, out)
	// Ctrl-C ends it, as the terminal says.
	if _, err := feed.Write([]byte{3}); err != nil {
		t.Fatal(err)
	}
	if e, err := p.Wait(t.Context()); err != nil || e.Signal != 2 {
		t.Errorf("%v %v", e, err)
	}
}
