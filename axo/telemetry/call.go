package telemetry

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"sync"

	"github.com/axocoatl/isolation/internal/form"
)

// Call is a request of a client's, as far as it is known whose and what it is. A nil
// one takes no notice. It is safe for concurrent use.
type Call struct {
	id   string
	face string

	mu     sync.Mutex
	route  string // guarded by mu, as the rest
	fields [numFields]string
	err    error
}

// Field is something that a request is of.
type Field int

// The fields.
const (
	FieldTenant Field = iota
	FieldSandbox
	FieldExec
	FieldRun
	FieldKey // the id of the key that it was made with
	numFields
)

type callKey struct{}

// CallOf returns the request that something is done for; nil: none.
func CallOf(ctx context.Context) *Call {
	c, _ := ctx.Value(callKey{}).(*Call)
	return c
}

// ID is what the request is called, in logs and to its client.
func (c *Call) ID() string {
	if c == nil {
		return ""
	}
	return c.id
}

// SetRoute says by which pattern it is answered: one of a fixed number.
func (c *Call) SetRoute(pattern string) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.route = pattern
}

// Set says what the request is of.
func (c *Call) Set(f Field, value string) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fields[f] = value
}

// Fail says why it is not answered as its client wants.
func (c *Call) Fail(err error) {
	if c == nil || err == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

// HeaderRequestID is the header that a request's id is in, in requests and answers.
const HeaderRequestID = "X-Request-Id"

// requestID is the form of ids that are taken from clients.
var requestID = form.Of(`^[A-Za-z0-9._-]{1,64}$`)

// idOf is the id that a request has by its client, or a new one.
func idOf(r *http.Request) string {
	if id := r.Header.Get(HeaderRequestID); requestID().MatchString(id) {
		return id
	}
	var b [8]byte
	_, _ = rand.Read(b[:]) // it never fails
	return hex.EncodeToString(b[:])
}
