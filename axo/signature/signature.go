// Package signature makes and verifies signatures of SSH's, as ssh-keygen -Y has them
// (PROTOCOL.sshsig of OpenSSH): the keys and the tool for them are what people have.
package signature

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/axocoatl/isolation"
)

const (
	magic   = "SSHSIG"
	version = 1
	armor   = "SSH SIGNATURE"
	minRSA  = 2048 // bits
)

// MaxBytes bounds a signature, with its armor.
const MaxBytes = 64 << 10

// Key is a public key: its type and its base64, as in a .pub file, without a comment.
// Two that are equal are the same key.
type Key string

// blob is what comes after the magic.
type blob struct {
	Version   uint32
	PublicKey []byte
	Namespace string
	Reserved  []byte
	Hash      string
	Signature []byte
}

// signed is what is signed, after the magic.
type signed struct {
	Namespace string
	Reserved  []byte
	Hash      string
	Digest    []byte
}

// ParseKey reads a public key as a .pub file or authorized_keys has it. Errors are of
// class InvalidArgument.
func ParseKey(line string) (Key, error) {
	k, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil || len(options) > 0 || len(bytes.TrimSpace(rest)) > 0 {
		return "", fmt.Errorf("it is no public key, such as ssh-ed25519 AAAA...: %w", isolation.ErrInvalidArgument)
	}
	if err := usable(k); err != nil {
		return "", err
	}
	return keyOf(k), nil
}

func keyOf(k ssh.PublicKey) Key {
	return Key(strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k))))
}

// Fingerprint is the key's short name, as ssh-keygen -l prints it.
func (k Key) Fingerprint() string {
	p, _, _, _, err := ssh.ParseAuthorizedKey([]byte(k))
	if err != nil {
		return ""
	}
	return ssh.FingerprintSHA256(p)
}

// usable refuses kinds of keys that prove too little: certificates, whose authority
// nobody has named, DSA, and short ones.
func usable(k ssh.PublicKey) error {
	switch k.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256:
		return nil
	case ssh.KeyAlgoRSA:
		if c, ok := k.(ssh.CryptoPublicKey); ok {
			if r, ok := c.CryptoPublicKey().(*rsa.PublicKey); ok && r.N.BitLen() >= minRSA {
				return nil
			}
		}
		return fmt.Errorf("a key of RSA with less than %d bits: %w", minRSA, isolation.ErrInvalidArgument)
	}
	return fmt.Errorf("a key of type %.80q: %w", k.Type(), isolation.ErrInvalidArgument)
}

// Verify checks an armored signature of a message, and returns whose it is. That it is
// good says nothing of whether the key is anybody's whom one trusts. Errors are of
// class PermissionDenied.
func Verify(armored, message []byte, namespace string) (Key, error) {
	k, err := verify(armored, message, namespace)
	if err != nil {
		return "", fmt.Errorf("signature: %w: %w", err, isolation.ErrPermissionDenied)
	}
	return keyOf(k), nil
}

func verify(armored, message []byte, namespace string) (ssh.PublicKey, error) {
	if len(armored) > MaxBytes {
		return nil, fmt.Errorf("more than %d bytes", MaxBytes)
	}
	p, rest := pem.Decode(armored)
	if p == nil || p.Type != armor || len(p.Headers) > 0 || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("it is none of SSH's")
	}
	body, ok := bytes.CutPrefix(p.Bytes, []byte(magic))
	var b blob
	if !ok || ssh.Unmarshal(body, &b) != nil || b.Version != version {
		return nil, errors.New("it is none of SSH's, version 1")
	}
	if b.Namespace != namespace {
		return nil, fmt.Errorf("it is of namespace %.80q, and not of %s", b.Namespace, namespace)
	}
	k, err := ssh.ParsePublicKey(b.PublicKey)
	if err != nil {
		return nil, errors.New("its key cannot be read")
	}
	if err := usable(k); err != nil {
		return nil, err
	}
	data, err := toSign(message, namespace, b.Reserved, b.Hash)
	if err != nil {
		return nil, err
	}
	var s ssh.Signature
	if err := ssh.Unmarshal(b.Signature, &s); err != nil {
		return nil, errors.New("it cannot be read")
	}
	if s.Format == ssh.KeyAlgoRSA {
		return nil, errors.New("it is made with SHA-1")
	}
	// The first byte after a security key's signature says that somebody touched it.
	if strings.HasPrefix(k.Type(), "sk-") && (len(s.Rest) == 0 || s.Rest[0]&1 == 0) {
		return nil, errors.New("nobody touched the security key")
	}
	if err := k.Verify(data, &s); err != nil {
		return nil, errors.New("it is not of what is here, or not by this key")
	}
	return k, nil
}

func toSign(message []byte, namespace string, reserved []byte, hash string) ([]byte, error) {
	var sum []byte
	switch hash {
	case "sha512":
		s := sha512.Sum512(message)
		sum = s[:]
	case "sha256":
		s := sha256.Sum256(message)
		sum = s[:]
	default:
		return nil, fmt.Errorf("its hash is %.40q", hash)
	}
	return append([]byte(magic), ssh.Marshal(signed{namespace, reserved, hash, sum})...), nil
}

// ErrPassphrase says that a private key is locked.
var ErrPassphrase = errors.New("the key has a passphrase")

// Sign signs a message with a private key, of OpenSSH's or PEM, and returns the
// armored signature. A key with a passphrase is ErrPassphrase.
func Sign(private, message []byte, namespace string) ([]byte, error) {
	signer, err := ssh.ParsePrivateKey(private)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		return nil, fmt.Errorf("%w: %w", ErrPassphrase, isolation.ErrFailedPrecondition)
	} else if err != nil {
		return nil, fmt.Errorf("it is no private key: %w", isolation.ErrInvalidArgument)
	}
	if err := usable(signer.PublicKey()); err != nil {
		return nil, err
	}
	const hash = "sha512"
	data, err := toSign(message, namespace, nil, hash)
	if err != nil {
		return nil, err
	}
	var s *ssh.Signature
	if as, ok := signer.(ssh.AlgorithmSigner); ok && signer.PublicKey().Type() == ssh.KeyAlgoRSA {
		s, err = as.SignWithAlgorithm(rand.Reader, data, ssh.KeyAlgoRSASHA512)
	} else {
		s, err = signer.Sign(rand.Reader, data)
	}
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	out := ssh.Marshal(blob{version, signer.PublicKey().Marshal(), namespace, nil, hash, ssh.Marshal(s)})
	return pem.EncodeToMemory(&pem.Block{Type: armor, Bytes: append([]byte(magic), out...)}), nil
}
