package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// KeptDir is the name of the directory of kept sandboxes in a state directory.
const KeptDir = "sessions"

// The files of a kept sandbox.
const (
	fileRecord = "record.json"
	fileLock   = "lock"
	notePrefix = "note-"
)

// keptVersion is that of the records. Another is not read.
const keptVersion = 1

// Errors of kept sandboxes.
var (
	ErrHeld       = errors.New("a living process has it")
	ErrUnreadable = errors.New("its record cannot be read")
	ErrGone       = errors.New("it does not live any more")
)

// Keep is a directory of what outlives the process that made it: a directory for
// each sandbox, by engine and id, in which a record says all that somebody needs who
// comes later, and who has a lock on a file there has the sandbox. The lock is the
// kernel's, and goes with its process.
type Keep struct {
	dir  string
	self owner
}

// OpenKeep makes the directory, with mode 0700, if it is not there; see [Open].
func OpenKeep(dir string) (*Keep, error) {
	j, err := Open(dir)
	if err != nil {
		return nil, err
	}
	return &Keep{dir, j.self}, nil
}

// keptRecord is a record. What is read back is not trusted: somebody may have had
// the disk meanwhile, and this process acts on it with all its rights.
type keptRecord struct {
	Version int             `json:"version"`
	Maker   owner           `json:"maker"`
	Engine  string          `json:"engine"`
	ID      string          `json:"id"`
	Created time.Time       `json:"created"`
	Ready   bool            `json:"ready"`         // it was made, and nobody has begun to remove it
	Main    Resource        `json:"main,omitzero"` // the process with which all of it ends
	Left    []Resource      `json:"left"`
	Data    json.RawMessage `json:"data,omitempty"` // the driver's
}

// Kept is a kept sandbox that this process has. It is safe for concurrent use.
type Kept struct {
	k    *Keep
	dir  string
	lock *os.File

	mu  sync.Mutex
	rec keptRecord // guarded by mu
}

func (k *Keep) path(engine, id string) string { return filepath.Join(k.dir, engine, id) }

func checkName(s string) error {
	if s == "" || s[0] == '.' || strings.ContainsAny(s, "/\x00") || len(s) > 128 {
		return fmt.Errorf("journal: %q cannot be a file name", s)
	}
	return nil
}

// New writes down a sandbox that is about to be made. One that is there already is
// os.ErrExist. Until Ready a sweep removes it when its maker is gone.
func (k *Keep) New(engine, id string) (_ *Kept, err error) {
	if err := errors.Join(checkName(engine), checkName(id)); err != nil {
		return nil, err
	}
	top := filepath.Join(k.dir, engine)
	if err := os.MkdirAll(top, 0o700); err != nil {
		return nil, err
	}
	// Complete, with its lock, before it has its name.
	tmp, err := os.MkdirTemp(top, fmt.Sprintf(".%d-%d-", k.self.PID, k.self.Start))
	if err != nil {
		return nil, err
	}
	e := &Kept{k: k, dir: tmp, rec: keptRecord{
		Version: keptVersion, Maker: k.self, Engine: engine, ID: id, Created: time.Now(), Left: []Resource{},
	}}
	defer func() {
		if err != nil {
			e.Release()
			os.RemoveAll(tmp)
		}
	}()
	if e.lock, err = os.OpenFile(filepath.Join(tmp, fileLock), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, err
	}
	if err := takeLock(e.lock); err != nil {
		return nil, err
	}
	if err := errors.Join(e.sign(), e.writeLocked(false)); err != nil {
		return nil, err
	}
	// A directory is not put in the place of one with anything in it.
	if err := os.Rename(tmp, k.path(engine, id)); err != nil {
		if _, serr := os.Lstat(k.path(engine, id)); serr == nil {
			err = os.ErrExist
		}
		return nil, err
	}
	e.dir = k.path(engine, id)
	return e, nil
}

// sign writes into the lock who has it, for people.
func (e *Kept) sign() error {
	if err := e.lock.Truncate(0); err != nil {
		return err
	}
	_, err := e.lock.WriteAt(fmt.Appendf(nil, "%d %d", e.k.self.PID, e.k.self.Start), 0)
	return err
}

