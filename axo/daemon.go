package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/config"
	"github.com/axocoatl/isolation/axo/server"
	"github.com/axocoatl/isolation/axo/tenant"
	"github.com/axocoatl/isolation/client"
	"github.com/axocoatl/isolation/engine"
)

// ownOnly reports whether a request is run by this process, with its user's rights, and
// not by a daemon, which may have others: it names something of this host's, or wants
// no isolation, or what the policy here grants of the network, or has a bound that is
// this process's. (What the file of settings allows the daemon has read as well.)
func ownOnly(l *config.Loaded, r engine.Request) bool {
	return r.Spec.Requirement == isolation.NativeTrusted || r.Tier != nil && *r.Tier == isolation.TierNone || r.Spec.Func != "" ||
		len(r.Spec.Mounts)+len(r.CopyIn)+len(r.CopyOut)+len(r.Sync) > 0 || r.Spec.Root.Path != "" || !r.Egress.IsZero() ||
		r.Capture.SpillBytes > 0 || len(l.Engine.Allow) > 0 && l.Origin("engine.allow") != l.File
}

// daemonOf is the daemon that a run goes through: the one that the settings name, or
// the one of the state directory if it is there, and its user is this one or root. nil:
// none.
func daemonOf(l *config.Loaded) (cc *client.Config, named bool, err error) {
	address, key := l.Client.Address, l.Client.APIKey
	named = address != ""
	dir, err := makeStateDir(l)
	if err != nil {
		return nil, named, err
	}
	cc = &client.Config{Address: address, Key: key}
	if !named {
		socket := cmp.Or(l.Serve.Socket, server.SocketPath(dir))
		if !isSocket(socket) {
			return nil, false, nil
		}
		cc.Address = (&url.URL{Scheme: "unix", Path: socket}).String()
		cc.Check = checkOwner
	}
	if key == "" {
		b, err := os.ReadFile(tenant.TokenPath(dir))
		if err != nil && !named {
			return nil, false, nil //nolint:nilerr // the daemon is not for this user
		} else if err != nil {
			return nil, true, fmt.Errorf("no key: %w; set AXO_API_KEY", err)
		}
		cc.Key = strings.TrimSpace(string(b))
	}
	return cc, named, nil
}

// throughDaemon returns an engine whose sandboxes are a daemon's, for one request, and
// what the daemon has decided about it. No engine and no error: there is no daemon, so
// that this process runs it.
func throughDaemon(ctx context.Context, l *config.Loaded, r engine.Request) (*engine.Engine, engine.Decision, error) {
	var d engine.Decision
	cc, named, err := daemonOf(l)
	if err != nil {
		return nil, d, &statusError{exitEngine, err}
	}
	if cc == nil {
		return nil, d, nil
	}
	ask := api.Run{
		Spec: r.Spec, Process: r.Process, Tier: r.Tier, Engine: r.Engine, MinTier: r.MinTier, AllowEmulated: r.AllowEmulated, AllowUnenforced: r.AllowUnenforced,
	}
	if r.Spec.Module.Path != "" {
		if _, err := os.Stat(r.Spec.Module.Path); err != nil {
			return nil, d, fmt.Errorf("module: %w: %w", err, isolation.ErrNotFound)
		}
		// What it is does not matter here: it goes there when the sandbox is made.
		ask.Spec.Module = isolation.Module{Data: []byte("\x00asm")}
	}
	remote, err := client.New(*cc)
	if err == nil {
		d, err = remote.Explain(ctx, ask)
		_ = remote.Close() // it has no sandboxes
	}
	switch {
	case err == nil:
	case !named && errors.Is(err, isolation.ErrUnavailable):
		return nil, d, nil // it has ended, or is another's
	default:
		return nil, d, err
	}
	cc.Tier, cc.Engine, cc.MinTier = &d.Got, d.Engine, r.MinTier
	cc.AllowEmulated, cc.AllowUnenforced = r.AllowEmulated, r.AllowUnenforced
	remote, err = client.New(*cc)
	if err != nil {
		return nil, d, err
	}
	var reg isolation.Registry
	reg.Add(d.Got, remote)
	// The daemon has chosen, by its operator's policy; this one has nothing to add.
	e, err := engine.New(engine.Config{Registry: reg, Policy: engine.Policy{
		AllowEmulated: true, EmulatedIsMicroVM: true, MinTier: map[isolation.Requirement]isolation.Tier{r.Spec.Requirement: d.Got},
	}})
	if err != nil {
		_ = remote.Close()
		return nil, d, err
	}
	return e, d, nil
}

func isSocket(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode()&os.ModeSocket != 0
}
