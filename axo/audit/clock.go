package audit

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/axocoatl/isolation/axo/internal/clock"
)

// KindClock is the kind and the subject of the entry that says that the host's clock was
// set: by how much, in its field "by". What is before it was written by another clock than
// what is after it, and Prune reckons with that.
const KindClock = "clock"

const (
	// jumpOver is how far the clock may be from what it would be for it not to have been
	// set: less than that are corrections, and of no account to what is kept for days.
	jumpOver = 5 * time.Minute
	// offAtMost is how long a host is believed to have been off. What is longer may be a
	// clock that was wrong before or is now, and does not count as time that passed.
	offAtMost = 24 * time.Hour
	// lookEvery is how old what is noted of the clock may become.
	lookEvery = 10 * time.Minute
)

// looked is what this process knows to be noted of the clock.
type looked struct {
	mu sync.Mutex
	at clock.Moment // guarded by mu
}

// fresh reports whether the clock has gone on since as it should, and was looked at
// lately.
func (k *looked) fresh(now clock.Moment) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	passed := now.Wall.Sub(k.at.Wall)
	return now.SameBoot(k.at) && (passed-(now.Up-k.at.Up)).Abs() < time.Second && passed < lookEvery
}

func (k *looked) set(now clock.Moment) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.at = now
}

// look compares the clock with what is noted of it, and notes it anew. jump is by how
// much it was set meanwhile; 0: it was not.
func look(tx *sql.Tx, now clock.Moment) (jump time.Duration, err error) {
	var then clock.Moment
	var wall, up int64
	switch err := tx.QueryRow("SELECT boot, wall, up FROM clock").Scan(&then.Boot, &wall, &up); {
	case err == nil:
	case errors.Is(err, sql.ErrNoRows):
		// Of a version that noted nothing there is the newest entry.
		if err := tx.QueryRow("SELECT time FROM entries ORDER BY seq DESC LIMIT 1").Scan(&wall); errors.Is(err, sql.ErrNoRows) {
			wall = now.Wall.UnixMicro()
		} else if err != nil {
			return 0, err
		}
	default:
		return 0, err
	}
	then.Wall, then.Up = time.UnixMicro(wall), time.Duration(up)*time.Microsecond
	jump = jumped(then, now)
	_, err = tx.Exec("INSERT OR REPLACE INTO clock VALUES (1, ?, ?, ?)", now.Boot, now.Wall.UnixMicro(), now.Up.Microseconds())
	return jump, err
}

// jumped is by how much the clock was set between two moments.
func jumped(then, now clock.Moment) time.Duration {
	passed := now.Wall.Sub(then.Wall)
	switch {
	case now.Boot != "" && now.Boot == then.Boot && now.Up > then.Up-jumpOver: // two that write at once may come in another order
		passed -= now.Up - then.Up
		if passed.Abs() < jumpOver {
			return 0
		}
	case now.Boot != "" && then.Boot != "":
		passed -= now.Up
		if passed > -jumpOver && passed < offAtMost+jumpOver {
			return 0
		}
	case passed > -jumpOver: // nothing else tells how long it was
		return 0
	}
	return passed
}

// clockEntry tells of it.
func clockEntry(jump time.Duration, now clock.Moment) Entry {
	return Entry{Kind: KindClock, Subject: KindClock, Fields: map[string]string{
		"by": jump.String(), "from": now.Wall.Add(-jump).UTC().Format(time.RFC3339), "to": now.Wall.UTC().Format(time.RFC3339),
	}}
}

// old finds the newest entry, but for the very newest, that was written before a time,
// by the clock as it is now. Each that says that the clock was set parts what is before it
// from what is after it. none: sql.ErrNoRows.
func (l *Log) old(before time.Time) (seq int64, hash []byte, err error) {
	type part struct {
		from int64 // entries from here on
		set  time.Duration
	}
	var parts []part
	rows, err := l.db.Query("SELECT seq, body FROM entries WHERE subject = ? AND kind = ? ORDER BY seq DESC", KindClock, KindClock)
	if err != nil {
		return 0, nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var x part
		var body []byte
		if err := rows.Scan(&x.from, &body); err != nil {
			return 0, nil, err
		}
		var e Entry
		if err = json.Unmarshal(body, &e); err == nil {
			x.set, err = time.ParseDuration(e.Fields["by"])
		}
		if err != nil {
			return 0, nil, fmt.Errorf("entry %d: %w", x.from, err)
		}
		parts = append(parts, x)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return 0, nil, err
	}
	end := int64(1<<63 - 1)
	for _, x := range append(parts, part{}) {
		err = l.db.QueryRow(
			"SELECT seq, hash FROM entries WHERE time < ? AND seq >= ? AND seq < min(?, (SELECT max(seq) FROM entries)) ORDER BY seq DESC LIMIT 1", before.UnixMicro(), x.from, end,
		).Scan(&seq, &hash)
		if !errors.Is(err, sql.ErrNoRows) {
			return seq, hash, err
		}
		before, end = before.Add(-x.set), x.from
	}
	return 0, nil, sql.ErrNoRows
}