// take locks a sandbox's directory and reads its record. ErrUnreadable is there with
// the Kept.
func (k *Keep) take(engine, id string) (*Kept, error) {
	if err := errors.Join(checkName(engine), checkName(id)); err != nil {
		return nil, err
	}
	e := &Kept{k: k, dir: k.path(engine, id)}
	var err error
	if e.lock, err = openNoFollow(filepath.Join(e.dir, fileLock), os.O_RDWR); err != nil {
		return nil, err
	}
	if err := takeLock(e.lock); err != nil {
		e.Release()
		return nil, err
	}
	// Its last holder may have removed it between the open and the lock.
	mine, err := e.lock.Stat()
	now, nerr := os.Lstat(filepath.Join(e.dir, fileLock))
	if err = errors.Join(err, nerr); err != nil || !os.SameFile(mine, now) {
		e.Release()
		return nil, os.ErrNotExist
	}
	if err := e.read(engine, id); err != nil {
		return e, fmt.Errorf("%s: %w: %w", filepath.Join(e.dir, fileRecord), ErrUnreadable, err)
	}
	return e, nil
}

func (e *Kept) read(engine, id string) error {
	b, err := readSmall(filepath.Join(e.dir, fileRecord))
	if err != nil {
		return err
	}
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	if v.Version != keptVersion {
		return fmt.Errorf("it is of version %d, and this program knows %d", v.Version, keptVersion)
	}
	if err := json.Unmarshal(b, &e.rec); err != nil {
		return err
	}
	r := &e.rec
	switch {
	case r.Engine != engine || r.ID != id:
		return fmt.Errorf("it is of %.80q of engine %.80q", r.ID, r.Engine)
	case r.Maker.Boot == "":
		return errors.New("it does not say when it was written")
	case r.Ready && (r.Main.Kind != KindProcess || r.Main.PID <= 1):
		return fmt.Errorf("its process is %d", r.Main.PID)
	}
	for _, x := range r.Left {
		switch x.Kind {
		case KindCgroup, KindTemp:
		case KindBrand:
			// Any other number would be that of processes without a brand: all of them.
			if !validBrand(x.Brand) {
				return fmt.Errorf("%x is the brand of no sandbox", x.Brand)
			}
		case KindProcess:
			if x.PID <= 1 {
				return fmt.Errorf("one of its processes is %d", x.PID)
			}
		default:
			return fmt.Errorf("it has something of kind %.40q", x.Kind)
		}
	}
	return nil
}

