package mcp

import (
	"bytes"
	"encoding/json"
	"io"
)

// maxLine bounds a message of a server that is wrapped, in bytes.
const maxLine = 16 << 20

// Lines passes a server's messages on: lines with a JSON object of JSON-RPC 2.0, as stdio
// has them. A server is a stranger: what else it writes, which would break a client, goes
// to Other, and so does a line that is too long.
type Lines struct {
	Out, Other io.Writer

	line []byte
	skip bool // the line was too long
}

// Write implements io.Writer.
func (l *Lines) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		part := b
		if i >= 0 {
			part = b[:i]
		}
		switch {
		case l.skip:
		case len(l.line)+len(part) > maxLine:
			l.line, l.skip = nil, true
			if _, err := io.WriteString(l.Other, "axo: a message of more than 16 MiB is not passed on\n"); err != nil {
				return 0, err
			}
		default:
			l.line = append(l.line, part...)
		}
		if i < 0 {
			return n, nil
		}
		if err := l.end(); err != nil {
			return 0, err
		}
		b = b[i+1:]
	}
	return n, nil
}

func (l *Lines) end() error {
	line, skip := l.line, l.skip
	l.line, l.skip = l.line[:0], false
	if skip || len(bytes.TrimSpace(line)) == 0 {
		return nil
	}
	out := l.Other
	if message(line) {
		out = l.Out
	}
	_, err := out.Write(append(line, '\n'))
	return err
}

// message reports whether a line is of JSON-RPC: an object, or a batch of them, which
// revision 2025-03-26 has.
func message(line []byte) bool {
	type head struct {
		Version string `json:"jsonrpc"`
	}
	var one head
	if json.Unmarshal(line, &one) == nil {
		return one.Version == "2.0"
	}
	var list []head
	if json.Unmarshal(line, &list) != nil {
		return false
	}
	for _, h := range list {
		if h.Version != "2.0" {
			return false
		}
	}
	return len(list) > 0
}
