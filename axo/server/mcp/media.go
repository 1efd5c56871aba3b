package mcp

import (
	"mime"
	"net/http"
	"path"
)

// mediaType goes by the name's ending, else by the content.
func mediaType(name string, b []byte) string {
	if t := mime.TypeByExtension(path.Ext(name)); t != "" {
		return t
	}
	return http.DetectContentType(b)
}
