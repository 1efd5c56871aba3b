package image

import (
	"sync"
	"time"
)

// Stage is what an [Event] tells about.
type Stage string

const (
	StageResolved   Stage = "resolved"   // the manifest was chosen; Total is the size of its blobs
	StageExists     Stage = "exists"     // a blob was there already
	StageDownload   Stage = "download"   // bytes of a blob came
	StageDownloaded Stage = "downloaded" // a blob is complete and verified
	StageRetry      Stage = "retry"      // a download was interrupted and is tried again; Message says why
	StageCopy       Stage = "copy"       // bytes of a file of an archive were copied; Digest is its name
	StageCopied     Stage = "copied"     // it is complete
	StageUnpack     Stage = "unpack"     // bytes of a blob were unpacked
	StageUnpacked   Stage = "unpacked"   // a layer is complete and verified
)

// Event is progress of a pull or an import.
type Event struct {
	Stage   Stage  `json:"stage"`
	Digest  string `json:"digest"` // of the blob, or of the manifest; hostile if a name
	Done    int64  `json:"done"`   // bytes of the blob
	Total   int64  `json:"total"`
	Message string `json:"message,omitempty"`
}

// events calls a function for events, one at a time.
type events struct {
	mu   sync.Mutex
	f    func(Event)          // guarded by mu; nil for none
	last map[string]time.Time // guarded by mu; of the last progress of each blob
}

func newEvents(f func(Event)) *events { return &events{f: f, last: map[string]time.Time{}} }

func (e *events) send(v Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.f != nil {
		e.f(v)
	}
}

// progress sends an event unless one like it was sent in the last 50 ms.
func (e *events) progress(v Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	key := string(v.Stage) + v.Digest
	if now := time.Now(); e.f != nil && now.Sub(e.last[key]) >= 50*time.Millisecond {
		e.last[key] = now
		e.f(v)
	}
}
