package signature_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/signature"
)

const namespace = "test"

// private is a key's file, and its public half.
func private(t testing.TB, k crypto.PrivateKey) (file []byte, public signature.Key) {
	t.Helper()
	b, err := ssh.MarshalPrivateKey(k, "")
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(k)
	if err != nil {
		t.Fatal(err)
	}
	public, err = signature.ParseKey(string(ssh.MarshalAuthorizedKey(s.PublicKey())))
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(b), public
}

func keys(t testing.TB) map[string]crypto.PrivateKey {
	t.Helper()
	_, ed, err1 := ed25519.GenerateKey(rand.Reader)
	ec, err2 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	r, err3 := rsa.GenerateKey(rand.Reader, 2048)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	return map[string]crypto.PrivateKey{"ed25519": ed, "ecdsa": ec, "rsa": r}
}

func TestSignAndVerify(t *testing.T) {
	message := []byte("what is signed\n")
	for name, k := range keys(t) {
		file, public := private(t, k)
		sig, err := signature.Sign(file, message, namespace)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got, err := signature.Verify(sig, message, namespace); err != nil || got != public {
			t.Errorf("%s: %v %v", name, got, err)
		}
		for what, bad := range map[string]struct{ sig, message []byte }{
			"another message": {sig, []byte("what is signed")}, "nothing": {nil, message}, "a text": {[]byte("x"), message},
			"two":     {append(bytes.Clone(sig), sig...), message},
			"cut off": {sig[:len(sig)/2], message},
		} {
			if got, err := signature.Verify(bad.sig, bad.message, namespace); !errors.Is(err, isolation.ErrPermissionDenied) || got != "" {
				t.Errorf("%s, %s: %v %v", name, what, got, err)
			}
		}
		if _, err := signature.Verify(sig, message, "other"); err == nil {
			t.Errorf("%s: of another namespace", name)
		}
		// Each byte that is changed makes it another one.
		p, _ := pem.Decode(sig)
		for i := range p.Bytes {
			b := bytes.Clone(p.Bytes)
			b[i] ^= 1
			if _, err := signature.Verify(pem.EncodeToMemory(&pem.Block{Type: p.Type, Bytes: b}), message, namespace); err == nil {
				t.Fatalf("%s: byte %d of %d may be another", name, i, len(b))
			}
		}
	}
}

func TestKeysThatAreNotTaken(t *testing.T) {
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(weak)
	if err != nil {
		t.Fatal(err)
	}
	file, err := ssh.MarshalPrivateKey(weak, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := signature.Sign(pem.EncodeToMemory(file), nil, namespace); err == nil {
		t.Error("a short key signs")
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, public := private(t, ed)
	for _, line := range []string{"", "x", "ssh-ed25519", "ssh-ed25519 AAAA", string(ssh.MarshalAuthorizedKey(s.PublicKey())), "no-pty " + string(public), string(public) + "\n" + string(public)} {
		if k, err := signature.ParseKey(line); !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("%q: %v %v", line, k, err)
		}
	}
	if k, err := signature.ParseKey(string(public) + " somebody@somewhere\n"); err != nil || k != public || !strings.HasPrefix(k.Fingerprint(), "SHA256:") {
		t.Errorf("%v %v", k, err)
	}
}

// TestOpenSSH: what ssh-keygen signs is verified here, and what is signed here it
// verifies.
func TestOpenSSH(t *testing.T) {
	keygen, err := exec.LookPath("ssh-keygen")
	if err != nil && os.Getenv("AXO_REQUIRE") != "" {
		t.Fatal(err)
	} else if err != nil {
		t.Skip("SKIPPED, NOT PROVED: needs ssh-keygen")
	}
	run := func(stdin string, args ...string) {
		t.Helper()
		cmd := exec.Command(keygen, args...)
		cmd.Stdin = strings.NewReader(stdin)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	for _, kind := range []string{"ed25519", "ecdsa", "rsa"} {
		dir := t.TempDir()
		key, message := filepath.Join(dir, "key"), filepath.Join(dir, "message")
		run("", "-q", "-t", kind, "-N", "", "-f", key)
		if err := os.WriteFile(message, []byte("what is signed\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		run("", "-q", "-Y", "sign", "-n", namespace, "-f", key, message)
		file := func(name string) []byte {
			t.Helper()
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		want, err := signature.ParseKey(string(file(key + ".pub")))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := signature.Verify(file(message+".sig"), file(message), namespace); err != nil || got != want {
			t.Errorf("%s: %v %v", kind, got, err)
		}
		sig, err := signature.Sign(file(key), file(message), namespace)
		if err != nil {
			t.Fatal(err)
		}
		signers, mine := filepath.Join(dir, "signers"), filepath.Join(dir, "mine")
		if err := errors.Join(os.WriteFile(signers, []byte("me "+string(want)+"\n"), 0o600), os.WriteFile(mine, sig, 0o600)); err != nil {
			t.Fatal(err)
		}
		run(string(file(message)), "-Y", "verify", "-n", namespace, "-f", signers, "-I", "me", "-s", mine)
		run("", "-q", "-p", "-P", "", "-N", "secret", "-f", key)
		if _, err := signature.Sign(file(key), nil, namespace); !errors.Is(err, signature.ErrPassphrase) {
			t.Errorf("%s: a key with a passphrase: %v", kind, err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	file, public := private(f, ed)
	sig, err := signature.Sign(file, []byte("m"), namespace)
	if err != nil {
		f.Fatal(err)
	}
	p, _ := pem.Decode(sig)
	f.Add(p.Bytes)
	f.Fuzz(func(t *testing.T, b []byte) {
		// Whose key it is nobody else can make one with.
		if k, err := signature.Verify(pem.EncodeToMemory(&pem.Block{Type: "SSH SIGNATURE", Bytes: b}), []byte("other"), namespace); err == nil && k == public {
			t.Errorf("a signature of nothing that was signed: %x", b)
		}
	})
}
