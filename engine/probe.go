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
	"github.com/axocoatl/isolation/internal/journal"
)

// believedFor is how long a probe is believed: a failure, and a success whose
// files have changed. For as long nobody looks whether they have.
const believedFor = time.Minute

// probes finds out what engines can do, and remembers it: in memory, and for
// later processes in the state directory.
type probes struct {
	config Config
	dir    string // "" keeps nothing
	boot   string
	ctx    context.Context // ends at close
	cancel context.CancelFunc

	mu     sync.Mutex
	known  map[string]*probe // guarded by mu; by driver name
	closed bool              // guarded by mu
	wg     sync.WaitGroup    // added to under mu
}

// probe is one engine's probe, under way or done.
type probe struct {
	done     chan struct{}
	features isolation.Features
	err      error
	files    map[string]string // what a success rests on: path, identity
	at       time.Time
}

func newProbes(c Config) *probes {
	p := &probes{config: c, known: map[string]*probe{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	if c.StateDir == "" {
		return p
	}
	dir := filepath.Join(c.StateDir, "probes")
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = journal.OursAlone(dir)
	}
	if err != nil {
		// They would be another's word, or of another time.
		c.Logger.Warn("probe results are not kept", "error", err)
		return p
	}
	p.dir, p.boot = dir, strings.TrimSpace(string(boot))
	return p
}

// features returns what is known of c, or probes it. Callers who want the same
// one share a probe.
func (p *probes) features(ctx context.Context, c candidate) (isolation.Features, error) {
	p.mu.Lock()
	pr := p.known[c.name]
	if pr != nil && p.expiredLocked(pr) {
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

// expiredLocked reports whether a finished probe is not believed any more.
func (p *probes) expiredLocked(pr *probe) bool {
	select {
	case <-pr.done:
	default:
		return false
	}
	now := p.config.Now()
	if now.Sub(pr.at) <= believedFor {
		return false
	}
	if pr.err != nil || !unchanged(pr.files) {
		return true
	}
	pr.at = now
	return false
}

// unchanged reports whether files are those that a probe rested on.
func unchanged(files map[string]string) bool {
	for path, id := range files {
		if identity(path) != id {
			return false
		}
	}
	return true
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
	if p.closed {
		pr.err = errClosed
		close(pr.done)
		return pr
	}
	p.known[c.name] = pr
	p.wg.Go(func() {
		defer close(pr.done)
		if useDisk && p.load(c, pr) {
			return
		}
		ctx, cancel := context.WithTimeout(p.ctx, p.config.ProbeTimeout)
		defer cancel()
		pr.features, pr.err = c.driver.Probe(ctx)
		if p.ctx.Err() != nil && pr.err != nil {
			pr.err = errClosed // not the engine's fault: what is known of it stays
			return
		}
		if errors.Is(pr.err, context.DeadlineExceeded) {
			pr.err = fmt.Errorf("no answer within %v: %w", p.config.ProbeTimeout, isolation.ErrUnavailable)
		}
		pr.at = p.config.Now()
		if pr.err == nil {
			pr.files = restsOn(pr.features)
		}
		p.store(c, pr)
	})
	return pr
}

// close ends the probes that are under way, and waits for them.
func (p *probes) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.wg.Wait()
}

// restsOn identifies the files that an answer rests on: this program, and what
// the engine names.
func restsOn(f isolation.Features) map[string]string {
	files := map[string]string{}
	if self, err := os.Executable(); err == nil {
		files[self] = identity(self)
	}
	for _, path := range f.Depends {
		files[path] = identity(path)
	}
	return files
}

// probeFile is a probe's result on disk, with what it rests on.
type probeFile struct {
	Boot     string              `json:"boot"`
	UID      int                 `json:"uid"`
	Rights   string              `json:"rights"`
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
	if json.Unmarshal(b, &pf) != nil || pf.Features == nil || pf.Boot != p.boot || pf.UID != os.Getuid() || pf.Rights != rights() || len(pf.Files) == 0 {
		return false
	}
	if !unchanged(pf.Files) {
		return false
	}
	if pf.Features.Tier != c.tier || pf.Features.Engine != c.name {
		return false
	}
	pr.features, pr.files, pr.at = *pf.Features, pf.Files, p.config.Now()
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
	b, err := json.Marshal(probeFile{Boot: p.boot, UID: os.Getuid(), Rights: rights(), Files: pr.files, Features: &pr.features})
	if err == nil {
		err = writeAtomic(p.path(c), b)
	}
	if err != nil {
		p.config.Logger.Warn("keep probe result", "engine", c.name, "error", err)
	}
}

// writeAtomic writes a file of mode 0600 whole or not at all.
func writeAtomic(path string, b []byte) error {
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