func readSmall(name string) ([]byte, error) {
	f, err := openNoFollow(name, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err == nil && len(b) > maxRecord {
		err = fmt.Errorf("it has more than %d bytes", maxRecord)
	}
	return b, err
}

// Adopt makes this process the holder of a sandbox that lives and that nobody has.
// os.ErrNotExist: there is none; ErrHeld, ErrUnreadable. ErrGone: it has ended;
// what it left has been removed.
func (k *Keep) Adopt(engine, id string) (*Kept, error) {
	e, err := k.take(engine, id)
	if err != nil {
		if e != nil {
			e.Release()
		}
		return nil, err
	}
	if why := e.dead(); why != nil {
		if _, err := e.remove(); err != nil {
			e.Release()
			return nil, err
		}
		return nil, why
	}
	if err := e.sign(); err != nil {
		e.Release()
		return nil, err
	}
	return e, nil
}

// Discard ends and removes a sandbox that nobody has, whether it lives or not.
// os.ErrNotExist: there is none; ErrHeld, ErrUnreadable.
func (k *Keep) Discard(engine, id string) error {
	e, err := k.take(engine, id)
	if err == nil {
		err = e.Unready() // if this ends in the middle, a sweep does the rest
	}
	if err == nil {
		_, err = e.remove()
	}
	if e != nil {
		e.Release()
	}
	return err
}

// dead says why the sandbox does not live; nil: it does.
func (e *Kept) dead() error {
	r := &e.rec
	switch {
	case r.Maker.Boot != e.k.self.Boot:
		return fmt.Errorf("%w: the host was started again", ErrGone)
	case !r.Ready:
		return fmt.Errorf("%w: it was not made to the end, or is half removed", ErrGone)
	case !processLives(r.Main.PID, r.Main.Start):
		return fmt.Errorf("%w: its first process has ended", ErrGone)
	}
	return nil
}

// Remove ends and removes all that is written down of a sandbox, and the record.
func (e *Kept) Remove() error {
	_, err := e.remove()
	return err
}

// remove ends and removes all that is written down, and then the record. It returns
// what was still there.
func (e *Kept) remove() (was []string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	j := &Journal{filepath.Clean(e.k.dir), e.k.self}
	list := e.rec.Left
	if e.rec.Main.PID > 1 {
		list = append([]Resource{e.rec.Main}, list...)
	}
	kinds := []string{KindProcess, KindBrand, KindCgroup, KindTemp}
	if e.rec.Maker.Boot != e.k.self.Boot {
		kinds = kinds[3:]
	} else {
		letDieFirst(list)
	}
	for _, kind := range kinds {
		for _, r := range list {
			if r.Kind != kind {
				continue
			}
			there, err := j.remove(r)
			if err != nil {
				return was, err
			}
			if there {
				was = append(was, r.String())
			}
		}
	}
	return was, e.doneLocked()
}

// KeptInfo is what List tells.
type KeptInfo struct {
	ID      string
	Created time.Time
	Holder  int   // process that has it; 0: none
	Err     error // why nobody can have it: ErrUnreadable, ErrGone
}

// List lists an engine's sandboxes, by id.
func (k *Keep) List(engine string) ([]KeptInfo, error) {
	names, err := os.ReadDir(filepath.Join(k.dir, engine))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		return nil, err
	}
	var out []KeptInfo
	for _, n := range names {
		if n.Name()[0] == '.' {
			continue
		}
		e := &Kept{k: k, dir: k.path(engine, n.Name())}
		x := KeptInfo{ID: n.Name()}
		held, err := lockedBy(filepath.Join(e.dir, fileLock))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if rerr := e.read(engine, x.ID); rerr != nil {
			if errors.Is(rerr, os.ErrNotExist) {
				continue // removed just now
			}
			x.Err = fmt.Errorf("%s: %w: %w", filepath.Join(e.dir, fileRecord), ErrUnreadable, rerr)
		} else if x.Created = e.rec.Created; !held {
			x.Err = e.dead()
		}
		if held {
			x.Holder, x.Err = max(1, holderOf(filepath.Join(e.dir, fileLock))), nil
		} else if err != nil && x.Err == nil {
			x.Err = err
		}
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b KeptInfo) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

// holderOf is who has signed a lock.
func holderOf(name string) (pid int) {
	b, err := readSmall(name)
	if err == nil {
		_, _ = fmt.Sscan(string(b), &pid) // 0 if it is not there yet
	}
	return pid
}

// Sweep removes what nobody has and what does not live any more, or was not made to
// the end. What lives is left alone: somebody may recover it.
func (k *Keep) Sweep() (rep Report) {
	fail := func(what string, err error) {
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			rep.Errors = append(rep.Errors, fmt.Sprintf("%s: %v", what, err))
		}
	}
	engines, err := os.ReadDir(k.dir)
	fail(KeptDir, err)
	for _, eng := range engines {
		list, err := os.ReadDir(filepath.Join(k.dir, eng.Name()))
		fail(eng.Name(), err)
		for _, n := range list {
			name := filepath.Join(eng.Name(), n.Name())
			if n.Name()[0] == '.' {
				fail(name, k.sweepHalf(eng.Name(), n.Name()))
				continue
			}
			e, err := k.take(eng.Name(), n.Name())
			if errors.Is(err, ErrHeld) {
				continue
			}
			if err != nil {
				fail(name, err)
				if e != nil {
					e.Release()
				}
				continue
			}
			if e.dead() == nil {
				rep.Kept++
				e.Release()
				continue
			}
			rep.Entries++
			was, err := e.remove()
			rep.Removed = append(rep.Removed, was...)
			if err != nil {
				fail(name, err)
				e.Release()
			}
		}
	}
	return rep
}

// sweepHalf removes a directory that never got its name: nothing was made by then.
func (k *Keep) sweepHalf(engine, name string) error {
	o := owner{Boot: k.self.Boot}
	if n, _ := fmt.Sscanf(name, ".%d-%d-", &o.PID, &o.Start); n == 2 && (&Journal{k.dir, k.self}).alive(o) {
		return nil
	}
	return os.RemoveAll(filepath.Join(k.dir, engine, name))
}

// Dir is the sandbox's directory, which goes with it.
func (e *Kept) Dir() string { return e.dir }

// Created is when it was made.
func (e *Kept) Created() time.Time { return e.rec.Created }

// Main is the process with which all of the sandbox ends.
func (e *Kept) Main() (pid int, start uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.rec.Main.PID, e.rec.Main.Start
}

// AddPath adds something that must not be left behind; see [Entry.Add].
func (e *Kept) AddPath(kind, path string) error { return e.add(Resource{Kind: kind, Path: path}) }

