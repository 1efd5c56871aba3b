package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/axocoatl/isolation/axo/internal/wholefile"
)

// TLS is how an address is served over TLS; the zero value: it is not.
type TLS struct {
	// Self makes a certificate, and an authority for it alone; see AuthorityPath.
	Self bool
	// Cert and Key are files, PEM, of a certificate that somebody has. They are read anew
	// when they change.
	Cert, Key string
}

// AuthorityPath is the file of the authority that clients are to trust if the
// certificate was made by Self.
func AuthorityPath(stateDir string) string { return filepath.Join(stateDir, "e2b-ca.pem") }

// config is for a server whose sandboxes have names below a domain, if it has one.
func (t TLS) config(stateDir, domain string) (*tls.Config, error) {
	if t.Self {
		names := []string{"localhost"}
		if h, _, err := net.SplitHostPort(domain); err == nil {
			domain = h
		}
		if domain != "" {
			names = append(names, strings.ToLower(domain), "*."+strings.ToLower(domain))
		}
		t.Cert, t.Key = filepath.Join(stateDir, "e2b-cert.pem"), filepath.Join(stateDir, "e2b-key.pem")
		if err := ensureCertificate(AuthorityPath(stateDir), t.Cert, t.Key, names, time.Now()); err != nil {
			return nil, fmt.Errorf("certificate: %w", err)
		}
	}
	if t.Cert == "" {
		return nil, nil
	}
	p := &pair{cert: t.Cert, key: t.Key}
	if _, err := p.get(nil); err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: p.get}, nil
}

// pair is a certificate on disk.
type pair struct {
	cert, key string

	mu   sync.Mutex
	read [2]time.Time     // when the files had changed last; guarded by mu
	have *tls.Certificate // guarded by mu
}

// get returns what the files have. Ones that cannot be read, or do not fit together as
// while they are replaced, do not end what works.
func (p *pair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var now [2]time.Time
	for i, name := range []string{p.cert, p.key} {
		info, err := os.Stat(name)
		if err == nil {
			now[i] = info.ModTime()
		} else if p.have == nil {
			return nil, err
		}
	}
	if p.have != nil && now == p.read {
		return p.have, nil
	}
	c, err := tls.LoadX509KeyPair(p.cert, p.key)
	if err != nil && p.have == nil {
		return nil, err
	}
	if err == nil {
		p.have, p.read = &c, now
	}
	return p.have, nil
}

// validity is how long a certificate that is made here is good; it is made anew
// when less than renewal is left.
const (
	validity = 5 * 365 * 24 * time.Hour
	renewal  = 90 * 24 * time.Hour
)

// validFrom is before every time that a clock can rightly have: so what was made by one
// that was ahead is good when that is put right.
var validFrom = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

// ensureCertificate makes a certificate for names and the loopback addresses, unless
// there is a good one. Nobody has the key of its authority when this returns: nothing else
// is ever signed by what clients were told to trust.
func ensureCertificate(authority, cert, key string, names []string, now time.Time) error {
	if good(authority, cert, key, names, now) {
		return nil
	}
	ca, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial := func() *big.Int {
		var b [16]byte
		_, _ = rand.Read(b[:]) // it never fails
		return new(big.Int).SetBytes(b[:])
	}
	begin, end := validFrom, now.Add(validity)
	root := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "axo serve, " + now.UTC().Format(time.DateTime)}, NotBefore: begin, NotAfter: end,
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, &ca.PublicKey, ca)
	if err != nil {
		return err
	}
	leaf := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: names[len(names)-1]}, NotBefore: begin, NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: names, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	if root, err = x509.ParseCertificate(rootDER); err != nil {
		return err
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, &own.PublicKey, ca)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(own)
	if err != nil {
		return err
	}
	return errors.Join(
		writePEM(key, "PRIVATE KEY", keyDER, 0o600),
		writePEM(cert, "CERTIFICATE", leafDER, 0o644),
		writePEM(authority, "CERTIFICATE", rootDER, 0o644),
	)
}

// good reports whether a certificate is there, and will be good for a while.
func good(authority, cert, key string, names []string, now time.Time) bool {
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return false
	}
	root, err := os.ReadFile(authority)
	if err != nil {
		return false
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(root)
	if now.Before(validFrom) {
		now = validFrom // the clock is wrong, and clients trust what is there
	}
	for _, n := range names {
		o := x509.VerifyOptions{Roots: pool, CurrentTime: now.Add(renewal), DNSName: strings.Replace(n, "*", "x", 1)}
		if _, err := pair.Leaf.Verify(o); err != nil {
			return false
		}
	}
	return true
}

func writePEM(path, kind string, der []byte, mode os.FileMode) error {
	return wholefile.Write(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode)
}
