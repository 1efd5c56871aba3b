package audit

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Query says which entries are wanted; what is zero is any.
type Query struct {
	Tenant, Kind, Subject string
	Since, Until          time.Time
	After                 int64 // entries with a higher Seq
	Limit                 int   // how many at most
	// Newest wants the last Limit ones, not the first. They come in order, too.
	Newest bool
}

// Each calls f for the entries of a query, in order, until it fails.
func (l *Log) Each(ctx context.Context, q Query, f func(Entry) error) error {
	var where []string
	var args []any
	add := func(cond string, v any) { where, args = append(where, cond), append(args, v) }
	for _, c := range []struct{ column, v string }{{"tenant", q.Tenant}, {"kind", q.Kind}, {"subject", q.Subject}} {
		if c.v != "" {
			add(c.column+" = ?", c.v)
		}
	}
	if !q.Since.IsZero() {
		add("time >= ?", q.Since.UnixMicro())
	}
	if !q.Until.IsZero() {
		add("time < ?", q.Until.UnixMicro())
	}
	if q.After > 0 {
		add("seq > ?", q.After)
	}
	s := "SELECT seq, body, hash FROM entries"
	if len(where) > 0 {
		s += " WHERE " + strings.Join(where, " AND ")
	}
	s += " ORDER BY seq"
	if q.Newest {
		s += " DESC"
	}
	if q.Limit > 0 {
		s += fmt.Sprintf(" LIMIT %d", q.Limit)
	}
	if q.Newest {
		s = "SELECT * FROM (" + s + ") ORDER BY seq"
	}
	rows, err := l.db.QueryContext(ctx, s, args...)
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var seq int64
		var body, hash []byte
		if err := rows.Scan(&seq, &body, &hash); err != nil {
			return fmt.Errorf("audit log: %w", err)
		}
		var e Entry
		if err := json.Unmarshal(body, &e); err != nil {
			return fmt.Errorf("audit log: entry %d: %w", seq, err)
		}
		e.Hash = hex.EncodeToString(hash)
		if err := f(e); err != nil {
			return err
		}
	}
	return rows.Err()
}

// List returns the entries of a query.
func (l *Log) List(ctx context.Context, q Query) ([]Entry, error) {
	out := []Entry{}
	err := l.Each(ctx, q, func(e Entry) error {
		out = append(out, e)
		return nil
	})
	return out, err
}

// Report is what Verify saw.
type Report struct {
	Entries int64 `json:"entries"`
	First   int64 `json:"first"` // Seq; 0: there is none
	Head    Head  `json:"head"`
	// Removed is how many entries were pruned before the first.
	Removed int64 `json:"removed"`
}

// TamperedError is a log that is not as it was written.
type TamperedError struct {
	Seq  int64  // where it was seen
	What string // is wrong
}

func (e *TamperedError) Error() string { return fmt.Sprintf("entry %d: %s", e.Seq, e.What) }

// Verify goes through the whole chain. known are heads that were noted down before;
// each must be in it, unless it was pruned. A [*TamperedError] says what is wrong.
func (l *Log) Verify(ctx context.Context, known ...Head) (r Report, err error) {
	tx, err := l.db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return r, fmt.Errorf("audit log: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // nothing was written
	var base int64
	var hash []byte
	if err := tx.QueryRowContext(ctx, "SELECT seq, hash FROM base").Scan(&base, &hash); err != nil {
		return r, fmt.Errorf("audit log: %w", err)
	}
	r.Removed, r.Head = base, Head{base, hex.EncodeToString(hash)}
	want := map[int64]string{}
	for _, h := range known {
		if h.Seq > base {
			want[h.Seq] = h.Hash
		} else if h.Seq == base && h.Hash != r.Head.Hash {
			return r, &TamperedError{base, "it was removed, and what is noted of it is not what it had when it was noted down"}
		}
	}
	pruned := base == 0 && bytes.Equal(hash, make([]byte, len(hash)))
	start := r.Head
	rows, err := tx.QueryContext(ctx, "SELECT seq, time, kind, tenant, subject, body, hash FROM entries ORDER BY seq")
	if err != nil {
		return r, fmt.Errorf("audit log: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var seq, at int64
		var kind, tenant, subject string
		var body, has []byte
		if err := rows.Scan(&seq, &at, &kind, &tenant, &subject, &body, &has); err != nil {
			return r, fmt.Errorf("audit log: %w", err)
		}
		bad := func(what string) (Report, error) { return r, &TamperedError{seq, what} }
		if seq != r.Head.Seq+1 {
			return r, &TamperedError{r.Head.Seq + 1, fmt.Sprintf("it is not there; the next one is %d", seq)}
		}
		if hash = chain(hash, body); !bytes.Equal(hash, has) {
			return bad("its hash is not that of its content and of the entry before it")
		}
		var e Entry
		if err := json.Unmarshal(body, &e); err != nil {
			return bad("it cannot be read: " + err.Error())
		}
		if e.Seq != seq || e.Time.UnixMicro() != at || e.Kind != kind || e.Tenant != tenant || e.Subject != subject {
			return bad("what it is searched by is not what it says")
		}
		r.Entries++
		if r.First == 0 {
			r.First = seq
		}
		r.Head = Head{seq, hex.EncodeToString(hash)}
		if h, ok := want[seq]; ok {
			if h != r.Head.Hash {
				return bad("it is another one than was noted down")
			}
			delete(want, seq)
		}
		if kind == "pruned" && e.Fields["seq"] == fmt.Sprint(start.Seq) && e.Fields["hash"] == start.Hash {
			pruned = true
		}
	}
	if err := rows.Err(); err != nil {
		return r, fmt.Errorf("audit log: %w", err)
	}
	for seq := range want {
		return r, &TamperedError{seq, fmt.Sprintf("it was noted down, and is not there: the log ends at %d", r.Head.Seq)}
	}
	if !pruned {
		return r, &TamperedError{start.Seq, "the entries up to this one are not there, and no entry says that they were pruned"}
	}
	return r, nil
}

// IsTampered reports whether err is of a log that is not as it was written.
func IsTampered(err error) bool {
	var t *TamperedError
	return errors.As(err, &t)
}
