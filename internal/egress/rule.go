// Package egress lets a sandbox reach named hosts and no others: an HTTP proxy that
// runs outside of it, resolves and connects by itself, and tells of every decision.
package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Rule allows connections to a host:
//
//	example.org        that host, ports 80 and 443
//	example.org:8080   that host, that port; ":*" is any port
//	*.example.org      every host below it, and not itself
//	*                  every host that has a name
//	192.0.2.1:5432     that address; so does 2001:db8::1, [2001:db8::1]:5432
//	10.0.0.0/8         every address of that network, so does [fd00::/8]:443
//
// Names lead to public addresses only. An address of the host itself or of a private
// network needs a rule of its own, and is then also where a name may lead that
// another rule allows.
type Rule struct {
	name   string // lower case; "": any
	below  bool   // what is below the name, and not itself
	prefix netip.Prefix
	port   uint16 // 0: webPorts, or any
	any    bool   // any port
}

// webPorts are those of a rule that names none.
var webPorts = []uint16{80, 443}

// ParseRule reads a rule.
func ParseRule(s string) (Rule, error) {
	r, err := parseRule(s)
	if err != nil {
		return Rule{}, fmt.Errorf("%.200q is no rule for hosts: %w; want HOST, *.HOST, *, ADDRESS or NETWORK, and :PORT or :* behind it if it is not 80 and 443", s, err)
	}
	return r, nil
}

// ParseRules reads all of a list.
func ParseRules(list []string) ([]Rule, error) {
	out := make([]Rule, len(list))
	var errs []error
	for i, s := range list {
		var err error
		out[i], err = ParseRule(s)
		errs = append(errs, err)
	}
	return out, errors.Join(errs...)
}

func parseRule(s string) (r Rule, err error) {
	host, port := s, ""
	var inner string
	var bracketed bool
	if rest, ok := strings.CutPrefix(s, "["); ok {
		var behind string
		if inner, behind, bracketed = strings.Cut(rest, "]"); !bracketed {
			return r, errors.New("a bracket is not closed")
		}
		host = inner
		if behind != "" {
			if port, ok = strings.CutPrefix(behind, ":"); !ok || port == "" {
				return r, errors.New("no port behind the bracket")
			}
		}
	} else if strings.Count(s, ":") == 1 {
		if host, port, _ = strings.Cut(s, ":"); port == "" {
			return r, errors.New("no port")
		}
	}
	switch {
	case port == "*":
		r.any = true
	case port != "":
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || port[0] == '+' {
			return r, fmt.Errorf("port %.20q", port)
		}
		r.port = uint16(n)
	}
	if p, err := netip.ParsePrefix(host); err == nil {
		r.prefix = p
	} else if a, err := netip.ParseAddr(host); err == nil {
		if a.Zone() != "" {
			return r, errors.New("an address in this form")
		}
		r.prefix = netip.PrefixFrom(a, a.BitLen())
	}
	if r.prefix.IsValid() {
		if r.prefix.Addr().Is4In6() {
			return r, errors.New("an address in this form")
		}
		r.prefix = r.prefix.Masked()
		return r, nil
	}
	if bracketed || strings.Contains(host, "/") {
		return r, errors.New("no address")
	}
	if host == "*" {
		return r, nil
	}
	host, r.below = strings.CutPrefix(host, "*.")
	r.name, err = cleanName(host)
	return r, err
}

// Address returns the network of a rule that is of addresses.
func (r Rule) Address() (netip.Prefix, bool) { return r.prefix, r.prefix.IsValid() }

// cleanName is a host name in one form: ASCII, lower case, no dot at its end. What a
// resolver could take for an address in one of its old forms is none (WHATWG URL,
// "ends in a number").
func cleanName(s string) (string, error) {
	s = strings.ToLower(strings.TrimSuffix(s, "."))
	if s == "" || len(s) > 253 {
		return "", errors.New("no host name")
	}
	labels := strings.Split(s, ".")
	for _, l := range labels {
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
			return "", errors.New("no host name")
		}
		for _, c := range []byte(l) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return "", errors.New("no host name")
			}
		}
	}
	last := labels[len(labels)-1]
	if strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") && strings.Trim(last[2:], "0123456789abcdef") == "" {
		return "", errors.New("neither a host name nor an address")
	}
	return s, nil
}

func (r Rule) hasPort(port uint16) bool {
	return r.any || r.port == port || r.port == 0 && slices.Contains(webPorts, port)
}

// hasName reports whether a name in its clean form is allowed.
func (r Rule) hasName(name string, port uint16) bool {
	switch {
	case r.prefix.IsValid() || !r.hasPort(port):
		return false
	case r.name == "":
		return true
	case r.below:
		return strings.HasSuffix(name, "."+r.name)
	}
	return name == r.name
}

func (r Rule) hasAddress(a netip.Addr, port uint16) bool {
	return r.prefix.IsValid() && r.prefix.Contains(a) && r.hasPort(port)
}

// Covers reports whether r allows all that other allows.
func (r Rule) Covers(other Rule) bool {
	switch {
	case r.any:
	case other.any:
		return false
	case other.port != 0:
		if !r.hasPort(other.port) {
			return false
		}
	case r.port != 0:
		return false // other has two ports
	}
	if r.prefix.IsValid() || other.prefix.IsValid() {
		return r.prefix.IsValid() && other.prefix.IsValid() && r.prefix.Bits() <= other.prefix.Bits() && r.prefix.Contains(other.prefix.Addr())
	}
	switch {
	case r.name == "":
		return true
	case other.name == "":
		return false
	case r.below:
		return strings.HasSuffix(other.name, "."+r.name) || other.below && other.name == r.name
	}
	return !other.below && other.name == r.name
}
