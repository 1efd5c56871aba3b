package escape

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/all"
	"github.com/axocoatl/isolation/internal/testprog"
	"github.com/axocoatl/isolation/test/testvm"
)

// Target is that of the attack program.
type Target struct {
	Control                 bool
	Secret, Content, Handle string
	PID                     int
	Marker                  string
	Socket, Abstract        string
	TCP, SHM                int
	Major, Minor            int
	Devices                 []string
	Shared, ReadOnly        string
	Allowed, Forbidden      int
	Loop                    bool
}

// attacks are those that get nothing but the target. users says as whom they are
// tried: "" is the sandbox's user, "0" its root.
var attacks = []struct {
	name  string
	users []string
}{
	{"calls", []string{"", "0"}}, {"namespaces", []string{"", "0"}}, {"cgroup", []string{"", "0"}}, {"files", []string{"", "0"}}, {"devices", []string{"", "0"}},
	{"mknod", []string{"", "0"}}, {"exe", []string{"", "0"}}, {"leaks", []string{"", "0"}}, {"handle", []string{"", "0"}}, {"processes", []string{"", "0"}},
	{"sockets", []string{""}}, {"network", []string{""}}, {"ipc", []string{"", "0"}}, {"rights", []string{"", "0"}}, {"mounts", []string{"", "0"}},
	// The directory belongs to the sandbox's user.
	{"shared", []string{""}},
}

// What the sandbox is given of the host.
const (
	programDir  = "/opt/escape"
	sharedDir   = "/shared"
	readOnlyDir = "/readonly"
)

// programs has attack, axo and axo-guest; runtimes are those that are installed,
// or can be built.
var (
	programs string
	runtimes = map[string]string{}
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "axo-escape-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		// Users of their own have to come to them.
		if err := os.Chmod(dir, 0o755); err != nil {
			panic(err)
		}
		programs = dir
		build := exec.Command("go", "build", "-o", dir+"/", "./attack")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			panic(string(out))
		}
		if err := testprog.BuildCommands(dir, []string{"axo", "axo-guest"}); err != nil {
			panic(err)
		}
		for _, name := range all.Runtimes() {
			if path, err := testprog.FindRuntime(name); err == nil {
				runtimes[name] = path
				// As the axo of TestTerminal takes it.
				os.Setenv("AXO_"+strings.ToUpper(name)+"_PATH", path)
			}
		}
		os.Setenv("AXO_PROBE_TIMEOUT", "1m") // the host may be busy
		return m.Run()
	}())
}

// lab is a host with things to reach.
type lab struct {
	dir     string // with the attack program
	shared  string
	inside  Target // as the sandbox has it
	outside Target
}

func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "root, for the controls")
	}
	top := t.TempDir()
	l := &lab{dir: filepath.Join(top, "program"), shared: filepath.Join(top, "shared")}
	readOnly := filepath.Join(top, "readonly")
	for _, d := range []string{l.dir, l.shared, readOnly} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(programs, "attack")); err != nil {
		t.Fatal(err)
	} else if err := os.WriteFile(filepath.Join(l.dir, "attack"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	random := fmt.Sprintf("axo-escape-%x", time.Now().UnixNano())
	o := Target{Control: true, Secret: filepath.Join(top, "secret"), Content: random + "-content", Handle: l.dir, Marker: random + "-marker", Abstract: random, Shared: filepath.Join(top, "outside"), ReadOnly: readOnly}
	if err := os.WriteFile(o.Secret, []byte(o.Content), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(o.Shared, 0o755); err != nil {
		t.Fatal(err)
	}
	o.Socket = filepath.Join(top, "socket")
	for _, name := range []string{o.Socket, "@" + o.Abstract} {
		s, err := net.Listen("unix", name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
	}
	s, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	o.TCP = s.Addr().(*net.TCPAddr).Port
	o.SHM = int(time.Now().UnixNano()&0x3fffffff | 1)
	id, err := unix.SysvShmGet(o.SHM, 4096, unix.IPC_CREAT|unix.IPC_EXCL|0o666)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = unix.SysvShmCtl(id, unix.IPC_RMID, nil) })
	o.Major, o.Minor = disk(t)
	for _, d := range []string{"console", "kmsg", "mem", "port", "kvm", "vda", "sda", "nvme0n1", "loop0", "loop-control", "fuse", "net/tun", "tty0", "vhost-net", "hwrng", "btrfs-control", "vsock"} {
		if _, err := os.Lstat("/dev/" + d); err == nil {
			o.Devices = append(o.Devices, d)
		}
	}
	// A process of a program of its own, which nobody else is disturbed by.
	program := filepath.Join(top, "process")
	if b, err := os.ReadFile(filepath.Join(l.dir, "attack")); err != nil {
		t.Fatal(err)
	} else if err := os.WriteFile(program, b, 0o755); err != nil {
		t.Fatal(err)
	}
	victim := exec.Command(program, "wait", "{}", o.Marker)
	in, err := victim.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = victim.Wait() })
	o.PID = victim.Process.Pid
	l.outside, l.inside = o, o
	l.inside.Control, l.inside.Handle, l.inside.Shared, l.inside.ReadOnly = false, programDir, sharedDir, readOnlyDir
	return l
}

