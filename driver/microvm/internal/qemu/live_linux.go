package qemu

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Freeze stops QEMU itself (SIGSTOP): the machine uses no processor, whatever
// its guest does.
func (m *Machine) Freeze() error { return m.Signal(unix.SIGSTOP) }

// Thaw undoes Freeze.
func (m *Machine) Thaw() error { return m.Signal(unix.SIGCONT) }

// fdsetState is the set (qemu, qapi/misc.json, "add-fd") by which QEMU finds the
// file for its state.
const fdsetState = 3

// Capture stops the machine and returns the state of its devices, without its
// memory, for Config.Devices. The memory is as it was until Continue; see Memory.
func (m *Machine) Capture(ctx context.Context) (_ []byte, err error) {
	if _, err := m.qmp.do(ctx, "stop", nil, nil); err != nil {
		return nil, err
	}
	f, err := MemoryFile("state", nil)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// QEMU takes a descriptor of a set only if it was opened in the way that it
	// opens a file itself, here for writing alone.
	w, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	set := map[string]any{"fdset-id": fdsetState}
	if _, err := m.qmp.do(ctx, "add-fd", set, w); err != nil {
		return nil, err
	}
	// Not of Xen alone (qemu, qapi/migration.json): all devices, no memory, and the
	// machine's disks stay its own.
	save := map[string]any{"filename": fmt.Sprintf("/dev/fdset/%d", fdsetState), "live": false}
	_, err = m.qmp.do(ctx, "xen-save-devices-state", save, nil)
	_, rerr := m.qmp.do(ctx, "remove-fd", set, nil)
	if err := errors.Join(err, rerr); err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() > maxState {
		return nil, fmt.Errorf("a state of %d bytes", st.Size())
	}
	b := make([]byte, st.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, err
	}
	return complete(b)
}

// maxState bounds what QEMU says of its devices, in bytes.
const maxState = 16 << 20

// Continue undoes the stop of Capture.
func (m *Machine) Continue(ctx context.Context) error {
	_, err := m.qmp.do(ctx, "cont", nil, nil)
	return err
}

// The parts of a stream of states (qemu, migration/savevm.c and savevm.h).
const (
	streamHead    = "QEVM\x00\x00\x00\x03"
	configuration = 7
	description   = 6
	machineName   = "microvm"
)

// complete gives a state what a restore looks for: which machine it is of, and a
// description, which may be empty.
func complete(b []byte) ([]byte, error) {
	rest, ok := bytes.CutPrefix(b, []byte(streamHead))
	if !ok || len(rest) == 0 {
		return nil, fmt.Errorf("%.16q is no state of version 3", b)
	}
	out := append([]byte(streamHead), configuration)
	out = binary.BigEndian.AppendUint32(out, uint32(len(machineName)))
	out = append(out, machineName...)
	out = append(out, rest...)
	out = append(out, description)
	return binary.BigEndian.AppendUint32(out, 0), nil
}
