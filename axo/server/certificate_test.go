package server

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A certificate that is made is for the names that it is asked for, and made anew when
// it is not good any more, for other names, or not whole.
func TestSelfMadeCertificate(t *testing.T) {
	dir := t.TempDir()
	authority, cert, key := AuthorityPath(dir), filepath.Join(dir, "e2b-cert.pem"), filepath.Join(dir, "e2b-key.pem")
	names := []string{"localhost", "boxes.test", "*.boxes.test"}
	now := time.Now()
	read := func() string {
		t.Helper()
		b, err := os.ReadFile(authority)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	ensure := func(names []string, at time.Time) string {
		t.Helper()
		if err := ensureCertificate(authority, cert, key, names, at); err != nil {
			t.Fatal(err)
		}
		return read()
	}
	first := ensure(names, now)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(first))
	for host, want := range map[string]bool{
		"localhost": true, "127.0.0.1": true, "::1": true, "boxes.test": true, "49983-iabc.boxes.test": true, "a.b.boxes.test": false, "other.test": false,
	} {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: host}); (err == nil) != want {
			t.Errorf("%s: %v", host, err)
		}
	}
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v %v", info.Mode(), err)
	}
	if ensure(names, now) != first {
		t.Error("a good certificate is made anew")
	}
	second := ensure([]string{"localhost", "others.test", "*.others.test"}, now)
	if second == first {
		t.Error("one for other names is kept")
	}
	third := ensure([]string{"localhost", "others.test", "*.others.test"}, now.Add(validity-renewal))
	if third == second {
		t.Error("one that ends soon is kept")
	}
	if err := os.Truncate(key, 10); err != nil {
		t.Fatal(err)
	}
	if ensure([]string{"localhost", "others.test", "*.others.test"}, now) == third {
		t.Error("one without a key is kept")
	}
}

// A clock that is wrong when the daemon starts does not cost clients what they trust: of
// one that is behind nothing is made anew, and what one that is ahead has made is good
// when it is put right.
func TestCertificateAndAWrongClock(t *testing.T) {
	dir := t.TempDir()
	authority, cert, key := AuthorityPath(dir), filepath.Join(dir, "e2b-cert.pem"), filepath.Join(dir, "e2b-key.pem")
	ensure := func(at time.Time) string {
		t.Helper()
		if err := ensureCertificate(authority, cert, key, []string{"localhost"}, at); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(authority)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	now := time.Now()
	first := ensure(now)
	if ensure(time.Unix(0, 0)) != first {
		t.Error("it is made anew in 1970")
	}
	ahead := ensure(now.AddDate(20, 0, 0))
	if ahead == first {
		t.Error("one that has expired is kept")
	}
	if ensure(now) != ahead {
		t.Error("the next one is made anew when the clock is right again")
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(ahead))
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: "localhost", CurrentTime: now}); err != nil {
		t.Error(err)
	}
}

// A certificate of somebody's own is read anew when it changes; what is broken does not
// replace what works.
func TestCertificateIsReadAnew(t *testing.T) {
	dir := t.TempDir()
	authority, cert, key := AuthorityPath(dir), filepath.Join(dir, "c"), filepath.Join(dir, "k")
	now := time.Now()
	changed := now.Add(-time.Hour)
	// touch has the files differ in time from what was there before, however fast this is.
	touch := func() {
		t.Helper()
		changed = changed.Add(time.Second)
		for _, f := range []string{cert, key} {
			if err := os.Chtimes(f, changed, changed); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := ensureCertificate(authority, cert, key, []string{"one.test"}, now); err != nil {
		t.Fatal(err)
	}
	touch()
	c, err := TLS{Cert: cert, Key: key}.config(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	serves := func(want string) {
		t.Helper()
		got, err := c.GetCertificate(nil)
		if err != nil || got.Leaf.DNSNames[0] != want {
			t.Errorf("%v %v, want %s", got, err, want)
		}
	}
	serves("one.test")
	if err := os.WriteFile(cert, []byte("half a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	touch()
	serves("one.test")
	if err := ensureCertificate(authority, cert, key, []string{"two.test"}, now); err != nil {
		t.Fatal(err)
	}
	touch()
	serves("two.test")
	if _, err := (TLS{Cert: filepath.Join(dir, "none"), Key: key}).config(dir, ""); err == nil {
		t.Error("a certificate that is not there is served")
	}
	if c, err := (TLS{}).config(dir, ""); c != nil || err != nil {
		t.Errorf("nothing is asked for: %v %v", c, err)
	}
}
