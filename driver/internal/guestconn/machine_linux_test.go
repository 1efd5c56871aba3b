package guestconn_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/guestconn"
	"github.com/axocoatl/isolation/guest/plan"
	"github.com/axocoatl/isolation/guest/wire"
	"github.com/axocoatl/isolation/image/kernel"
	"github.com/axocoatl/isolation/internal/testprog"
)

// newc writes an initial RAM file system (cpio(5), "New ASCII Format").
func newc(files map[string][]byte) []byte {
	var out bytes.Buffer
	put := func(i int, name string, mode int, data []byte) {
		fmt.Fprintf(&out, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", i, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		out.WriteString(name + "\x00")
		out.Write(make([]byte, -out.Len()&3))
		out.Write(data)
		out.Write(make([]byte, -out.Len()&3))
	}
	dirs := map[string]bool{".": true}
	n := 1
	var add func(dir string)
	add = func(dir string) {
		if !dirs[dir] {
			dirs[dir] = true
			add(filepath.Dir(dir))
			n++
			put(n, dir, 0o40755, nil)
		}
	}
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		add(filepath.Dir(name))
		n++
		if target, ok := strings.CutPrefix(string(files[name]), "-> "); ok {
			put(n, name, 0o120777, []byte(target))
		} else {
			put(n, name, 0o100755, files[name])
		}
	}
	put(0, "TRAILER!!!", 0, nil)
	return out.Bytes()
}

func need(t testing.TB, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		if os.Getenv("AXO_REQUIRE") != "" {
			t.Fatal("needs " + program)
		}
		t.Skip("SKIPPED, NOT PROVED: needs " + program)
	}
	return path
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// machine is a virtual machine with the guest as its first process, emulated.
type machine struct {
	t      testing.TB
	socket string
	ended  chan error
}

func boot(t testing.TB, disk string) *machine {
	if runtime.GOARCH != "amd64" {
		t.Skip("SKIPPED: the machine is of amd64")
	}
	qemu, deb, busybox := need(t, "qemu-system-x86_64"), testprog.KernelPackage(t), testprog.Busybox(t)
	dir := t.TempDir()
	store, err := kernel.Open(filepath.Join(dir, "kernels"), kernel.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	k, err := store.Import(context.Background(), []string{deb}, kernel.Options{})
	if err != nil {
		t.Fatal(err)
	}
	order, err := k.Needs("virtio_mmio", "virtio_console", "virtio_blk", "overlay")
	if err != nil {
		t.Fatal(err)
	}
	p := plan.Machine{Port: "agent0", Image: plan.Disk{Path: "/image"}}
	files := map[string][]byte{
		"init": readFile(t, guestProgram), plan.MachineFile[1:]: p.Append(nil), "image/bin/busybox": readFile(t, busybox),
		"image/etc/passwd": []byte("root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"),
	}
	var list strings.Builder
	for _, m := range order {
		files["modules/"+m+".ko"] = readFile(t, k.Module(m))
		fmt.Fprintf(&list, "/modules/%s.ko\n", m)
	}
	files["modules.list"] = []byte(list.String())
	for _, name := range strings.Fields("sh cat echo id ls ps sleep head tail dd hostname date stat mknod mount chroot unshare kill dmesg true od grep wc rm mkdir find readlink df yes") {
		files["image/bin/"+name] = []byte("-> busybox")
	}
	initrd := filepath.Join(dir, "initrd")
	if err := os.WriteFile(initrd, newc(files), 0o600); err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, socket: filepath.Join(dir, "agent"), ended: make(chan error, 1)}
	// Without the rate of the time stamp counter an emulated kernel may hang in
	// finding it out; the true one is not needed to boot.
	args := []string{
		"-M", "microvm", "-accel", "tcg,thread=single,tb-size=64", "-cpu", "max", "-m", "256", "-smp", "1", "-nodefaults", "-no-user-config", "-nographic", "-no-reboot",
		"-kernel", k.VMLinux(), "-initrd", initrd, "-append", "console=ttyS0 quiet reboot=t panic=-1 tsc=reliable no_timer_check tsc_early_khz=" + khz(t) +
			" cryptomgr.notests ipv6.disable=1 audit=0 apparmor=0 rcupdate.rcu_expedited=1",
		"-serial", "file:" + filepath.Join(dir, "console"),
		"-chardev", "socket,id=ag,path=" + m.socket + ",server=on,wait=off", "-device", "virtio-serial-device,max_ports=2",
		"-device", "virtserialport,chardev=ag,nr=1,name=agent0",
	}
	if disk != "" {
		args = append(args, "-drive", "if=none,id=d0,format=raw,file="+disk, "-device", "virtio-blk-device,drive=d0")
	}
	cmd := exec.Command(qemu, args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waited := make(chan struct{})
	go func() {
		m.ended <- cmd.Wait()
		close(waited)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-waited
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(dir, "console"))
			t.Logf("QEMU said %s, the console %s", said.Bytes(), b[max(0, len(b)-4000):])
		}
	})
	return m
}

