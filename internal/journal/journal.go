// Package journal writes down what a sandbox may leave on the host before it is
// made, so that a later process can remove it when its owner was killed.
//
// Each entry is one small file in the journal's directory, written whole or
// not at all. It names its owner by boot id, process id and start time, and the
// resources: processes (with their start time, so that another process of the
// same number is never touched), control groups, unfinished files. Nothing is
// synced to disk: what a host that lost its power has half written is of no use,
// but takes little room.
package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/axocoatl/isolation/internal/failpoint"
)

// Dir is the name of the journal's directory in a state directory.
const Dir = "journal"

// The kinds of resources.
const (
	KindProcess = "process"
	KindCgroup  = "cgroup"
	// KindBrand are the processes of a sandbox, by its brand; see package brand.
	KindBrand = "brand"
	// KindTemp is a file or directory of the state directory, which is the
	// journal's parent, that is only good when it is complete.
	KindTemp = "temp"
)

// Resource is one thing that must not be left behind.
type Resource struct {
	Kind  string `json:"kind"`
	Path  string `json:"path,omitempty"`
	PID   int    `json:"pid,omitempty"`
	Start uint64 `json:"start,omitempty"` // field 22 of proc_pid_stat(5), in ticks
	Brand uint64 `json:"brand,omitempty"`
}

func (r Resource) String() string {
	if r.Kind == KindProcess {
		return fmt.Sprintf("%s %d", r.Kind, r.PID)
	}
	if r.Kind == KindBrand {
		return fmt.Sprintf("processes of %x", r.Brand)
	}
	return r.Kind + " " + r.Path
}

// owner is the process that made an entry.
type owner struct {
	Boot  string `json:"boot"`
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
}

type record struct {
	Owner     owner      `json:"owner"`
	ID        string     `json:"id"`
	Resources []Resource `json:"resources"`
}

// Journal is a directory of entries.
type Journal struct {
	dir  string
	self owner
}

// Open makes the directory, with mode 0700, if it is not there. What an entry
// names is killed and removed, so a directory that is not OursAlone is refused.
func Open(dir string) (*Journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if err := OursAlone(dir); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	self, err := thisProcess()
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	return &Journal{dir, self}, nil
}

// Entry is one sandbox's. It is safe for concurrent use.
type Entry struct {
	path string

	mu  sync.Mutex
	rec record // guarded by mu
}

// Begin writes an entry without resources. The id is part of its file's name
// and must be unique among this process's.
func (j *Journal) Begin(id string) (*Entry, error) {
	if id == "" || strings.ContainsAny(id, "/\x00") || len(id) > 128 {
		return nil, fmt.Errorf("journal: id %q cannot be a file name", id)
	}
	e := &Entry{
		path: filepath.Join(j.dir, fmt.Sprintf("%d-%d-%s.json", j.self.PID, j.self.Start, id)),
		rec:  record{Owner: j.self, ID: id, Resources: []Resource{}},
	}
	return e, e.writeLocked()
}

// Add adds a resource. Call it before the resource exists where its name is
// known by then, and at once after where it is not.
func (e *Entry) Add(r Resource) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.rec.Resources = append(e.rec.Resources, r)
	return e.writeLocked()
}

// AddProcess adds a running process.
func (e *Entry) AddProcess(pid int) error {
	start, err := startTime(pid)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return e.Add(Resource{Kind: KindProcess, PID: pid, Start: start})
}

// AddPath adds a resource that is a path.
func (e *Entry) AddPath(kind, path string) error { return e.Add(Resource{Kind: kind, Path: path}) }

