// Package tenant knows who may use the daemon: keys, whose they are, and what a
// tenant may have.
package tenant

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/internal/wholefile"
	"github.com/axocoatl/isolation/internal/form"
)

// Role is what a key is good for.
type Role string

// The roles. A viewer looks at what is his tenant's, and changes and runs nothing; a user
// does what a tenant may; an admin also sees and ends what is another tenant's, and makes
// keys and quotas.
const (
	RoleViewer Role = "viewer"
	RoleUser   Role = "user"
	RoleAdmin  Role = "admin"
)

// roles are all of them; each may do what those before it may.
var roles = []Role{RoleViewer, RoleUser, RoleAdmin}

// May reports whether a key of the role does where one of the role least is wanted. One
// that is not known may do nothing, and nothing is enough for it.
func (r Role) May(least Role) bool {
	want := slices.Index(roles, least)
	return want >= 0 && slices.Index(roles, r) >= want
}

// Key is one key, without what it is: of that only a hash is kept.
type Key struct {
	ID      string    `json:"id"`
	Hash    string    `json:"hash"` // of the whole key: SHA-256, hex
	Tenant  string    `json:"tenant"`
	Role    Role      `json:"role"`
	Created time.Time `json:"created"`
}

// Keys are the keys of one daemon, in a file. It is safe for concurrent use.
type Keys struct {
	path string

	mu   sync.Mutex
	keys []Key       // guarded by mu
	seen os.FileInfo // the file that keys are from; guarded by mu
}

const (
	keysFile  = "keys.json"
	tokenFile = "token"
	maxKeys   = 10_000
	maxFile   = 4 << 20
	// Prefix is what keys begin with, as those of E2B do: its SDKs refuse others.
	Prefix = "e2b_"
)

// Open reads the keys of a state directory. The first time it makes one, of the
// tenant "default" and the role admin, and leaves it in the file that TokenPath
// names, which only its owner can read.
func Open(stateDir string) (*Keys, error) {
	k := &Keys{path: filepath.Join(stateDir, keysFile)}
	k.mu.Lock()
	err := k.loadLocked()
	k.mu.Unlock()
	if !errors.Is(err, os.ErrNotExist) {
		return k, err
	}
	secret, key, err := newKey("default", RoleAdmin)
	if err != nil {
		return nil, err
	}
	// The token goes first: a key that nobody has is of no use.
	if err := wholefile.Write(TokenPath(stateDir), []byte(secret+"\n"), 0o600); err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k, k.saveLocked([]Key{key})
}

// TokenPath is where the first key is.
func TokenPath(stateDir string) string { return filepath.Join(stateDir, tokenFile) }

func newKey(tenant string, role Role) (secret string, k Key, err error) {
	if !role.May(RoleViewer) {
		return "", k, fmt.Errorf("role %.80q: want viewer, user or admin: %w", role, isolation.ErrInvalidArgument)
	}
	if err := isolation.ValidateID(tenant); err != nil {
		return "", k, fmt.Errorf("tenant: %w", err)
	}
	var b [20]byte
	_, _ = rand.Read(b[:]) // it never fails
	secret = Prefix + hex.EncodeToString(b[:])
	h := hashOf(secret)
	return secret, Key{ID: h[:12], Hash: h, Tenant: tenant, Role: role, Created: time.Now().UTC()}, nil
}

func hashOf(secret string) string {
	h := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(h[:])
}

// looks is what a key looks like; others are not even hashed.
var looks = form.Of(`^e2b_[0-9a-f]{40}$`)

// Find returns whose a key is.
func (k *Keys) Find(secret string) (Key, error) {
	unknown := fmt.Errorf("no key, or one that is not known: %w", isolation.ErrUnauthenticated)
	if !looks().MatchString(secret) {
		return Key{}, unknown
	}
	// A lookup by hash tells nothing by the time that it takes.
	h := hashOf(secret)
	k.mu.Lock()
	defer k.mu.Unlock()
	if info, err := os.Stat(k.path); err == nil && (!os.SameFile(info, k.seen) || !info.ModTime().Equal(k.seen.ModTime())) {
		if err := k.loadLocked(); err != nil {
			return Key{}, fmt.Errorf("keys: %w: %w", err, isolation.ErrUnavailable)
		}
	}
	if i := slices.IndexFunc(k.keys, func(x Key) bool { return x.Hash == h }); i >= 0 {
		return k.keys[i], nil
	}
	return Key{}, unknown
}

// Add makes a key. It is told once, and cannot be found out again.
func (k *Keys) Add(tenant string, role Role) (secret string, _ Key, err error) {
	secret, key, err := newKey(tenant, role)
	if err != nil {
		return "", key, err
	}
	return secret, key, k.change(func(keys []Key) ([]Key, error) {
		if len(keys) >= maxKeys {
			return nil, fmt.Errorf("there are %d keys, no more are kept: %w", len(keys), isolation.ErrResourceExhausted)
		}
		return append(keys, key), nil
	})
}

// Remove makes a key worthless, by its id.
func (k *Keys) Remove(id string) error {
	return k.change(func(keys []Key) ([]Key, error) {
		out := slices.DeleteFunc(slices.Clone(keys), func(x Key) bool { return x.ID == id })
		if len(out) == len(keys) {
			return nil, fmt.Errorf("key %.80q: %w", id, isolation.ErrNotFound)
		}
		return out, nil
	})
}

// List returns the keys that there are.
func (k *Keys) List() ([]Key, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	err := k.loadLocked()
	return slices.Clone(k.keys), err
}

func (k *Keys) change(f func([]Key) ([]Key, error)) error {
	unlock, err := lock(k.path + ".lock") // another process changes keys too
	if err != nil {
		return fmt.Errorf("keys: %w", err)
	}
	defer unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.loadLocked(); err != nil {
		return err
	}
	keys, err := f(k.keys)
	if err != nil {
		return err
	}
	return k.saveLocked(keys)
}

func (k *Keys) loadLocked() error {
	f, err := os.Open(k.path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s has mode %v, so others can read or write it: chmod 0600 %s", k.path, info.Mode().Perm(), k.path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return err
	}
	var keys []Key
	if err := json.Unmarshal(b, &keys); err != nil {
		return fmt.Errorf("%s: %w", k.path, err)
	}
	k.keys, k.seen = keys, info
	return nil
}

func (k *Keys) saveLocked(keys []Key) error {
	b, err := json.MarshalIndent(keys, "", "\t")
	if err == nil {
		err = wholefile.Write(k.path, append(b, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("keys: %w", err)
	}
	k.keys = keys
	k.seen, err = os.Stat(k.path)
	return err
}
