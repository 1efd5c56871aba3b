package session

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/internal/clock"
	"github.com/axocoatl/isolation/axo/internal/wholefile"
	"github.com/axocoatl/isolation/engine"
)

// The phases of a session on disk. A session is acknowledged to its owner when
// it is live.
const (
	phaseCreating = "creating"
	phaseLive     = "live"
	phaseLost     = "lost" // its sandbox is gone; it stays until its owner deletes it
	phaseDeleting = "deleting"
)

// recordVersion is the form of records. One of a later form is not touched.
const recordVersion = 1

// record is a session on disk: DIR/KEY/session.json.
type record struct {
	Version  int    `json:"version"`
	ID       string `json:"id"`
	Tenant   string `json:"tenant"`
	Instance string `json:"instance"`
	// Sandbox is the id that the driver has it by; "": the session's key.
	Sandbox  string            `json:"sandbox,omitempty"`
	Phase    string            `json:"phase"`
	Reason   string            `json:"reason,omitempty"` // why it is lost
	Still    bool              `json:"still,omitempty"`  // its programs stand still only until a copy of it is made
	Request  Request           `json:"request"`
	Durable  bool              `json:"durable"` // the sandbox outlives this process
	Decision engine.Decision   `json:"decision"`
	Metadata map[string]string `json:"metadata,omitempty"`
	Created  time.Time         `json:"created"`
	// Idle is how long nothing may happen; Expires when it ends in any case.
	Idle    time.Duration `json:"idle"`
	Expires time.Time     `json:"expires"`
	// At is when this was written, and Left how long it was then until Expires: the next
	// process goes by them, since the host's clock may have been set.
	At   clock.Moment  `json:"at,omitzero"`
	Left time.Duration `json:"left,omitempty"`
}

// execRecord is a program on disk: DIR/KEY/execs/EXEC/exec.json.
type execRecord struct {
	Version int                   `json:"version"`
	Process isolation.ProcessSpec `json:"process"`
	Stdin   bool                  `json:"stdin"`
	Started time.Time             `json:"started"`
	Ended   *time.Time            `json:"ended,omitempty"`
	Exit    *isolation.Exit       `json:"exit,omitempty"`
	// Unknown says why nobody knows how it ended.
	Unknown string `json:"unknown,omitempty"`
}

const (
	sessionFile = "session.json"
	execFile    = "exec.json"
	execsDir    = "execs"
	maxRecord   = 8 << 20
)

// save writes a record whole or not at all, so that it is there after a crash of
// the host. One record is written by one goroutine at a time: a session's with its lock held.
func save(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return wholefile.Write(path, b, 0o600)
}

// load reads what save wrote.
func load(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err != nil {
		return err
	}
	if len(b) > maxRecord {
		return fmt.Errorf("%s is larger than any record", path)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func (r record) check(key string) error {
	switch {
	case r.Version != recordVersion:
		return fmt.Errorf("the record has version %d, this program knows %d", r.Version, recordVersion)
	case keyOf(r.Tenant, r.ID) != key:
		return fmt.Errorf("the record is of another session, %.80q", r.ID)
	case r.Phase != phaseCreating && r.Phase != phaseLive && r.Phase != phaseLost && r.Phase != phaseDeleting:
		return fmt.Errorf("the record has the phase %.80q", r.Phase)
	}
	return nil
}

// save writes the session's record down. It is not to be called by two at once.
func (s *Session) save(r record) error {
	r.At = s.m.moment()
	r.Left = r.Expires.Sub(r.At.Wall)
	return save(filepath.Join(s.dir(), sessionFile), r)
}

// ends is when a session of a process before this one ends, never later than was left
// to it when that was written down.
func (r record) ends(now clock.Moment) time.Time {
	if r.At.Wall.IsZero() {
		return now.Wall.Add(r.Expires.Sub(now.Wall)) // of a version that wrote no more
	}
	return now.Wall.Add(r.Left - now.Since(r.At))
}

func (s *Session) dir() string { return filepath.Join(s.m.config.Dir, s.key) }

// sandboxID is the id that the driver has a session's sandbox by. A record that
// cannot be read names nothing.
func (s *Session) sandboxID(r record) string {
	if r.ID != s.id || r.Sandbox == "" {
		return s.key
	}
	return r.Sandbox
}

func (s *Session) execFile(id string) string { return filepath.Join(s.execDir(id), execFile) }

func (s *Session) execDir(id string) string { return filepath.Join(s.dir(), execsDir, id) }
