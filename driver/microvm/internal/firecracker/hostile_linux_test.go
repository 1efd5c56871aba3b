package firecracker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/microvm/internal/jail"
	"github.com/axocoatl/isolation/internal/spawn"

	"github.com/axocoatl/isolation/internal/testprog"
)

// TestMain is a hostile Firecracker when it is started as one.
func TestMain(m *testing.M) {
	if os.Args[0] == "vmm" {
		hostile()
		os.Exit(3)
	}
	os.Exit(m.Run())
}

// hostile does what its disk says.
func hostile() {
	b, err := os.ReadFile(opened(fdDisk))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("hostile:", string(b))
	how, target, _ := strings.Cut(string(b), " ")
	const created, silent = "HTTP/1.1 204 \r\n\r\n", ""
	version := func(v string) string {
		body := fmt.Sprintf(`{"firecracker_version":%q}`, v)
		return fmt.Sprintf("HTTP/1.1 200 \r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	}
	api := map[string][]string{
		"old":        {version("1.0.0"), created},
		"unknown":    {version("9.9.9"), created},
		"nonsense":   {version("none"), created},
		"refuses":    {version("1.16.1"), "HTTP/1.1 400 \r\nContent-Length: 22\r\n\r\n{\"fault_message\":\"no\"}"},
		"silent":     {silent},
		"late":       {version("1.16.1"), silent},
		"vsock-lies": {version("1.16.1"), created}, "vsock-endless": {version("1.16.1"), created}, "vsock-silent": {version("1.16.1"), created},
		"vsock-link": {version("1.16.1"), created}, "vsock-refuses": {version("1.16.1"), created},
	}[how]
	switch {
	case api != nil:
		go serve(apiSocket, api)
	case how == "exits":
		return
	case how == "floods":
		l, err := net.Listen("unix", apiSocket)
		if err != nil {
			return
		}
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = fmt.Fprint(c, "HTTP/1.1 200 \r\n\r\n")
				for {
					if _, err := c.Write(make([]byte, 1<<16)); err != nil {
						return
					}
				}
			}()
		}
	case how == "link":
		err = os.Symlink(target, apiSocket)
	case how == "file":
		err = os.WriteFile(apiSocket, nil, 0o600)
	}
	switch how {
	case "vsock-lies":
		go serve(vsockSocket, []string{"HTTP/1.1 204 \r\n\r\n"})
	case "vsock-endless":
		go serve(vsockSocket, []string{strings.Repeat("OK", 1<<20)})
	case "vsock-silent":
		go serve(vsockSocket, []string{silent})
	case "vsock-refuses":
		go serve(vsockSocket, []string{"close"})
	case "vsock-link":
		err = os.Symlink(target, vsockSocket)
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	time.Sleep(time.Hour)
}

// serve answers one connection after the other, with the last answer for ever.
func serve(name string, answers []string) {
	l, err := net.Listen("unix", name)
	if err != nil {
		return
	}
	for i := 0; ; i++ {
		c, err := l.Accept()
		if err != nil {
			return
		}
		b := make([]byte, 1<<16)
		if _, err := c.Read(b); err != nil {
			return
		}
		switch a := answers[min(i, len(answers)-1)]; a {
		case "": // held open
		case "close":
			c.Close()
		default:
			_, _ = c.Write([]byte(a))
			c.Close()
		}
	}
}

// TestHostile: whatever Firecracker does, the host gets an error in time, and
// nothing of the machine is left.
func TestHostile(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bait := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", bait)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Error("a socket of the host's was connected to")
			c.Close()
		}
	}()
	var s spawn.Spawner
	defer s.Close()
	for how, want := range map[string]error{
		"exits": nil, "file": nil, "link " + bait: nil, "silent": context.DeadlineExceeded, "late": context.DeadlineExceeded, "deaf": context.DeadlineExceeded,
		"old": isolation.ErrUnsupported, "unknown": isolation.ErrUnsupported, "nonsense": isolation.ErrFailedPrecondition,
		"refuses": nil, "floods": nil, "vsock-lies": nil, "vsock-endless": nil, "vsock-silent": context.DeadlineExceeded,
		"vsock-refuses": context.DeadlineExceeded, "vsock-link " + bait: nil,
	} {
		name, _, _ := strings.Cut(how, " ")
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			files := map[string]*os.File{}
			for _, name := range []string{"ram", "disk", "state"} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(how), 0o644); err != nil {
					t.Fatal(err)
				}
				f, err := os.Open(filepath.Join(dir, name))
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				files[name] = f
			}
			root := filepath.Join(dir, "root")
			if err := os.Mkdir(root, 0o700); err != nil {
				t.Fatal(err)
			}
			patience := 20 * time.Second
			if want == context.DeadlineExceeded {
				patience = time.Second
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			pid := 0
			m, err := Start(ctx, &s, &Config{
				MemoryMiB: 1, CPUs: 1, Program: self, Dir: root, RAM: files["ram"], Disk: files["disk"], State: files["state"], StandIn: []string{},
				Started: func(n int) error { pid = n; return nil },
			})
			if strings.HasPrefix(how, "vsock") {
				if err != nil {
					t.Fatal(err)
				}
				var c net.Conn
				if c, err = m.DialGuest(ctx); err == nil {
					c.Close()
				}
				m.Kill()
				m.Wait()
			}
			switch {
			case err == nil:
				t.Fatal("it was believed")
			case want != nil && !errors.Is(err, want):
				t.Errorf("%v, want %v", err, want)
			case want == nil && ctx.Err() != nil:
				t.Errorf("it held the host up: %v", err)
			}
			if len(err.Error()) > 3000 || strings.ContainsRune(err.Error(), 0x1b) {
				t.Errorf("an error of %d bytes: %.300q", len(err.Error()), err)
			}
			if err := unix.Kill(pid, 0); pid == 0 || err != unix.ESRCH {
				t.Errorf("process %d: %v", pid, err)
			}
			if err := os.RemoveAll(root); err != nil {
				t.Errorf("what it left cannot be removed: %v", err)
			}
		})
	}
}

