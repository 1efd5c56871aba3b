package e2b

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"github.com/axocoatl/isolation/axo/telemetry"
)

// faults has RPCs told in the log that failed by a fault of the daemon's: the status of
// a stream's answer does not tell.
type faults struct{}

func told(ctx context.Context, err error) error {
	var e *connect.Error
	if errors.As(err, &e) && e.Code() == connect.CodeInternal {
		telemetry.CallOf(ctx).Fail(e.Unwrap())
	}
	return err
}

// WrapUnary implements connect.Interceptor.
func (faults) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, r)
		return resp, told(ctx, err)
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (faults) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (faults) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, c connect.StreamingHandlerConn) error { return told(ctx, next(ctx, c)) }
}
