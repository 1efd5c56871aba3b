package wire

import "fmt"

// SyncMessage makes a machine that was booted, or restored from a snapshot,
// unlike any other. Until it comes nothing is started.
type SyncMessage struct {
	Entropy   []byte // for the kernel's random numbers; at least MinEntropy
	Time      uint64 // ns since 1970
	Hostname  string // this and those below: empty is as it was
	MachineID string // 32 hex digits (machine-id(5))
	BootID    string // a UUID (random(4))
	// Token is what a host shows first when it opens again a serial port, which
	// has no connections of its own; see Mark. TokenBytes long, and known to
	// nobody else; empty: as it was.
	Token []byte
	// Limits of all programs together, as of now. 0: none.
	Memory   uint64 // bytes
	Pids     uint64
	MilliCPU uint64 // thousandths of a core
	// Disk bounds what is written to files, in bytes; 0: as the machine was made.
	Disk uint64
	// Snapshot announces a snapshot instead: programs are frozen, nothing is
	// started before the next SYNC, and the other fields have no meaning.
	Snapshot bool
}

const (
	// MinEntropy and MaxEntropy bound SyncMessage.Entropy in bytes.
	MinEntropy, MaxEntropy = 32, 512
	// TokenBytes is the length of SyncMessage.Token, and NonceBytes that of the
	// random bytes that a host sends behind it, and waits for behind it.
	TokenBytes, NonceBytes = 32, 16
)

// Mark is what stands for a token at the start of a connection: its complement,
// so that a SYNC which carries the token is not taken for one.
func Mark(token []byte) []byte {
	mark := make([]byte, len(token))
	for i, b := range token {
		mark[i] = ^b
	}
	return mark
}

// Append appends the body.
func (m *SyncMessage) Append(b []byte) []byte {
	b = appendText(b, 1, string(m.Entropy))
	b = appendUint(b, 2, m.Time)
	b = appendText(b, 3, m.Hostname)
	b = appendText(b, 4, m.MachineID)
	b = appendText(b, 5, m.BootID)
	b = appendText(b, 6, string(m.Token))
	b = appendUint(b, 7, m.Memory)
	b = appendUint(b, 8, m.Pids)
	b = appendUint(b, 9, m.MilliCPU)
	b = appendUint(b, 10, bit(m.Snapshot))
	return appendUint(b, 11, m.Disk)
}

// Parse reads the body.
func (m *SyncMessage) Parse(body []byte) error {
	*m = SyncMessage{}
	err := fields(body, func(tag byte, v value) error {
		switch tag {
		case 1:
			m.Entropy = append([]byte(nil), v...)
			return nil
		case 2:
			return v.uint(&m.Time)
		case 3:
			return v.text(&m.Hostname)
		case 4:
			return v.text(&m.MachineID)
		case 5:
			return v.text(&m.BootID)
		case 6:
			m.Token = append([]byte(nil), v...)
			return nil
		case 7:
			return v.uint(&m.Memory)
		case 8:
			return v.uint(&m.Pids)
		case 9:
			return v.uint(&m.MilliCPU)
		case 10:
			return v.flag(&m.Snapshot)
		case 11:
			return v.uint(&m.Disk)
		}
		return unknown("SYNC", tag)
	})
	switch n := len(m.Entropy); {
	case err != nil || m.Snapshot:
	case n < MinEntropy || n > MaxEntropy:
		err = fmt.Errorf("%w: SYNC with %d bytes of entropy", ErrProtocol, n)
	case len(m.Token) != 0 && len(m.Token) != TokenBytes:
		err = fmt.Errorf("%w: SYNC with a token of %d bytes", ErrProtocol, len(m.Token))
	}
	return err
}

// MountMessage mounts a disk of the machine in the sandbox.
type MountMessage struct {
	Device   string // a name in /dev: "vdb"
	Target   string // absolute path in the sandbox; it is made
	Type     string // "ext4", "erofs"
	Data     string // options of the file system (mount(8))
	ReadOnly bool
	// Own gives the file system's root to the sandbox's user.
	Own bool
	// Remove takes away what was mounted at Target instead.
	Remove bool
	// Source is an absolute path in the file system: that part of it is mounted,
	// a directory or a file. Empty: all of it.
	Source string
}

// Append appends the body.
func (m *MountMessage) Append(b []byte) []byte {
	b = appendText(b, 1, m.Device)
	b = appendText(b, 2, m.Target)
	b = appendText(b, 3, m.Type)
	b = appendText(b, 4, m.Data)
	b = appendUint(b, 5, bit(m.ReadOnly))
	b = appendUint(b, 6, bit(m.Own))
	b = appendUint(b, 7, bit(m.Remove))
	return appendText(b, 8, m.Source)
}

// Parse reads the body.
func (m *MountMessage) Parse(body []byte) error {
	*m = MountMessage{}
	return fields(body, func(tag byte, v value) error {
		switch tag {
		case 1:
			return v.text(&m.Device)
		case 2:
			return v.text(&m.Target)
		case 3:
			return v.text(&m.Type)
		case 4:
			return v.text(&m.Data)
		case 5:
			return v.flag(&m.ReadOnly)
		case 6:
			return v.flag(&m.Own)
		case 7:
			return v.flag(&m.Remove)
		case 8:
			return v.text(&m.Source)
		}
		return unknown("MOUNT", tag)
	})
}

// PowerMessage ends a machine. Its disks are written and unmounted before.
type PowerMessage struct {
	Reboot bool // else it is switched off
}

// Append appends the body.
func (m *PowerMessage) Append(b []byte) []byte { return appendUint(b, 1, bit(m.Reboot)) }

// Parse reads the body.
func (m *PowerMessage) Parse(body []byte) error {
	*m = PowerMessage{}
	return fields(body, func(tag byte, v value) error {
		if tag == 1 {
			return v.flag(&m.Reboot)
		}
		return unknown("POWER", tag)
	})
}