// disk is a block device of the host, one that its root can open if there is one.
func disk(t *testing.T) (major, minor int) {
	t.Helper()
	for _, name := range []string{"/dev/vda", "/dev/sda", "/dev/nvme0n1", "/dev/loop0", "/dev/ram0"} {
		var st unix.Stat_t
		if unix.Stat(name, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
			continue
		}
		major, minor = int(unix.Major(st.Rdev)), int(unix.Minor(st.Rdev))
		if f, err := os.Open(name); err == nil {
			f.Close()
			break
		}
	}
	return major, minor
}

// missing skips what cannot be shown here, or fails where it must be.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("AXO_REQUIRE") != "" {
		t.Fatalf("needs %s", what)
	}
	t.Skipf("SKIPPED, NOT PROVED: needs %s", what)
}

// unlike reports what an engine does not have, which only gVisor may; virtual
// machines have copies of directories.
func unlike(t *testing.T, d isolation.Driver, what string) {
	t.Helper()
	if d.Name() != "runsc" && (d.Name() != "qemu" || !strings.HasPrefix(what, "writable directories")) {
		t.Fatalf("%s has no %s", d.Name(), what)
	}
	t.Logf("SKIPPED, NOT PROVED: %s has no %s", d.Name(), what)
}

// finding is what an attack said about one thing.
type finding struct{ verdict, why string }

// parse reads the lines of an attack.
func parse(out []byte) map[string]finding {
	found := map[string]finding{}
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		verdict, rest, _ := strings.Cut(s.Text(), " ")
		thing, why, ok := strings.Cut(rest, ": ")
		if ok && slices.Contains([]string{"ESCAPED", "held", "absent"}, verdict) {
			found[thing] = finding{verdict, why}
		}
	}
	return found
}

// control runs an attack outside, as root, in a mount namespace of its own.
func (l *lab) control(t *testing.T, name string) map[string]finding {
	t.Helper()
	arg, err := json.Marshal(l.outside)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(l.dir, "attack"), name, string(arg))
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("control: %v %s%s", err, out, errOut.Bytes())
	}
	return parse(out)
}

// working tells which engines of the tier work here, and why others do not.
var working = sync.OnceValue(func() map[string]error {
	found := map[string]error{}
	reg, err := all.Registry(all.Config{Guest: filepath.Join(programs, "axo-guest"), Runtimes: runtimes})
	if err != nil {
		panic(err)
	}
	for _, r := range reg.All() {
		if r.Tier == isolation.TierOCI {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			_, found[r.Driver.Name()] = r.Driver.Probe(ctx)
			cancel()
		}
		_ = r.Driver.Close()
	}
	return found
})

