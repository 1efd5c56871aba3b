// Command wreck is the first process of a virtual machine that is to break. It
// starts the guest in its place, and leaves a process behind that has all rights
// and does to the machine what anybody asks for at the abstract socket "wreck".
package main

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"unsafe"
)

func main() {
	if os.Getpid() == 1 {
		if _, err := syscall.ForkExec("/init", []string{"wreck"}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}}); err != nil {
			panic(err)
		}
		panic(syscall.Exec("/guest", []string{"init"}, os.Environ()))
	}
	// All of it is there before anything is asked for.
	l, err := net.ListenPacket("unixgram", "@wreck")
	for err != nil { // memory of the machine's own network is not
		l, err = net.ListenPacket("unixgram", "@wreck")
	}
	buf := make([]byte, 100)
	for {
		n, from, err := l.ReadFrom(buf)
		if err != nil {
			panic(err)
		}
		if tell := map[string]func() []byte{"reach": reach, "status": status}[string(buf[:n])]; tell != nil {
			_, _ = l.WriteTo(tell(), from) // who does not wait for it gets none
			continue
		}
		if err := wreck(string(buf[:n])); err != nil {
			fmt.Println("wreck:", err)
		}
	}
}

func wreck(how string) error {
	switch how {
	case "panic": // of the kernel
		return write("/proc/sysrq-trigger", "c")
	case "reset":
		return write("/proc/sysrq-trigger", "b")
	case "talk": // much, on the console, and then panic
		f, err := os.OpenFile("/dev/console", os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		for range 100 {
			if _, err := f.WriteString(strings.Repeat("\x1b[2Jtalk\a", 500) + "\n"); err != nil {
				return err
			}
		}
		return write("/proc/sysrq-trigger", "c")
	case "freeze": // the first process
		const group = "/sys/fs/cgroup/wreck"
		if err := os.Mkdir(group, 0o755); err != nil {
			return err
		}
		if err := write(group+"/cgroup.procs", "1"); err != nil {
			return err
		}
		return write(group+"/cgroup.freeze", "1")
	case "spin": // so that nothing else gets a processor
		if err := write("/proc/sys/kernel/sched_rt_runtime_us", "-1"); err != nil {
			return err
		}
		runtime.LockOSThread()
		const fifo = 1 // SCHED_FIFO
		priority := int32(99)
		if _, _, e := syscall.RawSyscall(syscall.SYS_SCHED_SETSCHEDULER, 0, fifo, uintptr(unsafe.Pointer(&priority))); e != 0 {
			return e
		}
		for {
		}
	case "kill": // the first process, by taking away its code
		b, err := os.ReadFile("/proc/1/maps")
		if err != nil {
			return err
		}
		mem, err := os.OpenFile("/proc/1/mem", os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		for _, line := range strings.Split(string(b), "\n") {
			var from, to int64
			var mode string
			if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); n != 3 || mode != "r-xp" || strings.Contains(line, "[v") {
				continue
			}
			if _, err := mem.WriteAt(make([]byte, to-from), from); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("what is %q?", how)
}

// reach opens what programs may not, and tells for each name the kind, numbers,
// and error of what is there: what somebody with all rights can do.
func reach() (out []byte) {
	names, _ := os.ReadDir("/dev")
	list := []string{"/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/kcore", "/proc/1/mem", "/guest", "/machine", "/run/axo"}
	for _, e := range names {
		list = append(list, "/dev/"+e.Name())
	}
	for _, name := range list {
		var st syscall.Stat_t
		if syscall.Stat(name, &st) != nil || st.Mode&syscall.S_IFMT == syscall.S_IFDIR && strings.HasPrefix(name, "/dev") {
			continue
		}
		flags := syscall.O_WRONLY
		if st.Mode&syscall.S_IFMT == syscall.S_IFBLK || st.Mode&syscall.S_IFMT == syscall.S_IFDIR || name == "/proc/kcore" {
			flags = syscall.O_RDONLY
		}
		fd, err := syscall.Open(name, flags|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
		if err == nil {
			syscall.Close(fd)
		}
		kind := map[uint32]string{syscall.S_IFCHR: "c", syscall.S_IFBLK: "b"}[st.Mode&syscall.S_IFMT]
		errno, _ := err.(syscall.Errno)
		out = fmt.Appendf(out, "%s %q %d %d %d\n", name, kind, st.Rdev>>8&0xfff, st.Rdev&0xff|st.Rdev>>12&^0xff, errno)
	}
	return out
}

// status is what the kernel says of the first process (proc_pid_status(5)).
func status() []byte {
	b, _ := os.ReadFile("/proc/1/status")
	return b
}

func write(name, text string) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text)
	return err
}
