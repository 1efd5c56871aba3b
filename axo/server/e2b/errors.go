package e2b

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"connectrpc.com/connect"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/telemetry"
)

// problem is how errors look to E2B's clients; they ask code as well as the status.
type problem struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func writeError(w http.ResponseWriter, status int, message string) {
	writeJSON(w, status, problem{status, message})
}

var classes = []struct {
	class  error
	status int
	code   connect.Code
}{
	{isolation.ErrNotFound, http.StatusNotFound, connect.CodeNotFound},
	{isolation.ErrAlreadyExists, http.StatusConflict, connect.CodeAlreadyExists},
	{isolation.ErrInvalidArgument, http.StatusBadRequest, connect.CodeInvalidArgument},
	{isolation.ErrFailedPrecondition, http.StatusConflict, connect.CodeFailedPrecondition},
	{isolation.ErrUnsupported, http.StatusNotImplemented, connect.CodeUnimplemented},
	{isolation.ErrResourceExhausted, http.StatusTooManyRequests, connect.CodeResourceExhausted},
	{isolation.ErrUnavailable, http.StatusServiceUnavailable, connect.CodeUnavailable},
	{isolation.ErrPermissionDenied, http.StatusForbidden, connect.CodePermissionDenied},
	{isolation.ErrUnauthenticated, http.StatusUnauthorized, connect.CodeUnauthenticated},
}

// fail answers with an error.
func fail(w http.ResponseWriter, err error) {
	telemetry.CallFor(w).Fail(err)
	status := http.StatusInternalServerError
	for _, c := range classes {
		if errors.Is(err, c.class) {
			status = c.status
			break
		}
	}
	writeError(w, status, err.Error())
}

// rpcError is an error as Connect tells it.
func rpcError(err error) error {
	var already *connect.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &already):
		return err
	case errors.Is(err, context.DeadlineExceeded):
		return connect.NewError(connect.CodeDeadlineExceeded, err)
	case errors.Is(err, context.Canceled):
		return connect.NewError(connect.CodeCanceled, err)
	}
	for _, c := range classes {
		if errors.Is(err, c.class) {
			return connect.NewError(c.code, err)
		}
	}
	return connect.NewError(connect.CodeInternal, err)
}
