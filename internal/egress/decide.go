package egress

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

const (
	resolvePatience = 10 * time.Second
	// maxAddresses of a name are tried.
	maxAddresses = 4
)

// errDenied is of what the rules do not allow, errUnreachable of what they do and
// that is not there.
var (
	errDenied      = errors.New("not allowed")
	errUnreachable = errors.New("not reachable")
)

// decide says where a connection to a host may go: addresses that were looked at,
// so that nothing that a name means later counts.
func (p *Proxy) decide(ctx context.Context, host string, port uint16) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		if a.Zone() != "" || a.Is4In6() {
			return nil, fmt.Errorf("%w: an address in this form", errDenied)
		}
		if !p.hasAddress(a, port) {
			return nil, fmt.Errorf("%w: no rule allows this address", errDenied)
		}
		if p.denies(a, port) {
			return nil, fmt.Errorf("%w: this address is denied", errDenied)
		}
		return []netip.Addr{a}, nil
	}
	name, err := cleanName(host)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDenied, err)
	}
	allowed := false
	for _, r := range p.config.Rules {
		allowed = allowed || r.hasName(name, port)
	}
	if !allowed {
		// It is not looked up either: a question tells its answerer something.
		return nil, fmt.Errorf("%w: no rule allows this host and port", errDenied)
	}
	ctx, cancel := context.WithTimeout(ctx, resolvePatience)
	defer cancel()
	all, err := p.config.Resolve(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("%w: look up %s: %w", errUnreachable, name, err)
	}
	var out []netip.Addr
	why := "it has no address"
	for _, a := range all {
		a = a.Unmap()
		what := hidden(a)
		if what == "" && p.config.Own(a) {
			what = "this host's own"
		}
		switch {
		case p.denies(a, port):
			why = fmt.Sprintf("its address %v is denied", a)
		case what != "" && !p.hasAddress(a, port):
			why = fmt.Sprintf("its address %v is %s, and no rule allows that", a, what)
		case len(out) < maxAddresses:
			out = append(out, a.WithZone(""))
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: %s", errDenied, why)
	}
	return out, nil
}

func (p *Proxy) hasAddress(a netip.Addr, port uint16) bool {
	return slices.ContainsFunc(p.config.Rules, func(r Rule) bool { return r.hasAddress(a, port) })
}

func (p *Proxy) denies(a netip.Addr, port uint16) bool {
	return slices.ContainsFunc(p.config.Deny, func(r Rule) bool { return r.hasAddress(a, port) })
}
