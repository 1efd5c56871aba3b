package guest

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// kin lists the processes of the session that a program leads, but for itself.
// It is how a guest without control groups tells what a program started; who made
// a session of his own is not found. It looks into the proc file system of this
// process's own pid namespace, which programs do not see; nil: there is none.
func (g *guest) kin(leader int) (pids []int) {
	if g.proc == nil {
		return nil
	}
	fd, err := unix.Openat(fdOf(g.proc), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	dir := os.NewFile(uintptr(fd), "proc")
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == leader {
			continue
		}
		if session, zombie := g.session(name); session == leader && !zombie {
			pids = append(pids, pid)
		}
	}
	return pids
}

// session reads fields 3 and 6 of proc_pid_stat(5). Before them stands the name of
// the program, which may be anything.
func (g *guest) session(pid string) (session int, zombie bool) {
	fd, err := unix.Openat(fdOf(g.proc), filepath.Join(pid, "stat"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, false
	}
	f := os.NewFile(uintptr(fd), "stat")
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return 0, false
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 4 {
		return 0, false
	}
	session, _ = strconv.Atoi(fields[3])
	return session, fields[0] == "Z" || fields[0] == "X"
}

// survivors counts them, no longer than until grace if some are about to go.
func (g *guest) survivors(leader int, grace time.Time) int {
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		n := len(g.kin(leader))
		if n == 0 || time.Now().After(grace) {
			return n
		}
		time.Sleep(wait)
	}
}
