package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// maxAnswer bounds one message of QEMU's in bytes.
const maxAnswer = 1 << 20

// monitor is a QMP connection (qemu, docs/interop/qmp-spec.txt). It is not safe
// for concurrent use.
type monitor struct {
	c *net.UnixConn
	r *bufio.Reader
}

type answer struct {
	Greeting json.RawMessage `json:"QMP"`
	Return   json.RawMessage `json:"return"`
	Event    string          `json:"event"`
	Error    *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

// dialMonitor connects, and reads the greeting: QEMU has started then.
func dialMonitor(ctx context.Context, path string) (*monitor, error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	m := &monitor{c.(*net.UnixConn), bufio.NewReader(c)}
	err = m.bounded(ctx, func() error {
		a, err := m.next()
		if err == nil && a.Greeting == nil {
			err = errors.New("the first message is no greeting")
		}
		return err
	})
	if err == nil {
		_, err = m.do(ctx, "qmp_capabilities", nil, nil)
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("QMP: %w", err)
	}
	return m, nil
}

func (m *monitor) close() { m.c.Close() }

// bounded ends f with ctx.
func (m *monitor) bounded(ctx context.Context, f func() error) error {
	stop := context.AfterFunc(ctx, func() { _ = m.c.SetDeadline(time.Unix(1, 0)) })
	err := f()
	if !stop() {
		return errors.Join(context.Cause(ctx), err)
	}
	return err
}

func (m *monitor) next() (*answer, error) {
	var line []byte
	for {
		part, err := m.r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxAnswer {
			return nil, fmt.Errorf("a message of more than %d bytes", maxAnswer)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
		break
	}
	a := new(answer)
	return a, json.Unmarshal(line, a)
}

// do executes a command, with a descriptor if file is not nil, and returns its
// answer. Events that come before it are dropped.
func (m *monitor) do(ctx context.Context, command string, args any, file *os.File) (json.RawMessage, error) {
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, args})
	if err != nil {
		return nil, err
	}
	var out json.RawMessage
	err = m.bounded(ctx, func() error {
		var rights []byte
		if file != nil {
			rights = unix.UnixRights(int(file.Fd()))
		}
		if _, _, err := m.c.WriteMsgUnix(append(b, '\n'), rights, nil); err != nil {
			return err
		}
		for range 10_000 {
			a, err := m.next()
			switch {
			case err != nil:
				return err
			case a.Error != nil:
				return fmt.Errorf("%.100s: %.1000s", a.Error.Class, a.Error.Desc)
			case a.Return != nil:
				out = a.Return
				return nil
			}
		}
		return errors.New("events without end")
	})
	if err != nil {
		return nil, fmt.Errorf("QMP %s: %w", command, err)
	}
	return out, nil
}

// ignoreShared leaves the guest's memory, which is in a file, out of the state
// (qemu, migration.json, "x-ignore-shared").
func (m *monitor) ignoreShared(ctx context.Context) error {
	type capability struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	_, err := m.do(ctx, "migrate-set-capabilities", map[string]any{"capabilities": []capability{{"x-ignore-shared", true}}}, nil)
	return err
}

// migrated waits until the state has been written or read.
func (m *monitor) migrated(ctx context.Context) error {
	for wait := time.Millisecond / 2; ; wait = min(2*wait, 10*time.Millisecond) {
		b, err := m.do(ctx, "query-migrate", nil, nil)
		if err != nil {
			return err
		}
		var s struct {
			Status string `json:"status"`
			Desc   string `json:"error-desc"`
		}
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
		switch s.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("the machine's state: %s: %.1000s", s.Status, s.Desc)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}
