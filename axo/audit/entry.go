package audit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/axocoatl/isolation/api"
)

// Entry is one thing that happened, or was asked for. Its Hash is not hashed itself.
type Entry = api.AuditEntry

// Recorder takes entries.
type Recorder interface {
	// Record returns when the entry is in the log. Its Seq, Time and Hash are the log's.
	Record(context.Context, Entry) error
}

// Bounds of an entry: what is in one comes from callers.
const (
	maxFields = 32
	maxText   = 4096
)

// bounded is an entry that fits, in text that everybody can read.
func bounded(e Entry) Entry {
	for _, s := range []*string{&e.Kind, &e.Tenant, &e.Key, &e.Subject, &e.Exec} {
		*s = clip(*s, 256)
	}
	fields := make(map[string]string, len(e.Fields))
	for k, v := range e.Fields {
		if len(fields) == maxFields {
			fields["..."] = fmt.Sprintf("%d fields are left out", len(e.Fields)-maxFields)
			break
		}
		fields[clip(k, 64)] = clip(v, maxText)
	}
	e.Fields = fields
	return e
}

func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n-3] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}

// body is what is hashed: JSON, without the hash.
func bodyOf(e Entry) ([]byte, error) {
	e.Hash = ""
	return json.Marshal(e)
}

func chain(before, body []byte) []byte {
	h := sha256.New()
	h.Write(before)
	h.Write(body)
	return h.Sum(nil)
}

// Head names the newest entry. Kept elsewhere, it shows later that nothing before it
// was touched.
type Head struct {
	Seq  int64  `json:"seq"`
	Hash string `json:"hash"`
}

// String is what ParseHead reads.
func (h Head) String() string { return fmt.Sprintf("%d:%s", h.Seq, h.Hash) }

// ParseHead reads SEQ:HASH.
func ParseHead(s string) (h Head, err error) {
	seq, hash, ok := strings.Cut(s, ":")
	if _, serr := fmt.Sscanf(seq, "%d", &h.Seq); serr != nil || !ok || h.Seq < 0 || fmt.Sprint(h.Seq) != seq {
		return h, fmt.Errorf("head %.80q: want SEQ:HASH, as axo audit head prints it", s)
	}
	if b, herr := hex.DecodeString(hash); herr != nil || len(b) != sha256.Size {
		return h, fmt.Errorf("head %.80q: want a SHA-256 after the colon", s)
	}
	h.Hash = strings.ToLower(hash)
	return h, nil
}
