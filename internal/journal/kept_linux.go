package journal

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/internal/brand"
)

func openNoFollow(name string, flag int) (*os.File, error) {
	return os.OpenFile(name, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
}

// takeLock locks an open file (fcntl(2), "Open file description locks").
func takeLock(f *os.File) error {
	l := unix.Flock_t{Type: unix.F_WRLCK}
	err := lockCall(f, unix.F_OFD_SETLK, &l)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return ErrHeld
	}
	return err
}

// dropLock gives a lock back, whoever has a copy of the descriptor.
func dropLock(f *os.File) error {
	return lockCall(f, unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK})
}

// lockedBy reports whether somebody has the lock of a file.
func lockedBy(name string) (bool, error) {
	f, err := openNoFollow(name, os.O_RDWR)
	if err != nil {
		return false, err
	}
	defer f.Close()
	l := unix.Flock_t{Type: unix.F_WRLCK}
	err = lockCall(f, unix.F_OFD_GETLK, &l)
	return err == nil && l.Type != unix.F_UNLCK, err
}

func lockCall(f *os.File, cmd int, l *unix.Flock_t) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var lerr error
	err = rc.Control(func(fd uintptr) { lerr = unix.FcntlFlock(fd, cmd, l) })
	return errors.Join(err, lerr)
}

// processLives reports whether the process that was started then has not ended. A
// zombie has.
func processLives(pid int, start uint64) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	if now, err := startTime(pid); err != nil || now != start {
		return false
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err == nil && n == 0
}

func validBrand(b uint64) bool { return brand.Brand(b).IsValid() }

// maxPasses bounds how often processes are looked for that keep coming.
const maxPasses = 100

// killBranded kills the processes of a sandbox, wherever they are.
func killBranded(b uint64) (was bool, err error) {
	if !brand.Brand(b).IsValid() || brand.Of(os.Getpid()).SameSandbox(brand.Brand(b)) {
		return false, fmt.Errorf("%x is the brand of no sandbox", b)
	}
	for range maxPasses {
		n, err := killPass(brand.Brand(b))
		if err != nil || n == 0 {
			return was, err
		}
		was = true
	}
	return was, errors.New("there are more and more processes")
}

func killPass(b brand.Brand) (n int, err error) {
	d, err := os.Open("/proc")
	if err != nil {
		return 0, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || !b.SameSandbox(brand.Of(pid)) {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		// As in killProcess: the number may have been given to another meanwhile.
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if ended, perr := unix.Poll(fds, 0); perr == nil && ended == 0 && b.SameSandbox(brand.Of(pid)) {
			n++
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			_, _ = unix.Poll(fds, 1000)
		}
		unix.Close(fd)
	}
	return n, nil
}
