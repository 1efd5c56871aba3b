package tenant

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/internal/wholefile"
	"github.com/axocoatl/isolation/axo/session"
)

// Quotas are what tenants may have, in a file; who is not in it may have what the
// daemon is set to. It is safe for concurrent use.
type Quotas struct {
	path string
	// OnError is told when the file cannot be read any more, once for each reason; nil:
	// nobody is. It is set before the first use.
	OnError func(error)

	mu   sync.Mutex
	told string                   // to OnError; guarded by mu
	all  map[string]session.Quota // guarded by mu
	seen os.FileInfo              // the file that they are from; nil: there is none; guarded by mu
}

const quotasFile = "quotas.json"

// OpenQuotas reads the quotas of a state directory. There need be none.
func OpenQuotas(stateDir string) (*Quotas, error) {
	q := &Quotas{path: filepath.Join(stateDir, quotasFile)}
	q.mu.Lock()
	defer q.mu.Unlock()
	return q, q.loadLocked()
}

// Of is a tenant's quota, also one that another process has set; ok: it has one of its
// own. Of a file that cannot be read any more the last that was read counts.
func (q *Quotas) Of(tenant string) (quota session.Quota, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	info, err := os.Stat(q.path)
	if same := err == nil && q.seen != nil && os.SameFile(info, q.seen) && info.ModTime().Equal(q.seen.ModTime()); !same && (err == nil || q.seen != nil) {
		q.tellLocked(q.loadLocked())
	}
	quota, ok = q.all[tenant]
	return quota, ok
}

func (q *Quotas) tellLocked(err error) {
	what := ""
	if err != nil {
		what = err.Error()
	}
	if what != "" && what != q.told && q.OnError != nil {
		q.OnError(err)
	}
	q.told = what
}

// All are the quotas that there are.
func (q *Quotas) All() (map[string]session.Quota, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	err := q.loadLocked()
	return maps.Clone(q.all), err
}

// Set changes a tenant's quota; nil: it has none of its own any more.
func (q *Quotas) Set(tenant string, quota *session.Quota) error {
	if err := isolation.ValidateID(tenant); err != nil {
		return fmt.Errorf("tenant: %w", err)
	}
	if quota != nil {
		if err := quota.Validate(); err != nil {
			return err
		}
	}
	unlock, err := lock(q.path + ".lock") // another process changes them too
	if err != nil {
		return fmt.Errorf("quotas: %w", err)
	}
	defer unlock()
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.loadLocked(); err != nil {
		return err
	}
	next := maps.Clone(q.all)
	if next == nil {
		next = map[string]session.Quota{}
	}
	if quota == nil {
		delete(next, tenant)
	} else {
		next[tenant] = *quota
	}
	b, err := json.MarshalIndent(next, "", "\t")
	if err == nil {
		err = wholefile.Write(q.path, append(b, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("quotas: %w", err)
	}
	return q.loadLocked()
}

func (q *Quotas) loadLocked() error {
	f, err := os.Open(q.path)
	if errors.Is(err, os.ErrNotExist) {
		q.all, q.seen = nil, nil
		return nil
	} else if err != nil {
		return fmt.Errorf("quotas: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("quotas: %w", err)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s has mode %v, so others can write it: chmod 0600 %s", q.path, info.Mode().Perm(), q.path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return fmt.Errorf("quotas: %w", err)
	}
	var all map[string]session.Quota
	if err := json.Unmarshal(b, &all); err != nil {
		return fmt.Errorf("%s: %w", q.path, err)
	}
	q.all, q.seen = all, info
	return nil
}
