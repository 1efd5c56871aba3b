package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
)

// negativeFor is how long a failed probe is believed.
const negativeFor = time.Minute

// probes finds out what engines can do, and remembers it: in memory, and for
// later processes in the state directory.
type probes struct {
	config Config
	dir    string // "" keeps nothing
	boot   string

	mu    sync.Mutex
	known map[string]*probe // guarded by mu; by driver name
}

// probe is one engine's probe, under way or done.
type probe struct {
	done     chan struct{}
	features isolation.Features
	err      error
	at       time.Time
}

func newProbes(c Config) *probes {
	p := &probes{config: c, known: map[string]*probe{}}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err == nil && c.StateDir != "" {
		p.dir = filepath.Join(c.StateDir, "probes")
		p.boot = strings.TrimSpace(string(boot))
	}
	return p
}

// features returns what is known of c, or probes it. Callers who want the same
// one share a probe.
func (p *probes) features(ctx context.Context, c candidate) (isolation.Features, error) {
	p.mu.Lock()
	pr := p.known[c.name]
	if pr != nil && pr.expired(p.config.Now()) {
		pr = nil
	}
	if pr == nil {
		pr = p.startLocked(c, true)
	}
	p.mu.Unlock()
	return pr.wait(ctx)
}

// anew probes c whatever is known.
func (p *probes) anew(ctx context.Context, c candidate) (isolation.Features, error) {
	p.mu.Lock()
	pr := p.startLocked(c, false)
	p.mu.Unlock()
	return pr.wait(ctx)
}

// expired reports whether a finished probe is not believed any more.
func (pr *probe) expired(now time.Time) bool {
	select {
	case <-pr.done:
		return pr.err != nil && now.Sub(pr.at) > negativeFor
	default:
		return false
	}
}

func (pr *probe) wait(ctx context.Context) (isolation.Features, error) {
	select {
	case <-pr.done:
		return pr.features, pr.err
	default:
	}
	select {
	case <-pr.done:
		return pr.features, pr.err
	case <-ctx.Done():
		return isolation.Features{}, context.Cause(ctx)
	}
}

func (p *probes) startLocked(c candidate, useDisk bool) *probe {
	pr := &probe{done: make(chan struct{})}
	p.known[c.name] = pr
	go func() {
		defer close(pr.done)
		if useDisk && p.load(c, pr) {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), p.config.ProbeTimeout)
		defer cancel()
		pr.features, pr.err = c.driver.Probe(ctx)
		if errors.Is(pr.err, context.DeadlineExceeded) {
			pr.err = fmt.Errorf("no answer within %v: %w", p.config.ProbeTimeout, isolation.ErrUnavailable)
		}
		pr.at = p.config.Now()
		p.store(c, pr)
	}()
	return pr
}

// probeFile is a probe's result on disk, with what it rests on.
type probeFile struct {
	Boot     string              `json:"boot"`
	UID      int                 `json:"uid"`
	Files    map[string]string   `json:"files"` // path: identity
	Features *isolation.Features `json:"features"`
}

const maxProbeFile = 1 << 20

func (p *probes) path(c candidate) string {
	sum := sha256.Sum256([]byte(c.tier.String() + "/" + c.name))
	return filepath.Join(p.dir, hex.EncodeToString(sum[:8])+".json")
}

// load takes a result from disk if everything that it rests on is as it was.
// Only successes are there: a failure may be mended at any moment.
func (p *probes) load(c candidate, pr *probe) bool {
	if p.dir == "" {
		return false
	}
	f, err := os.Open(p.path(c))
	if err != nil {
		return false
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxProbeFile))
	if err != nil {
		return false
	}
	var pf probeFile
	if json.Unmarshal(b, &pf) != nil || pf.Features == nil || pf.Boot != p.boot || pf.UID != os.Getuid() || len(pf.Files) == 0 {
		return false
	}
	for path, id := range pf.Files {
		if identity(path) != id {
			return false
		}
	}
	if pf.Features.Tier != c.tier || pf.Features.Engine != c.name {
		return false
	}
	pr.features, pr.at = *pf.Features, p.config.Now()
	return true
}

// store keeps a success. That it fails only costs the next process a probe.
func (p *probes) store(c candidate, pr *probe) {
	if p.dir == "" {
		return
	}
	if pr.err != nil {
		os.Remove(p.path(c))
		return
	}
	self, err := os.Executable()
	if err != nil {
		return
	}
	pf := probeFile{Boot: p.boot, UID: os.Getuid(), Files: map[string]string{}, Features: &pr.features}
	for _, path := range append([]string{self}, pr.features.Depends...) {
		pf.Files[path] = identity(path)
	}
	b, err := json.Marshal(pf)
	if err == nil {
		err = writeAtomic(p.path(c), b)
	}
	if err != nil {
		p.config.Logger.Warn("keep probe result", "engine", c.name, "error", err)
	}
}

// writeAtomic writes a file of mode 0600 whole or not at all.
func writeAtomic(path string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "tmp-")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