// engines are those of the tier that work here.
func engines(t *testing.T) []isolation.Driver {
	t.Helper()
	reg, err := all.Registry(all.Config{Guest: filepath.Join(programs, "axo-guest"), Runtimes: runtimes})
	if err != nil {
		t.Fatal(err)
	}
	var list []isolation.Driver
	for _, r := range reg.All() {
		t.Cleanup(func() { r.Driver.Close() })
		if r.Tier != isolation.TierOCI {
			continue
		}
		if err := working()[r.Driver.Name()]; err != nil {
			if os.Getenv("AXO_REQUIRE") != "" {
				t.Errorf("engine %s: %v", r.Driver.Name(), err)
			}
			t.Logf("SKIPPED, NOT PROVED: engine %s: %v", r.Driver.Name(), err)
			continue
		}
		list = append(list, r.Driver)
	}
	if len(list) == 0 {
		missing(t, "an engine that works")
	}
	return list
}

// machine is the engine for virtual machines, or nil.
func machine(t *testing.T) isolation.Driver {
	t.Helper()
	state := t.TempDir()
	guest := filepath.Join(programs, "axo-guest")
	if err := testvm.Try(state, guest); err != nil {
		if os.Getenv("AXO_REQUIRE") != "" {
			t.Fatal(err)
		}
		t.Logf("SKIPPED, NOT PROVED: engine qemu: %v", err)
		return nil
	}
	reg, err := all.Registry(all.Config{StateDir: state, Guest: guest})
	if err != nil {
		t.Fatal(err)
	}
	var found isolation.Driver
	for _, r := range reg.All() {
		t.Cleanup(func() { r.Driver.Close() })
		if r.Tier == isolation.TierMicroVM && r.Driver.Name() == "qemu" {
			found = r.Driver
		}
	}
	return found
}

// everywhere are the engines of the tier that work here, and that for virtual
// machines.
func everywhere(t *testing.T) []isolation.Driver {
	t.Helper()
	list := engines(t)
	if m := machine(t); m != nil {
		list = append(list, m)
	}
	return list
}

func (l *lab) spec() isolation.Spec {
	return isolation.Spec{Requirement: isolation.Arbitrary, Mounts: []isolation.Mount{
		{Source: l.dir, Destination: programDir, ReadOnly: true}, {Source: l.shared, Destination: sharedDir},
		{Source: l.outside.ReadOnly, Destination: readOnlyDir, ReadOnly: true},
	}}
}

