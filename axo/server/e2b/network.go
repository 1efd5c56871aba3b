package e2b

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/engine"
)

// everything is what E2B's clients say for all addresses.
const everything = "0.0.0.0/0"

// network has a request reach what the client wants. With internet access that is all
// that the policy grants, and not what denyOut names; without, what allowOut names.
func (n newSandbox) network(r *session.Request) error {
	internet := n.AllowInternetAccess == nil || *n.AllowInternetAccess
	var w network
	if n.Network != nil {
		w = *n.Network
	}
	if w.AllowPublicTraffic != nil && !*w.AllowPublicTraffic {
		r.Labels[labelPrivate] = "1"
	}
	deny, err := addresses(w.DenyOut)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(deny, func(p netip.Prefix) bool { return p.Bits() == 0 }) {
		internet, deny = false, nil // all is, but for what is named
	}
	e := engine.Egress{Granted: internet}
	for _, p := range deny {
		if internet {
			e.Deny = append(e.Deny, p.String())
		}
	}
	for _, host := range w.AllowOut {
		p, err := address(host)
		switch {
		case host == everything:
			e.Granted = true
			continue
		case err == nil:
			for _, d := range deny {
				if d.Overlaps(p) {
					return fmt.Errorf("network: %s of allowOut is in %s of denyOut, and what is denied is not opened again: %w", host, d, isolation.ErrInvalidArgument)
				}
			}
			host = "[" + p.String() + "]:*"
		case strings.ContainsAny(host, ":/"):
			return fmt.Errorf("network: allowOut: %.80q: want a host name, *.NAME, an address or a network: %w", host, isolation.ErrInvalidArgument)
		}
		e.Allow = append(e.Allow, host)
	}
	r.Egress = e
	if n.Network == nil {
		return nil
	}
	b, err := json.Marshal(w)
	r.Labels[labelNetwork] = string(b)
	return err
}

func addresses(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		p, err := address(s)
		if err != nil {
			return nil, fmt.Errorf("network: denyOut: %.80q: want an address or a network: %w", s, isolation.ErrInvalidArgument)
		}
		out = append(out, p)
	}
	return out, nil
}

// address reads an address or a network.
func address(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Prefix(a.BitLen())
	}
	p, err := netip.ParsePrefix(s)
	return p.Masked(), err
}

// networkOf is what was asked for of the network; nil: nothing.
func networkOf(sn *session.Session) *network {
	text := sn.Labels()[labelNetwork]
	var n network
	if text == "" || json.Unmarshal([]byte(text), &n) != nil {
		return nil
	}
	return &n
}
