package proc

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/brand"
)

// Brand tells whose a process is.
type Brand = brand.Brand

// NewBrand returns the brand of a new sandbox.
func NewBrand() (Brand, error) {
	b, err := brand.New()
	if err != nil {
		err = fmt.Errorf("%w (%w)", err, isolation.ErrFailedPrecondition)
	}
	return b, err
}

// BrandOf returns the brand of a process; 0 if it has none or is gone.
func BrandOf(pid int) Brand { return brand.Of(pid) }

// tree finds and ends the processes that match, wherever they went.
type tree struct {
	match  func(Brand) bool
	pids   func() ([]int, error) // candidates
	letDie func(pid int)         // is called of each that was killed; nil: nothing is
}

// AllPIDs lists the host's processes.
func AllPIDs() ([]int, error) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	pids := make([]int, 0, len(names))
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// live returns the members that run, zombies not counted.
func (t tree) live() ([]int, error) {
	pids, err := t.pids()
	if err != nil {
		return nil, err
	}
	n := 0
	for _, pid := range pids {
		if t.match(BrandOf(pid)) {
			if s, ok := statOf(pid); ok && !s.dead() {
				pids[n] = pid
				n++
			}
		}
	}
	return pids[:n], nil
}

const (
	// maxRounds bounds how often a tree that keeps growing is looked at again.
	maxRounds = 64
	// maxHeld bounds the descriptors that this takes of the host program.
	// More members than that are killed without being stopped before.
	maxHeld = 256
)

// kill sends SIGKILL to all members. They are all stopped first, round after
// round until none is new, so that none forks while the others are killed.
// It returns how many there were, and does not wait for their ends.
func (t tree) kill() (int, error) {
	held := map[int]int{} // pid to pidfd
	end := func(pid, fd int) {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		_ = unix.Close(fd)
		if t.letDie != nil {
			t.letDie(pid)
		}
	}
	defer func() {
		for pid, fd := range held {
			end(pid, fd)
		}
	}()
	killed := 0
	for range maxRounds {
		pids, err := t.live()
		if err != nil {
			return len(held) + killed, err
		}
		fresh := false
		for _, pid := range pids {
			if _, ok := held[pid]; ok {
				continue
			}
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				continue
			}
			// The number may have been given to another process before it
			// was opened. If it has the brand now, the descriptor is a
			// member's, or that of a process that is gone.
			if !t.match(BrandOf(pid)) {
				_ = unix.Close(fd)
				continue
			}
			fresh = true
			if len(held) == maxHeld {
				end(pid, fd)
				killed++
				continue
			}
			held[pid] = fd
			_ = unix.PidfdSendSignal(fd, unix.SIGSTOP, nil, 0)
		}
		if !fresh {
			break
		}
	}
	return len(held) + killed, nil
}

// end kills until no member is left.
func (t tree) end(ctx context.Context) error {
	for wait := time.Millisecond / 4; ; wait = min(2*wait, 20*time.Millisecond) {
		n, err := t.kill()
		if err != nil || n == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d processes have not ended: %w", n, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// cpu is the time of all members and of the children that they have waited
// for. What orphans used that somebody else reaped is not in it.
func (t tree) cpu() time.Duration {
	pids, err := t.live()
	if err != nil {
		return 0
	}
	var sum time.Duration
	for _, pid := range pids {
		var ts unix.Timespec
		if unix.ClockGettime(processClock(pid), &ts) == nil {
			sum += time.Duration(ts.Nano())
		}
		if s, ok := statOf(pid); ok {
			sum += s.childTime
		}
	}
	return sum
}

// processClock is the CPU clock of another process (clock_getcpuclockid(3)).
func processClock(pid int) int32 { return ^int32(pid)<<3 | 2 }

// userHz is the unit of times in /proc, the same on every Linux (time(7)).
const userHz = 100

type procStat struct {
	state     byte
	childTime time.Duration
}

func (s procStat) dead() bool { return s.state == 'Z' || s.state == 'X' }

// statOf reads /proc/pid/stat (proc_pid_stat(5)).
func statOf(pid int) (procStat, bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return procStat{}, false
	}
	// The name, in parentheses, may hold anything, also parentheses.
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return procStat{}, false
	}
	f := bytes.Fields(b[i+1:])
	const state, cutime, cstime = 0, 13, 14 // fields 3, 16, 17
	if len(f) <= cstime || len(f[state]) != 1 {
		return procStat{}, false
	}
	ticks := func(b []byte) time.Duration {
		n, _ := strconv.ParseInt(string(b), 10, 64)
		return time.Duration(n) * (time.Second / userHz)
	}
	return procStat{state: f[state][0], childTime: ticks(f[cutime]) + ticks(f[cstime])}, true
}
