package mcp

import (
	"context"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// observed tells of a request when it is over.
func (s *Server) observed(next sdk.MethodHandler) sdk.MethodHandler {
	return func(ctx context.Context, method string, r sdk.Request) (sdk.Result, error) {
		res, err := next(ctx, method, r)
		tool, failed := "", err != nil
		if c, ok := r.(*sdk.CallToolRequest); ok {
			if tool = "registered"; s.own[c.Params.Name] {
				tool = c.Params.Name
			}
		}
		if c, ok := res.(*sdk.CallToolResult); ok && c != nil {
			failed = failed || c.IsError
		}
		s.config.OnRequest(method, tool, failed)
		return res, err
	}
}
