package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// Target is what the test has put on the host for the attacks to reach.
type Target struct {
	// Control: this runs outside.
	Control bool
	// Secret is a file of the host, Content what it holds. Handle is a directory
	// on the same file system that is inside, too.
	Secret, Content, Handle string
	// PID is a process of the host, which has Marker in its command line.
	PID    int
	Marker string
	// Socket and Abstract are listening unix sockets, TCP a listening port of the
	// loopback interface, SHM the key of a segment of shared memory.
	Socket, Abstract string
	TCP, SHM         int
	// Major and Minor are a block device's.
	Major, Minor int
	// Devices are names below /dev that only the host may have.
	Devices []string
	// Shared is a writable directory of the host's.
	Shared string
	// ReadOnly is one that must not be written to.
	ReadOnly string
	// Allowed is a port that the rules of the proxy allow, by the name localhost, and
	// Forbidden one that they do not.
	Allowed, Forbidden int
	// Loop: the attack exe looks for a while, and others are started.
	Loop bool
}

var target Target

var attacks = map[string]func(){
	"noop":       func() {},
	"wait":       func() { _, _ = io.Copy(io.Discard, os.Stdin) },
	"calls":      calls,
	"namespaces": namespaces,
	"cgroup":     cgroup,
	"files":      files,
	"devices":    devices,
	"mknod":      mknod,
	"exe":        exe,
	"leaks":      leaks,
	"handle":     handle,
	"processes":  processes,
	"sockets":    sockets,
	"network":    network,
	"egress":     egress,
	"ipc":        ipc,
	"rights":     rights,
	"mounts":     mounts,
	"shared":     shared,
	"terminal":   terminal,
	"traps":      traps,
	"race":       race,
}

func main() {
	if len(os.Args) < 2 || attacks[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "attack: no such attack")
		os.Exit(2)
	}
	if len(os.Args) > 2 {
		if err := json.Unmarshal([]byte(os.Args[2]), &target); err != nil {
			fmt.Fprintln(os.Stderr, "attack:", err)
			os.Exit(2)
		}
	}
	runtime.LockOSThread()
	if target.Control {
		// What is mounted stays here.
		err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		if err != nil {
			fmt.Fprintln(os.Stderr, "attack: control:", err)
			os.Exit(2)
		}
	}
	attacks[os.Args[1]]()
}

func escaped(thing, format string, a ...any) {
	fmt.Printf("ESCAPED %s: %s\n", thing, fmt.Sprintf(format, a...))
}

func held(thing string, why any) { fmt.Printf("held %s: %v\n", thing, why) }

func absent(thing string, why any) { fmt.Printf("absent %s: %v\n", thing, why) }

// refusals are the errors of a wall. Others mean that a call came further.
var refusals = []error{unix.EPERM, unix.EACCES, unix.ENOSYS, unix.EROFS}

func refused(err error) bool {
	return slices.ContainsFunc(refusals, func(r error) bool { return errors.Is(err, r) })
}

// verdict judges an attempt: nil is through.
func verdict(thing string, err error) {
	if err == nil {
		escaped(thing, "done")
		return
	}
	held(thing, err)
}

// writable tells whether a file of the host's kernel can be opened for writing.
// It is not written.
func writable(name string) {
	fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) && target.Control {
			absent(name, err)
			return
		}
		held(name, err)
		return
	}
	defer unix.Close(fd)
	if masked(fd) {
		held(name, "masked")
		return
	}
	escaped(name, "open for writing")
}

// masked reports whether a descriptor is the null device.
func masked(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3)
}
