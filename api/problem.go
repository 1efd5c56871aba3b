package api

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/engine"
)

// ProblemType is the content type of a Problem.
const ProblemType = "application/problem+json"

// Problem is an error, in the form of RFC 9457. The class is what clients go by:
// it is that of the error which the server had.
type Problem struct {
	Status  int    `json:"status"`
	Title   string `json:"title"`
	Detail  string `json:"detail"`
	Class   string `json:"class,omitempty" doc:"not_found, already_exists, ...; none: a fault of the server's"`
	Outcome string `json:"outcome,omitempty" enum:"not_started,outcome_unknown" doc:"Whether the program may have run"`
	// RetryAfterMS is in the header Retry-After, too, in whole seconds.
	RetryAfterMS int64 `json:"retry_after_ms,omitempty" doc:"When it is worth while to try again, where that is known"`
	// Decision tells, where no engine may run what was asked for, why each may not.
	Decision *engine.Decision `json:"decision,omitempty"`
	// RequestID is what the request is called in the daemon's log.
	RequestID string `json:"request_id,omitempty" doc:"What the request is called in the daemon's log; the header X-Request-Id has it, too"`
}

// classes are the names of the contract's nine classes and their statuses. No two
// share a status, so that one is enough to tell.
var classes = []struct {
	err    error
	name   string
	status int
}{
	{isolation.ErrNotFound, "not_found", http.StatusNotFound},
	{isolation.ErrAlreadyExists, "already_exists", http.StatusConflict},
	{isolation.ErrInvalidArgument, "invalid_argument", http.StatusBadRequest},
	{isolation.ErrFailedPrecondition, "failed_precondition", http.StatusPreconditionFailed},
	{isolation.ErrUnsupported, "unsupported", http.StatusNotImplemented},
	{isolation.ErrResourceExhausted, "resource_exhausted", http.StatusTooManyRequests},
	{isolation.ErrUnavailable, "unavailable", http.StatusServiceUnavailable},
	{isolation.ErrPermissionDenied, "permission_denied", http.StatusForbidden},
	{isolation.ErrUnauthenticated, "unauthenticated", http.StatusUnauthorized},
}

// ProblemOf tells an error to a client.
func ProblemOf(err error) *Problem {
	p := &Problem{Status: http.StatusInternalServerError, Detail: err.Error()}
	var outcome *isolation.Error
	if errors.As(err, &outcome) {
		p.Outcome = string(isolation.OutcomeOf(err))
	}
	if after, ok := RetryAfter(err); ok {
		p.RetryAfterMS = after.Milliseconds()
	}
	var refused *engine.RefusedError
	if errors.As(err, &refused) {
		p.Decision = &refused.Decision
	}
	switch class := isolation.Class(err); {
	case class != nil:
		for _, c := range classes {
			if c.err == class {
				p.Status, p.Class = c.status, c.name
			}
		}
	case errors.Is(err, context.DeadlineExceeded):
		p.Status = http.StatusGatewayTimeout
	case errors.Is(err, context.Canceled):
		p.Status = 499 // nobody is there to read it
	}
	p.Title = http.StatusText(p.Status)
	return p
}

// GetStatus is the status of the answer that carries it.
func (p *Problem) GetStatus() int { return p.Status }

// GetHeaders are those of the answer that carries it.
func (p *Problem) GetHeaders() http.Header {
	h := http.Header{}
	if p.Status == http.StatusTooManyRequests || p.Status == http.StatusServiceUnavailable {
		h.Set("Retry-After", strconv.FormatInt(max((p.RetryAfterMS+999)/1000, 1), 10))
	}
	return h
}

// RetryAfter is when it is worth while to try again what failed, where the server knew.
func RetryAfter(err error) (after time.Duration, ok bool) {
	var r interface{ RetryAfter() time.Duration }
	if !errors.As(err, &r) {
		return 0, false
	}
	return r.RetryAfter(), true
}

// Error is one line for a person.
func (p *Problem) Error() string { return p.Detail }

// ContentType is that of problems.
func (p *Problem) ContentType(string) string { return ProblemType }

// Err is the error that the server had, as far as a client can have it.
func (p *Problem) Err() error {
	e := &remoteError{p: p}
	if p.RetryAfterMS > 0 {
		e.retry = &retryError{time.Duration(p.RetryAfterMS) * time.Millisecond}
	}
	for _, c := range classes {
		if c.name == p.Class || p.Class == "" && c.status == p.Status {
			e.class = c.err
		}
	}
	if p.Decision != nil {
		e.refused = &engine.RefusedError{Decision: *p.Decision}
	}
	if p.Outcome != "" {
		return &isolation.Error{Op: "remote", Outcome: isolation.Outcome(p.Outcome), Err: e}
	}
	return e
}

// remoteError has the class of the server's error, and its words.
type remoteError struct {
	p       *Problem
	class   error
	refused *engine.RefusedError
	retry   *retryError
}

// retryError is what RetryAfter finds.
type retryError struct{ after time.Duration }

func (e *retryError) Error() string             { return "retry after " + e.after.String() }
func (e *retryError) RetryAfter() time.Duration { return e.after }

// Error names the request where only the daemon's log tells what happened.
func (e *remoteError) Error() string {
	if e.class == nil && e.p.RequestID != "" {
		return e.p.Detail + " (request " + e.p.RequestID + ")"
	}
	return e.p.Detail
}

func (e *remoteError) Unwrap() []error {
	out := []error{}
	if e.class != nil {
		out = append(out, e.class)
	}
	if e.refused != nil {
		out = append(out, e.refused)
	}
	if e.retry != nil {
		out = append(out, e.retry)
	}
	return out
}
