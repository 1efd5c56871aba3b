package microvm

import (
	"context"
	"errors"
	"io"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/guestconn"
	"github.com/axocoatl/isolation/guest/wire"
)

// Sum is the digest that a template with these fields has.
func Sum(t *Template) string { return t.sum() }

// Unsynced restores a machine of the default template, gives its guest nothing that
// another has not, and returns what a script writes there. It takes a guest that was
// built to allow that.
func Unsynced(ctx context.Context, c Config, script string) (_ string, err error) {
	if c, err = c.withDefaults(); err != nil {
		return "", err
	}
	e := &engine{cfg: c}
	defer func() { err = errors.Join(err, e.Close()) }()
	t, err := e.template(ctx, isolation.Spec{Requirement: isolation.Shell})
	if err != nil {
		return "", err
	}
	defer e.release(t)
	v, err := e.vmm()
	if err != nil {
		return "", err
	}
	m := &machine{eng: e}
	defer func() { err = errors.Join(err, m.Remove(context.WithoutCancel(ctx))) }()
	if m.dir, err = e.runDir(); err != nil {
		return "", err
	}
	m.vm, err = v.restore(ctx, &e.spawner, &restoreConfig{machineConfig: machineConfig{shape: t.Shape, dir: m.dir, ram: t.ram, disk: t.disk}, state: t.state})
	if err != nil {
		return "", err
	}
	rw, err := m.vm.DialGuest(ctx)
	if err != nil {
		return "", err
	}
	if m.Conn, err = guestconn.Open(ctx, rw, nil); err != nil {
		return "", err
	}
	if err := m.Conn.Sync(ctx, &wire.SyncMessage{Entropy: make([]byte, wire.MinEntropy)}); err != nil {
		return "", err
	}
	p, err := m.Conn.Exec(ctx, &wire.ExecMessage{ID: "same", Args: []string{"/bin/sh", "-c", script}, NoStdin: true})
	if err != nil {
		return "", err
	}
	go func() { _, _ = io.Copy(io.Discard, p.Stderr) }()
	out, err := io.ReadAll(p.Stdout)
	return string(out), err
}
