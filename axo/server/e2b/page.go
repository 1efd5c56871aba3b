package e2b

import (
	"html/template"
	"net/http"
	"sync"

	"github.com/axocoatl/isolation/internal/form"
)

// portProblem is why a request does not reach a sandbox's port, as E2B's proxy says it.
type portProblem struct {
	SandboxID     string `json:"sandboxId"`
	Message       string `json:"message"`
	Port          uint16 `json:"port,omitempty"`
	Code          int    `json:"code"`
	CanAutoResume *bool  `json:"canAutoResume,omitempty"`
}

// browser is in the User-Agent of what shows a page to a person.
var browser = form.Of(`(?i)mozilla|chrome|safari|firefox|edge|opera|msie`)

var page = sync.OnceValue(func() *template.Template { return template.Must(template.New("").Parse(pageText)) })

const pageText = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{.Message}}</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:36em;margin:15vh auto;padding:0 1em}code{background:#8882;padding:.1em .3em}</style>
<h1>{{.Code}}</h1>
<p>{{.Message}}.</p>
<p>Sandbox <code>{{.SandboxID}}</code>{{if .Port}}, port <code>{{.Port}}</code>: nothing listens there, or not on <code>localhost</code>{{end}}.</p>
</html>
`

// writeProblem answers with JSON, or to a browser with a page.
func writeProblem(w http.ResponseWriter, r *http.Request, p portProblem) {
	if !browser().MatchString(r.UserAgent()) {
		writeJSON(w, p.Code, p)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	w.WriteHeader(p.Code)
	_ = page().Execute(w, p)
}
