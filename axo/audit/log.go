package audit

import (
	"context"
	"database/sql"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/internal/clock"
)

// Log is the log in a file. It is safe for concurrent use, also by several
// processes.
type Log struct {
	db   *sql.DB
	now  func() time.Time
	boot func() (string, time.Duration)
	// OnJump is told by how much the host's clock was set; nil: nobody is. It is set
	// before the first use.
	OnJump func(by time.Duration)
	looked looked
	mu     sync.Mutex // of queue's end
	gone   bool
	// queue is nil where the log is only read.
	queue chan *pending
	done  chan struct{}

	written, failed atomic.Int64
}

// pending is an entry on its way.
type pending struct {
	entry Entry
	err   chan error
}

// maxBatch is how many entries are written together, at most.
const maxBatch = 256

// Counts are how many entries this process has written, and how many it could not write.
func (l *Log) Counts() (written, failed int64) { return l.written.Load(), l.failed.Load() }

// Path is where the log of a state directory is.
func Path(stateDir string) string { return filepath.Join(stateDir, "audit", "audit.db") }

//go:embed migrations/*.sql
var migrations embed.FS

// Open opens a log to write to, and makes it if it is not there.
func Open(path string) (*Log, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	// The database makes its other files like this one.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	// Killed, the process loses nothing. A host without power loses at most what came
	// since the last checkpoint, a second ago.
	l, err := open(path, "_txlock=immediate&_pragma=journal_mode(wal)&_pragma=synchronous(normal)")
	if err != nil {
		return nil, err
	}
	l.db.SetMaxOpenConns(4)
	if err := l.migrate(); err != nil {
		return nil, errors.Join(fmt.Errorf("audit log %s: %w; to begin a new one, move it away", path, err), l.db.Close())
	}
	l.queue, l.done = make(chan *pending, maxBatch), make(chan struct{})
	go l.write()
	return l, nil
}

// OpenToRead opens a log that is there, and changes nothing.
func OpenToRead(path string) (*Log, error) {
	if _, err := os.Stat(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("there is no audit log at %s: the daemon makes it: %w", path, isolation.ErrNotFound)
		}
		return nil, err
	}
	return open(path, "mode=ro&_pragma=query_only(1)")
}

func open(path, options string) (*Log, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	u := url.URL{Scheme: "file", Path: abs, RawQuery: options + "&_pragma=busy_timeout(10000)"}
	db, err := sql.Open("sqlite", u.String())
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	return &Log{db: db, now: time.Now, boot: clock.Boot}, nil
}

func (l *Log) migrate() error {
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, l.db, dir)
	if err != nil {
		return err
	}
	_, err = p.Up(context.Background())
	return err
}

// Close writes what is under way and closes the log.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.queue != nil && !l.gone {
		close(l.queue)
	}
	l.gone = true
	l.mu.Unlock()
	if l.done != nil {
		<-l.done
	}
	return l.db.Close()
}

// Record implements [Recorder]. Unavailable: the entry could not be written.
func (l *Log) Record(ctx context.Context, e Entry) error {
	p := &pending{entry: bounded(e), err: make(chan error, 1)}
	l.mu.Lock()
	if l.gone || l.queue == nil {
		l.mu.Unlock()
		return fmt.Errorf("the audit log is closed: %w", isolation.ErrUnavailable)
	}
	select {
	case l.queue <- p:
		l.mu.Unlock()
	default:
		// It is full: who waits must not keep others from closing it.
		l.mu.Unlock()
		if err := l.enqueue(ctx, p); err != nil {
			return err
		}
	}
	select {
	case err := <-p.err:
		if err != nil {
			return fmt.Errorf("the audit log cannot be written: %w (%w)", err, isolation.ErrUnavailable)
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx) // it may be written still
	}
}

func (l *Log) enqueue(ctx context.Context, p *pending) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		l.mu.Lock()
		if l.gone {
			l.mu.Unlock()
			return fmt.Errorf("the audit log is closed: %w", isolation.ErrUnavailable)
		}
		select {
		case l.queue <- p:
			l.mu.Unlock()
			return nil
		default:
		}
		l.mu.Unlock()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// write takes what is there, together, and once a second has it reach the disk.
