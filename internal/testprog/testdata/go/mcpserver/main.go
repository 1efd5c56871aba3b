// Command mcpserver is an MCP server as somebody might write it, with one tool, add.
package main

import (
	"encoding/json"
	"fmt"
	"os"
)

func main() {
	in := json.NewDecoder(os.Stdin)
	for {
		var m struct {
			ID     json.RawMessage
			Method string
			Params struct {
				ProtocolVersion string
				Arguments       struct{ A, B float64 }
			}
		}
		if in.Decode(&m) != nil {
			return
		}
		if m.ID == nil {
			continue
		}
		var result any
		switch m.Method {
		case "initialize":
			result = map[string]any{"protocolVersion": m.Params.ProtocolVersion, "capabilities": map[string]any{"tools": map[string]any{}}, "serverInfo": map[string]any{"name": "add", "version": "1"}}
		case "tools/list":
			result = map[string]any{"tools": []any{map[string]any{"name": "add", "inputSchema": map[string]any{"type": "object"}}}}
		case "tools/call":
			result = map[string]any{"content": []any{map[string]any{"type": "text", "text": fmt.Sprint(m.Params.Arguments.A + m.Params.Arguments.B)}}}
		}
		out := map[string]any{"jsonrpc": "2.0", "id": m.ID}
		if out["result"] = result; result == nil {
			delete(out, "result")
			out["error"] = map[string]any{"code": -32601, "message": "no such method"}
		}
		b, err := json.Marshal(out)
		if err != nil {
			panic(err)
		}
		fmt.Println(string(b))
	}
}
