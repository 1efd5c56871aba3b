package microvm_test

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
)

// askWreck is a script that asks who has all rights in the machine, and prints what
// he says.
func askWreck(what string) string {
	return `import socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(b'\0answer')
s.sendto(b'` + what + `', b'\0wreck')
print(s.recv(1 << 16).decode(), end='')`
}

// TestGuestIsSmall: what the guest takes of the machine's memory, at first and after
// much output of programs, which is garbage then.
func TestGuestIsSmall(t *testing.T) {
	const rests, most = 8 << 10, 14 << 10 // KiB
	sb := create(t, newDriver(t, config(t)), "small", isolation.Spec{})
	takes := func() (kib int) {
		status, e := sh(t, sb, "exec python3 -c \""+askWreck("status")+"\"")
		for line := range strings.Lines(status) {
			if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kib); n == 1 {
				return kib
			}
		}
		t.Fatalf("%v, %q: no VmRSS", e, status)
		return 0
	}
	first := takes()
	for range 5 {
		if out, e := sh(t, sb, "head -c 1000000 /dev/zero"); !e.Success() || len(out) != 1_000_000 {
			t.Fatalf("%v, %d bytes", e, len(out))
		}
	}
	then := takes()
	t.Logf("the guest takes %d KiB, after some output %d", first, then)
	if first > rests || then > most {
		t.Errorf("the guest takes %d KiB of memory, after some output %d; want at most %d and %d", first, then, rests, most)
	}
}

// tryReach tries the same as who it is run by, by name and, where devices can be
// made, by number: each line of its input is a thing, and it prints the things
// that it got at.
const tryReach = `import os, sys
def tried(name, flags):
    try:
        fd = os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as e:
        return e.errno in (16, 26)  # EBUSY, ETXTBSY: not for want of rights
    null = os.stat('/dev/null')
    it = os.fstat(fd)
    os.close(fd)
    return it.st_rdev != null.st_rdev or not it.st_rdev
for line in sys.stdin:
    name, kind, major, minor = line.split()[:4]
    flags = os.O_RDONLY if kind == '"b"' or name in ('/proc/kcore', '/guest', '/machine', '/run/axo') else os.O_WRONLY
    if tried(name, flags):
        print(name)
    for dir in ('/tmp', '/dev/shm', '/dev', '/home/user', '/', '/root', '/var/tmp', '/run'):
        made = dir + '/made'
        if kind == '""':
            break
        try:
            os.mknod(made, 0o666 | (0o060000 if kind == '"b"' else 0o020000), os.makedev(int(major), int(minor)))
        except OSError:
            continue
        if tried(made, flags):
            print(name, 'by number in', dir)
        os.unlink(made)
for pid in [p for p in os.listdir('/proc') if p.isdigit() and p != str(os.getpid())]:
    for what in ('mem', 'environ', 'root/etc', 'cwd/.', 'fd/0', 'map_files'):
        try:
            if what in ('root/etc', 'cwd/.', 'map_files'):
                os.listdir('/proc/%s/%s' % (pid, what))
            else:
                os.close(os.open('/proc/%s/%s' % (pid, what), os.O_RDONLY))
            print('/proc/%s/%s' % (pid, what))
        except OSError:
            pass
print('done', os.getuid())`

// TestReach: neither the sandbox's user nor its root gets at what is the guest's,
// or the machine's: its channel, memory, disks, console, modules, the kernel's
// switches, what was in the initial RAM file system, and programs of others. The
// control has all rights and does.
func TestReach(t *testing.T) {
	d := newDriver(t, config(t))
	sb := create(t, d, "reach", isolation.Spec{})
	run := func(user, script, stdin string) string {
		t.Helper()
		var out, errOut strings.Builder
		p, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"/usr/bin/python3", "-c", script}, User: user, Cwd: "/"},
			isolation.Stdio{Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &errOut})
		if err != nil {
			t.Fatal(err)
		}
		if e, err := p.Wait(t.Context()); err != nil || !e.Success() {
			t.Fatalf("%v, %v: %s", e, err, errOut.String())
		}
		return out.String()
	}
	control := run("", askWreck("reach"), "")
	var things strings.Builder
	reached := map[string]bool{}
	for line := range strings.Lines(control) {
		var name, kind string
		var major, minor, errno int
		if _, err := fmt.Sscanf(line, "%s %q %d %d %d", &name, &kind, &major, &minor, &errno); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if errno == 0 || unix.Errno(errno) == unix.EBUSY || unix.Errno(errno) == unix.ETXTBSY {
			reached[name] = true
		}
		if shared := map[string]bool{"null": true, "zero": true, "full": true, "random": true, "urandom": true, "tty": true, "ptmx": true}; !shared[strings.TrimPrefix(name, "/dev/")] {
			things.WriteString(line)
		}
	}
	for _, name := range []string{"/dev/vport0p1", "/dev/vda", "/dev/mem", "/dev/kmsg", "/dev/console", "/proc/sysrq-trigger", "/proc/sys/kernel/modprobe", "/proc/1/mem", "/guest", "/machine", "/run/axo"} {
		if !reached[name] {
			t.Errorf("the control does not reach %s", name)
		}
	}
	// Somebody else's program, whose memory is not for others.
	other, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"/bin/sleep", "1000"}, User: "4321"}, isolation.Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Kill(t.Context(), isolation.SIGKILL) }()
	for user, uid := range map[string]string{"": "1000", "0": "0"} {
		got := run(user, tryReach, things.String())
		if got != "done "+uid+"\n" {
			t.Errorf("user %q reaches\n%s", user, got)
		}
	}
}
