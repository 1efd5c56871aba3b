package qemu

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/axocoatl/isolation/driver/microvm/internal/jail"
)

// Reopen finds a machine again that another process has started with
// Config.Session, by its process and the directory of its sockets. What it said
// before is lost.
func Reopen(pid int, dir string) (_ *Machine, err error) {
	m := newMachine(dir)
	if err := m.enter(); err != nil {
		return nil, err
	}
	if m.Process, err = jail.Reopen(pid); err != nil {
		m.at.Close()
		return nil, err
	}
	m.watch()
	return m, nil
}

// Connect connects to the monitor of a machine that was found again, and has it run
// if it was being captured.
func (m *Machine) Connect(ctx context.Context) (err error) {
	if m.qmp, err = dialMonitor(ctx, m.monitorSocket()); err != nil {
		return err
	}
	return m.Continue(ctx)
}

// Frozen reports whether QEMU is stopped (proc_pid_stat(5)).
func (m *Machine) Frozen() bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.PID))
	_, rest, _ := strings.Cut(string(b), ") ")
	return err == nil && strings.HasPrefix(rest, "T")
}

// Leave closes what this process has of a machine that goes on without it.
func (m *Machine) Leave() {
	m.Process.Leave()
	if m.read != nil {
		m.read.Close()
	}
	if m.qmp != nil {
		m.qmp.close()
	}
	m.at.Close()
}

// watch tells of the end, unless the machine is left before.
func (m *Machine) watch() {
	go func() {
		select {
		case <-m.Process.Ended():
		case <-m.Left():
			return
		}
		// What the guest's kernel said last is there when its end is told.
		m.tails.Wait()
		close(m.ended)
	}()
}