// Done removes the entry, once nothing of it is left.
func (e *Entry) Done() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := os.Remove(e.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

func (e *Entry) writeLocked() error {
	b, err := json.Marshal(e.rec)
	if err != nil {
		return err
	}
	tmp := e.path + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	failpoint.Hit(failpoint.JournalHalf)
	if err := os.Rename(tmp, e.path); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// Report says what a sweep did.
type Report struct {
	Entries int      `json:"entries"` // of dead owners
	Kept    int      `json:"kept"`    // detached sandboxes that live and that nobody has
	Removed []string `json:"removed"` // what was still there
	Errors  []string `json:"errors,omitempty"`
}

// maxRecord bounds an entry that is read back.
const maxRecord = 1 << 20

// Sweep removes what dead owners left. Entries of live ones are not touched.
// What cannot be removed keeps its entry for the next sweep.
func (j *Journal) Sweep() Report {
	var rep Report
	files, err := filepath.Glob(filepath.Join(j.dir, "*.json*"))
	if err != nil {
		rep.Errors = append(rep.Errors, err.Error())
	}
	for _, f := range files {
		if err := j.sweepFile(f, &rep); err != nil && !errors.Is(err, os.ErrNotExist) {
			rep.Errors = append(rep.Errors, fmt.Sprintf("%s: %v", filepath.Base(f), err))
		}
	}
	return rep
}

func (j *Journal) sweepFile(file string, rep *Report) error {
	h, err := os.Open(file)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(io.LimitReader(h, maxRecord))
	h.Close()
	if err != nil {
		return err
	}
	var rec record
	if err := json.Unmarshal(b, &rec); err != nil {
		// Only a writer that was killed leaves half a file, and only under the
		// temporary name.
		if strings.HasSuffix(file, ".tmp") && !j.writes(file) {
			return os.Remove(file)
		}
		return err
	}
	if j.alive(rec.Owner) {
		return nil
	}
	rep.Entries++
	// Processes first: a group is only removed when it is empty. Of an earlier
	// boot only files are left.
	kinds := []string{KindProcess, KindCgroup, KindTemp}
	if rec.Owner.Boot != j.self.Boot {
		kinds = kinds[2:]
	} else {
		letDieFirst(rec.Resources)
	}
	for _, kind := range kinds {
		for _, r := range rec.Resources {
			if r.Kind != kind {
				continue
			}
			was, err := j.remove(r)
			if err != nil {
				return err
			}
			if was {
				rep.Removed = append(rep.Removed, r.String())
			}
		}
	}
	return os.Remove(file)
}

// letDieFirst sees to it that what is killed dies also if it stands still.
func letDieFirst(list []Resource) {
	for _, r := range list {
		if r.Kind == KindCgroup {
			letDie(r.Path)
		}
	}
}

// remove ends or removes one resource, and reports whether it was there.
func (j *Journal) remove(r Resource) (bool, error) {
	switch r.Kind {
	case KindProcess:
		return killProcess(r.PID, r.Start)
	case KindBrand:
		return killBranded(r.Brand)
	case KindCgroup:
		return removeGroup(r.Path)
	case KindTemp:
		return j.removeTemp(r.Path)
	}
	return false, fmt.Errorf("resource of unknown kind %q", r.Kind)
}

func (j *Journal) removeTemp(path string) (bool, error) {
	rel, err := filepath.Rel(filepath.Dir(j.dir), path)
	if err != nil || !filepath.IsLocal(rel) || rel == "." {
		return false, fmt.Errorf("%q is not in the state directory", path)
	}
	root, err := os.OpenRoot(filepath.Dir(j.dir))
	if err != nil {
		return false, err
	}
	defer root.Close()
	if _, err := root.Lstat(rel); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		return false, err
	}
	return true, root.RemoveAll(rel)
}

// writes reports whether the process that a temporary file's name tells of
// still lives.
func (j *Journal) writes(file string) bool {
	var pid int
	var start uint64
	if n, _ := fmt.Sscanf(filepath.Base(file), "%d-%d-", &pid, &start); n != 2 {
		return false
	}
	return j.alive(owner{j.self.Boot, pid, start})
}

// alive reports whether an owner still runs.
func (j *Journal) alive(o owner) bool {
	if o.Boot != j.self.Boot {
		return false
	}
	start, err := startTime(o.PID)
	return err == nil && start == o.Start
}