func (l *Log) write() {
	defer close(l.done)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	dirty := false
	for {
		var batch []*pending
		select {
		case p, ok := <-l.queue:
			if !ok {
				return
			}
			batch = append(batch, p)
		case <-tick.C:
			if dirty {
				_, _ = l.db.Exec("PRAGMA wal_checkpoint(PASSIVE)") // the next one does what this one cannot
				dirty = false
			}
			continue
		}
		for more := true; more && len(batch) < maxBatch; {
			select {
			case p, ok := <-l.queue:
				if more = ok; ok {
					batch = append(batch, p)
				}
			default:
				more = false
			}
		}
		entries := make([]Entry, len(batch))
		for i, p := range batch {
			entries[i] = p.entry
		}
		err := l.append(clock.At(l.now(), l.boot), entries, nil)
		if err == nil {
			l.written.Add(int64(len(entries)))
		} else {
			l.failed.Add(int64(len(entries)))
		}
		dirty = true
		for _, p := range batch {
			p.err <- err
		}
	}
}

// append adds entries, in one transaction with what else is to be done, after one that
// tells that the clock was set if it was.
func (l *Log) append(now clock.Moment, entries []Entry, also func(*sql.Tx) error) error {
	tx, err := l.db.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it does nothing
	seq, hash, err := head(tx)
	if err != nil {
		return err
	}
	fresh, jump := l.looked.fresh(now), time.Duration(0)
	if !fresh {
		if jump, err = look(tx, now); err != nil {
			return err
		}
	}
	if jump != 0 {
		entries = append([]Entry{clockEntry(jump, now)}, entries...)
	}
	for _, e := range entries {
		seq++
		e.Seq, e.Time = seq, now.Wall.UTC().Truncate(time.Microsecond)
		body, err := bodyOf(e)
		if err != nil {
			return err
		}
		hash = chain(hash, body)
		if _, err := tx.Exec("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", e.Seq, e.Time.UnixMicro(), e.Kind, e.Tenant, e.Subject, body, hash); err != nil {
			return err
		}
	}
	if also != nil {
		if err := also(tx); err != nil {
			return err
		}
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	if !fresh {
		l.looked.set(now)
	}
	if jump != 0 && l.OnJump != nil {
		l.OnJump(jump)
	}
	return nil
}

type queryer interface {
	QueryRow(query string, args ...any) *sql.Row
}

// head is the newest entry, or what the first one will follow.
func head(q queryer) (seq int64, hash []byte, err error) {
	err = q.QueryRow("SELECT seq, hash FROM entries ORDER BY seq DESC LIMIT 1").Scan(&seq, &hash)
	if errors.Is(err, sql.ErrNoRows) {
		err = q.QueryRow("SELECT seq, hash FROM base").Scan(&seq, &hash)
	}
	return seq, hash, err
}

// Head returns the newest entry's name.
func (l *Log) Head() (Head, error) {
	seq, hash, err := head(l.db)
	if err != nil {
		return Head{}, fmt.Errorf("audit log: %w", err)
	}
	return Head{seq, hex.EncodeToString(hash)}, nil
}

// Prune removes the entries that are older than is to be kept, but for the newest, and
// returns how many those were. That it was done is an entry, which has the hash that the
// first one left follows. Entries are as old as the time that has passed since, whatever
// the host's clock was set to meanwhile.
func (l *Log) Prune(keep time.Duration) (n int64, err error) {
	// One moment for all: so the clock cannot be set in between.
	now := clock.At(l.now(), l.boot)
	if err := l.append(now, nil, nil); err != nil {
		return 0, fmt.Errorf("audit log: %w", err)
	}
	before := now.Wall.Add(-keep)
	last, hash, err := l.old(before)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	} else if err != nil {
		return 0, fmt.Errorf("audit log: %w", err)
	}
	e := Entry{Kind: "pruned", Fields: map[string]string{
		"before": before.UTC().Format(time.RFC3339), "seq": fmt.Sprint(last), "hash": hex.EncodeToString(hash),
	}}
	err = l.append(now, []Entry{e}, func(tx *sql.Tx) error {
		res, err := tx.Exec("DELETE FROM entries WHERE seq <= ?", last)
		if err != nil {
			return err
		}
		if n, err = res.RowsAffected(); err != nil {
			return err
		}
		_, err = tx.Exec("UPDATE base SET seq = ?, hash = ?", last, hash)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("audit log: %w", err)
	}
	return n, nil
}