// TestJail is what a program finds around it, from outside and within.
func TestJail(t *testing.T) {
	testprog.Root(t, "looks at another user's process")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	disk, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	if _, err := disk.WriteString("deaf"); err != nil {
		t.Fatal(err)
	}
	if err := disk.Chmod(0o644); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	var s spawn.Spawner
	defer s.Close()
	p, err := jail.Start(&s, &jail.Config{Program: self, Dir: root, Files: []*os.File{disk, disk}, FileBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		p.Kill()
		p.Wait()
	}()
	for !strings.Contains(p.Said(), "deaf") {
		select {
		case <-p.Ended():
			t.Fatal(p.Said())
		case <-time.After(time.Millisecond):
		}
	}
	dir := fmt.Sprintf("/proc/%d/", p.PID)
	b, err := os.ReadFile(dir + "status")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"Name:\tvmm", "Uid:\t65534\t65534\t65534\t65534", "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1"} {
		if !strings.Contains(string(b), line) {
			t.Errorf("its status has no %q:\n%s", line, b)
		}
	}
	list, err := os.ReadDir(dir + "root")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		switch e.Name() {
		case "dev", "proc", "run", "vmm":
		case "usr", "lib", "lib64", "etc": // of tests that are linked to libraries
		default:
			t.Errorf("its root has %s", e.Name())
		}
	}
	mounts, err := os.ReadFile(dir + "mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if !strings.Contains(f[5], "nosuid") || f[4] == "/vmm" && !strings.Contains(f[5], "ro,") || f[4] == "/" && !strings.Contains(f[5], "noexec") {
			t.Errorf("mount %s", line)
		}
	}
	if old, err := os.Stat(dir + "root/root"); err == nil {
		t.Errorf("the host's root is seen: %v", old)
	}
}
