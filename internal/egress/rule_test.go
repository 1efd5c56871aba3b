package egress

import (
	"net/netip"
	"testing"
)

func mustRule(t testing.TB, s string) Rule {
	t.Helper()
	r, err := ParseRule(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRules(t *testing.T) {
	for _, c := range []struct {
		rule, host string
		port       uint16
		want       bool
	}{
		{"example.org", "example.org", 443, true},
		{"example.org", "example.org", 80, true},
		{"example.org", "example.org", 22, false},
		{"Example.ORG.", "example.org", 443, true},
		{"example.org", "www.example.org", 443, false},
		{"example.org", "badexample.org", 443, false},
		{"example.org:8080", "example.org", 8080, true},
		{"example.org:8080", "example.org", 443, false},
		{"example.org:*", "example.org", 22, true},
		{"*.example.org", "a.b.example.org", 443, true},
		{"*.example.org", "example.org", 443, false},
		{"*.example.org", "badexample.org", 443, false},
		{"*", "anything.test", 443, true},
		{"*", "10.0.0.1", 443, false},
		{"10.0.0.1", "10.0.0.1", 80, true},
		{"10.0.0.1", "10.0.0.2", 80, false},
		{"10.0.0.0/8:5432", "10.9.9.9", 5432, true},
		{"[fd00::/8]:5432", "fd01::1", 5432, true},
		{"[::1]:5432", "::1", 5432, true},
		{"2001:db8::1", "2001:db8::1", 443, true},
		{"0.0.0.0/0", "example.org", 443, false},
	} {
		r := mustRule(t, c.rule)
		var got bool
		if a, err := netip.ParseAddr(c.host); err == nil {
			got = r.hasAddress(a, c.port)
		} else {
			got = r.hasName(c.host, c.port)
		}
		if got != c.want {
			t.Errorf("%s allows %s:%d: %v", c.rule, c.host, c.port, got)
		}
	}
	for _, s := range []string{
		"", ":80", "a:", "a:0", "a:65536", "a:+1", "a:x", "a b", "a/b", "*.", "a.*.b", "**", "*a", "http://a", "[a]", "[::1", "[::1]x", "[::1]:", "::1%eth0", "a..b",
		"-a", "1.2.3", "127.1", "0x7f.1", "2130706433", "::ffff:1.2.3.4", "ü.org", "10.0.0.0/33",
	} {
		if r, err := ParseRule(s); err == nil {
			t.Errorf("%q is %+v", s, r)
		}
	}
}

func TestCovers(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"*:*", "example.org", true}, {"*", "*.example.org", true}, {"*", "example.org:22", false}, {"*:*", "10.0.0.1", false},
		{"0.0.0.0/0:*", "10.0.0.0/8", true}, {"10.0.0.0/8", "0.0.0.0/0", false}, {"10.0.0.0/8", "11.0.0.1", false}, {"0.0.0.0/0:*", "fd00::1", false},
		{"*.example.org", "a.example.org", true}, {"*.example.org", "*.a.example.org", true}, {"*.example.org", "*.example.org", true}, {"*.example.org", "example.org", false},
		{"example.org", "*.example.org", false}, {"example.org", "example.org:443", true}, {"example.org:443", "example.org", false},
		{"example.org:443", "example.org:443", true}, {"example.org", "example.org:*", false}, {"a.org", "b.org", false}, {"a.org", "*", false},
	} {
		if got := mustRule(t, c.a).Covers(mustRule(t, c.b)); got != c.want {
			t.Errorf("%s covers %s: %v", c.a, c.b, got)
		}
	}
}

func TestHidden(t *testing.T) {
	for s, want := range map[string]bool{
		"127.0.0.1": true, "127.255.0.1": true, "10.1.1.1": true, "172.31.0.1": true, "192.168.1.1": true, "169.254.169.254": true, "100.100.100.200": true,
		"168.63.129.16": true, "0.0.0.0": true, "255.255.255.255": true, "224.0.0.1": true, "::1": true, "::": true, "fe80::1": true, "fd00:ec2::254": true,
		"64:ff9b::a00:1": true, "2002:a00:1::": true, "2001:0:1::": true, "ff02::1": true,
		"8.8.8.8": false, "172.32.0.1": false, "2606:4700::1111": false,
	} {
		if got := hidden(netip.MustParseAddr(s)) != ""; got != want {
			t.Errorf("%s is hidden: %v", s, got)
		}
	}
}

func FuzzRule(f *testing.F) {
	for _, s := range []string{"example.org:80", "*.a.b", "[fd00::/8]:443", "10.0.0.0/8", "*:*"} {
		f.Add(s, "a.example.org", uint16(80))
	}
	f.Fuzz(func(t *testing.T, s, host string, port uint16) {
		r, err := ParseRule(s)
		if err != nil {
			return
		}
		if !r.Covers(r) {
			t.Errorf("%q does not cover itself", s)
		}
		name, err := cleanName(host)
		if err != nil {
			return
		}
		if again, err := cleanName(name); err != nil || again != name {
			t.Errorf("%q becomes %q, which becomes %q, %v", host, name, again, err)
		}
		if _, err := netip.ParseAddr(name); err == nil {
			t.Errorf("the name %q is an address", name)
		}
	})
}