// khz is the rate of this host's time stamp counter, as near as /proc/cpuinfo
// tells it.
func khz(t testing.TB) string {
	for line := range strings.Lines(string(readFile(t, "/proc/cpuinfo"))) {
		if _, v, ok := strings.Cut(line, "cpu MHz\t\t: "); ok {
			if mhz, err := strconv.ParseFloat(strings.TrimSpace(v), 64); err == nil {
				return strconv.Itoa(int(mhz * 1000))
			}
		}
	}
	return "2000000"
}

// connect opens the serial port, with the token when it was open before.
func (m *machine) connect(token []byte) *guestconn.Conn {
	m.t.Helper()
	var rw net.Conn
	eventually(m.t, "QEMU takes no connection", func() (ok bool) {
		var err error
		rw, err = net.Dial("unix", m.socket)
		return err == nil
	})
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	m.t.Cleanup(cancel)
	c, err := guestconn.Open(ctx, rw, token)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { c.Close() })
	return c
}

// TestMachine boots a machine and asks of its guest all that only a machine has.
func TestMachine(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	mkfs := need(t, "mkfs.ext4")
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 32<<20)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(mkfs, "-q", disk).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	m := boot(t, disk)
	c := m.connect(nil)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	var steps []string
	for _, s := range c.Hello().Steps {
		steps = append(steps, s.Name)
	}
	if got := strings.Join(steps, " "); got != "mounts modules channel groups root" || !c.Hello().NeedsSync {
		t.Fatalf("%+v", c.Hello())
	}

	// Nothing before SYNC.
	files := &guestconn.Files{Conn: c}
	_, err := c.Exec(ctx, request("id"))
	is(t, "EXEC before SYNC", err, isolation.ErrFailedPrecondition)
	is(t, "WriteFile before SYNC", files.WriteFile(ctx, "/tmp/x", 0o644, strings.NewReader("")), isolation.ErrFailedPrecondition)
	token := bytes.Repeat([]byte{0xa5}, wire.TokenBytes)
	const machineID, bootID = "0123456789abcdef0123456789abcdef", "11111111-2222-4333-8444-555555555555"
	sync := &wire.SyncMessage{
		Entropy: bytes.Repeat([]byte{1}, 64), Time: uint64(time.Date(2033, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano()), Hostname: "clone7",
		MachineID: machineID, BootID: bootID, Token: token, Memory: 48 << 20, Pids: 24, MilliCPU: 900,
	}
	if err := c.Sync(ctx, sync); err != nil {
		t.Fatal(err)
	}
	r := shell(t, c, `id -u; hostname; cat /etc/hostname /etc/machine-id /proc/sys/kernel/random/boot_id; date -u +%Y-%m-%d; pwd`)
	if want := "1000\nclone7\nclone7\n" + machineID + "\n" + bootID + "\n2033-01-02\n/home/user\n"; string(r.out) != want {
		t.Errorf("%q %q, want %q", r.out, r.err, want)
	}

	// Neither the first process nor the channel is there for programs, whoever
	// they are.
	for _, user := range []string{"", "0"} {
		q := request("sh", "-c", `ls /proc | grep -c '^[0-9]*$'; readlink /proc/1/exe; find / -name 'vport*' -o -name 'virtio-ports' -o -name 'vda' -o -name machine 2>/dev/null | grep -v '^/sys/devices.*virtio-ports$' | head -n 3
			ls -d /run/axo /modules /image 2>/dev/null; ls /sys/class/virtio-ports; mknod /tmp/port c 247 1 2>/dev/null && echo mknod; chroot / true 2>/dev/null && echo chroot
			mount -t proc proc /tmp 2>/dev/null && echo mount; kill -9 1 2>/dev/null; kill -9 -1 2>/dev/null; echo end`)
		q.User = user
		r := run(t, c, q, nil)
		if bytes.Contains(r.out, []byte("mknod")) || bytes.Contains(r.out, []byte("chroot")) || bytes.Contains(r.out, []byte("mount\n")) ||
			bytes.Contains(r.out, []byte("/dev/vport")) || bytes.Contains(r.out, []byte("/run/axo")) || bytes.Contains(r.out, []byte("/machine\n")) {
			t.Errorf("user %q: %q %q", user, r.out, r.err)
		}
		if err := c.Ping(ctx); err != nil {
			t.Fatalf("user %q reached the guest: %v", user, err)
		}
	}

	// Limits are counted by the guest.
	r = shell(t, c, `a=xxxxxxxxxxxxxxxx; while :; do a=$a$a; done`)
	if r.Signal != 9 || r.OOMKills == 0 || r.PeakMemory == 0 || r.PeakMemory > 64<<20 {
		t.Errorf("memory: %+v", r.ExitMessage)
	}
	// All of that program has gone with its first part, and nothing of another.
	other, err := c.Exec(ctx, request("sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	r = shell(t, c, `(a=xxxxxxxxxxxxxxxx; while :; do a=$a$a; done); echo survived; sleep 1000`)
	if r.Signal != 9 || r.OOMKills == 0 || r.Survivors != 0 || len(r.out) != 0 {
		t.Errorf("memory of a part: %q %+v", r.out, r.ExitMessage)
	}
	if _, err := other.Usage(ctx); err != nil {
		t.Errorf("another program has ended with it: %v", err)
	}
	_ = other.Kill()
	collect(t, other)
	r = shell(t, c, `i=0; while [ $i -lt 40 ]; do sleep 300 & i=$((i+1)); done; echo no`)
	if r.PidsHits == 0 || r.Survivors == 0 || r.Survivors > 24 {
		t.Errorf("pids: %+v", r.ExitMessage)
	}
	p, err := c.Exec(ctx, request("sh", "-c", "true"))
	if err == nil {
		_ = p.Kill()
		collect(t, p)
	}

	// A new connection at once, with a frame of the old one cut in two: the token
	// tells them apart.
	eventually(t, "the sandbox has no room any more", func() bool {
		q := request("sh", "-c", `kill -9 -1`)
		p, err := c.Exec(ctx, q)
		if err != nil {
			return false
		}
		collect(t, p)
		return true
	})
	c.Close()
	for range 3 {
		rw, err := net.Dial("unix", m.socket)
		if err != nil {
			t.Fatal(err)
		}
		cut := wire.Append(nil, wire.Stdin, 9, make([]byte, 1000))
		if _, err := rw.Write(bytes.Join([][]byte{wire.Mark(token), make([]byte, wire.NonceBytes), cut[:500]}, nil)); err != nil {
			t.Fatal(err)
		}
		rw.Close()
		c = m.connect(token)
		if r := shell(t, c, "echo again"); string(r.out) != "again\n" {
			t.Errorf("%q", r.out)
		}
		c.Close()
	}
	c = m.connect(token)
	files = &guestconn.Files{Conn: c}

	// A disk, for the sandbox's user.
	mnt := &wire.MountMessage{Device: "vda", Target: "/scratch", Type: "ext4", Own: true}
	if err := c.Mount(ctx, mnt); err != nil {
		t.Fatal(err)
	}
	if r := shell(t, c, `echo data > /scratch/file && dd if=/dev/zero of=/scratch/big bs=1M count=100 2>/dev/null; rm /scratch/big; stat -c %u /scratch/file`); string(r.out) != "1000\n" {
		t.Errorf("%q %q", r.out, r.err)
	}
	for _, bad := range []wire.MountMessage{{Device: "../vda", Target: "/x", Type: "ext4"}, {Device: "vda", Target: "/", Type: "ext4"}, {Device: "vda", Target: "x", Type: "ext4"}} {
		is(t, fmt.Sprintf("%+v", bad), c.Mount(ctx, &bad), isolation.ErrInvalidArgument)
	}
	if err := files.WriteFile(ctx, "/scratch/by-files", 0o600, strings.NewReader("by files")); err != nil {
		t.Error(err)
	}
	if i, err := files.Stat(ctx, "/scratch/by-files"); err != nil || i.Mode() != fs.FileMode(0o600) || i.(isolation.FileInfo).UID != 1000 {
		t.Errorf("%+v, %v", i, err)
	}
	if err := c.Mount(ctx, &wire.MountMessage{Target: "/scratch", Remove: true}); err != nil {
		t.Error(err)
	}
	if err := c.Mount(ctx, mnt); err != nil {
		t.Error(err)
	}

	// Told of a snapshot, it stops programs until the next SYNC.
	q := request("sh", "-c", `while :; do echo tick; done`)
	p, err = c.Exec(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(p.Stdout, make([]byte, 50)); err != nil {
		t.Fatal(err)
	}
	if err := c.Sync(ctx, &wire.SyncMessage{Snapshot: true}); err != nil {
		t.Fatal(err)
	}
	_, err = c.Exec(ctx, request("id"))
	is(t, "EXEC before the SYNC after a snapshot", err, isolation.ErrFailedPrecondition)
	u1, err1 := p.Usage(ctx)
	time.Sleep(200 * time.Millisecond)
	u2, err2 := p.Usage(ctx)
	if err1 != nil || err2 != nil || u1.CPU != u2.CPU {
		t.Errorf("it computes while it is frozen: %+v %+v %v %v", u1, u2, err1, err2)
	}
	sync.Hostname = "clone8"
	if err := c.Sync(ctx, sync); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(p.Stdout, make([]byte, 300<<10)); err != nil {
		t.Error(err)
	}
	_ = p.Kill()
	go func() { _, _ = io.Copy(io.Discard, p.Stdout) }()
	if e, err := p.Wait(); err != nil || e.Signal != 9 {
		t.Errorf("%+v, %v", e, err)
	}
	p.Forget()

	// The end writes the disk.
	if err := c.Power(ctx, true); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-m.ended:
		if err != nil {
			t.Errorf("QEMU ended with %v", err)
		}
	case <-ctx.Done():
		t.Fatal("the machine does not end")
	}
	if !bytes.Contains(readFile(t, disk), []byte("by files")) {
		t.Error("the disk does not have what was written")
	}
}