// AddBrand adds all processes whose limit on real-time CPU is that of a sandbox:
// those that nobody has written down yet among them.
func (e *Kept) AddBrand(brand uint64) error {
	if !validBrand(brand) {
		return fmt.Errorf("journal: %x is the brand of no sandbox", brand)
	}
	return e.add(Resource{Kind: KindBrand, Brand: brand})
}

// AddProcess adds a running process. The last one is the one with which all of the
// sandbox ends.
func (e *Kept) AddProcess(pid int) error {
	start, err := startTime(pid)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.rec.Main.PID != 0 {
		e.rec.Left = append(e.rec.Left, e.rec.Main)
	}
	e.rec.Main = Resource{Kind: KindProcess, PID: pid, Start: start}
	return e.writeLocked(false)
}

func (e *Kept) add(r Resource) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.rec.Left = append(e.rec.Left, r)
	return e.writeLocked(false)
}

// SetData sets what the driver needs to know of the sandbox later.
func (e *Kept) SetData(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.rec.Data = b
	return e.writeLocked(false)
}

// Data reads what SetData has set. It is not to be trusted.
func (e *Kept) Data(v any) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := json.Unmarshal(e.rec.Data, v); err != nil {
		return fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	return nil
}

// Ready says that the sandbox is made: from now on it is kept. It is on the disk
// when this returns.
func (e *Kept) Ready() error { return e.setReady(true) }

// Unready says that its removal begins: from now on a sweep ends it. On a disk that is
// full nothing is written and the removal goes on, since it makes room: if it ends in
// the middle, the sandbox is found dead.
func (e *Kept) Unready() error {
	if err := e.setReady(false); !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return err
	}
	return nil
}

func (e *Kept) setReady(is bool) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.rec.Ready == is {
		return nil
	}
	e.rec.Ready = is
	err := e.writeLocked(is)
	if err != nil {
		e.rec.Ready = !is // as it is on the disk
	}
	return err
}

// Note writes something of its own about the sandbox, under a name: of one of its
// processes. Notes do not outlive the boot of the host, and so are not synced.
func (e *Kept) Note(name string, v any) error {
	if err := checkName(name); err != nil {
		return err
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(e.dir, notePrefix+name), b, false)
}

// Unnote removes a note.
func (e *Kept) Unnote(name string) error {
	err := os.Remove(filepath.Join(e.dir, notePrefix+name))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return err
}

// maxNotes bounds what is read back.
const maxNotes = 4096

// Notes calls each with the name of every note and what is in it; what cannot be
// read is passed on as the error.
func (e *Kept) Notes(each func(name string, b []byte, err error)) error {
	names, err := os.ReadDir(e.dir)
	if err != nil {
		return err
	}
	if len(names) > maxNotes {
		return fmt.Errorf("%w: %d files", ErrUnreadable, len(names))
	}
	for _, n := range names {
		name, ok := strings.CutPrefix(n.Name(), notePrefix)
		if !ok || strings.HasSuffix(name, "~") {
			continue
		}
		b, err := readSmall(filepath.Join(e.dir, n.Name()))
		each(name, b, err)
	}
	return nil
}

// Done removes the record, once nothing of the sandbox is left.
func (e *Kept) Done() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.doneLocked()
}

func (e *Kept) doneLocked() error {
	// The name goes first: what has it is whole.
	gone := filepath.Join(filepath.Dir(e.dir), fmt.Sprintf(".%d-%d-%s", e.k.self.PID, e.k.self.Start, filepath.Base(e.dir)))
	err := os.Rename(e.dir, gone)
	if err == nil {
		err = os.RemoveAll(gone)
	} else if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err == nil {
		e.releaseLocked()
	}
	return err
}

// Release gives the sandbox up: another process may have it.
func (e *Kept) Release() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.releaseLocked()
}

func (e *Kept) releaseLocked() {
	if e.lock != nil {
		// Before it is closed: a child that has not come to its execve yet has it too.
		_ = dropLock(e.lock)
		e.lock.Close()
		e.lock = nil
	}
}

func (e *Kept) writeLocked(sync bool) error {
	b, err := json.Marshal(e.rec)
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(e.dir, fileRecord), b, sync)
}

// replaceFile writes a file whole or not at all.
func replaceFile(name string, b []byte, sync bool) error {
	tmp := name + "~" // in no id
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil && sync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, name)
	}
	if err != nil {
		os.Remove(tmp)
		return err
	}
	if sync {
		return syncDir(filepath.Dir(name))
	}
	return nil
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