// tryCreate makes a sandbox. shared is false if the engine gives no writable
// directory of the host: by what is not there, nobody gets out.
func (l *lab) tryCreate(t *testing.T, d isolation.Driver, edit func(*isolation.Spec)) (sb isolation.Sandbox, shared bool, err error) {
	t.Helper()
	spec := l.spec()
	if edit != nil {
		edit(&spec)
	}
	id := fmt.Sprintf("escape-%d-%d", os.Getpid(), time.Now().UnixNano())
	sb, err = d.Create(t.Context(), id, spec)
	if shared = true; errors.Is(err, isolation.ErrUnsupported) && (strings.Contains(err.Error(), "writable mount") || strings.Contains(err.Error(), "writable directory")) {
		unlike(t, d, "writable directories of the host: "+err.Error())
		spec.Mounts = slices.DeleteFunc(spec.Mounts, func(m isolation.Mount) bool { return !m.ReadOnly })
		sb, err = d.Create(t.Context(), id, spec)
		shared = false
	}
	if err == nil {
		t.Cleanup(func() {
			if err := sb.Delete(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	return sb, shared, err
}

func (l *lab) create(t *testing.T, d isolation.Driver) (sb isolation.Sandbox, shared bool) {
	t.Helper()
	sb, shared, err := l.tryCreate(t, d, nil)
	if err != nil {
		t.Fatal(err)
	}
	return sb, shared
}

// execute runs a program in a sandbox.
func execute(t *testing.T, sb isolation.Sandbox, p isolation.ProcessSpec) (out []byte, exit isolation.Exit, err error) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	p.Limits.Wall = 30 * time.Second
	proc, err := sb.Exec(t.Context(), p, isolation.Stdio{Stdout: &stdout, Stderr: &stderr})
	if err != nil {
		return nil, exit, err
	}
	if exit, err = proc.Wait(t.Context()); err == nil && stderr.Len() > 0 {
		t.Logf("stderr: %s", stderr.Bytes())
	}
	return stdout.Bytes(), exit, err
}

func (l *lab) process(t *testing.T, name string, edit func(*Target)) isolation.ProcessSpec {
	t.Helper()
	in := l.inside
	if edit != nil {
		edit(&in)
	}
	arg, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	return isolation.ProcessSpec{Args: []string{programDir + "/attack", name, string(arg)}, Cwd: "/"}
}

// ownKernel are engines in which a program meets a kernel of the sandbox's own,
// and things that this one has and that lead to nothing of the host.
var ownKernel = map[string][]string{
	// gVisor's devices and files of these names are made by its sentry, which is
	// an ordinary process of a user of its own; the map of users is the sentry's.
	"runsc": {"/proc/sysrq-trigger", "/proc/sys/kernel/hostname", "/proc/sys/net/ipv4/ip_forward", "/dev/fuse", "/dev/net/tun", "unknown devices", "uid 0 of the host"},
	// A machine's root is a layer of its own over a disk that nobody writes to, and
	// user 0 is that of its kernel.
	"qemu": {"uid 0 of the host", "write to /usr", "write to /bin", "write to /lib", "write to /etc"},
}

// judge holds what an attack found inside against what it found outside.
func judge(t *testing.T, engine string, inside, control map[string]finding) {
	t.Helper()
	for _, thing := range ownKernel[engine] {
		if i, ok := inside[thing]; ok && i.verdict == "ESCAPED" {
			t.Logf("%s: the engine's own: %s", thing, i.why)
			inside[thing] = finding{"held", "by the engine's own kernel"}
		}
	}
	if len(inside) == 0 {
		t.Error("the attack said nothing")
	}
	for thing, c := range control {
		i, ok := inside[thing]
		switch {
		case !ok && c.verdict == "ESCAPED":
			t.Errorf("%s was not tried; outside: %s", thing, c.why)
		case i.verdict == "ESCAPED":
			t.Errorf("%s: ESCAPED: %s", thing, i.why)
		}
	}
	for thing, i := range inside {
		if _, ok := control[thing]; !ok && i.verdict == "ESCAPED" {
			t.Errorf("%s: ESCAPED: %s", thing, i.why)
		}
	}
}

// TestAttacks tries each attack outside and then on every engine.
func TestAttacks(t *testing.T) {
	l := newLab(t)
	controls := map[string]map[string]finding{}
	t.Run("control", func(t *testing.T) {
		for _, a := range attacks {
			t.Run(a.name, func(t *testing.T) {
				c := l.control(t, a.name)
				controls[a.name] = c
				shown := 0
				for thing, f := range c {
					switch f.verdict {
					case "ESCAPED":
						shown++
					case "absent":
						t.Logf("NOT PROVED: %s: this host has nothing of the kind: %s", thing, f.why)
					default:
						// It is held outside as well, so the sandbox's refusal tells
						// nothing.
						t.Logf("NOT PROVED: %s is refused outside too: %s", thing, f.why)
					}
				}
				if shown == 0 {
					t.Skip("SKIPPED, NOT PROVED: nothing of this works outside on this host, so that it is refused inside tells nothing")
				}
			})
		}
	})
	for _, d := range everywhere(t) {
		t.Run(d.Name(), func(t *testing.T) {
			sb, shared := l.create(t, d)
			for _, a := range attacks {
				if a.name == "shared" && !shared {
					continue
				}
				for _, user := range a.users {
					name := a.name
					if user != "" {
						name += " as " + user
					}
					t.Run(name, func(t *testing.T) {
						p := l.process(t, a.name, nil)
						p.User = user
						out, exit, err := execute(t, sb, p)
						if err != nil {
							t.Fatal(err)
						}
						if exit.Reason != isolation.ReasonExited || exit.Code != 0 {
							t.Fatalf("%v: %s", exit, out)
						}
						judge(t, d.Name(), parse(out), controls[a.name])
					})
				}
			}
		})
	}
}
