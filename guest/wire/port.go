package wire

import "fmt"

// PortOp is what is done with a port of the sandbox's network.
type PortOp uint64

// The operations. The answer is an empty PORT, or FAIL; after that of connect and
// accept the stream is the connection.
const (
	PortConnect PortOp = 1 // to what listens on the port
	PortListen  PortOp = 2 // on the port of the loopback address
	PortAccept  PortOp = 3 // the next connection of a port that is listened on
	PortClose   PortOp = 4 // listen no more
)

// PortMessage asks for a connection, on a new stream.
type PortMessage struct {
	Op   PortOp
	Port uint64
}

// Append appends the body.
func (m *PortMessage) Append(b []byte) []byte {
	b = appendUint(b, 1, uint64(m.Op))
	return appendUint(b, 2, m.Port)
}

// Parse reads the body.
func (m *PortMessage) Parse(body []byte) error {
	*m = PortMessage{}
	err := fields(body, func(tag byte, v value) error {
		switch tag {
		case 1:
			return v.uint((*uint64)(&m.Op))
		case 2:
			return v.uint(&m.Port)
		}
		return unknown("PORT", tag)
	})
	if err == nil && (m.Op > PortClose || m.Port > 1<<16-1) {
		err = fmt.Errorf("%w: PORT operation %d of %d", ErrProtocol, m.Op, m.Port)
	}
	return err
}
