package server_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/axocoatl/isolation/axo/audit"
	"github.com/axocoatl/isolation/axo/server"
	"github.com/axocoatl/isolation/axo/tenant"
	"github.com/axocoatl/isolation/driver/mem"
)

// TestAuditTellsTheKey: whichever way something comes, what is written down of it has the
// key by which it was asked for. Each interface has a key of its own here, of one tenant.
func TestAuditTellsTheKey(t *testing.T) {
	dir := t.TempDir()
	log, err := audit.Open(audit.Path(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	d := run(t, dir, mem.NewHost(), func(c *server.Config) { c.E2B, c.Auditor = "127.0.0.1:0", &server.Auditor{Log: log} })
	keys, err := tenant.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	key := func() (string, string) {
		secret, k, err := keys.Add("t", tenant.RoleUser)
		if err != nil {
			t.Fatal(err)
		}
		return secret, k.ID
	}
	rest, restID := key()
	mcp, mcpID := key()
	e2b, e2bID := key()
	send := func(want int, method, url, body string, headers ...string) []byte {
		t.Helper()
		status, _, answer := ask(t, "", method, url, body, append(headers, "Content-Type", "application/json")...)
		if status != want {
			t.Fatalf("%s %s: %d %s", method, url, status, answer)
		}
		return []byte(answer)
	}
	tool := func(name string, in any) (id string) {
		t.Helper()
		arguments, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		b := send(http.StatusOK, "POST", d.addresses[1]+"/mcp", fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":%q,"arguments":%s}}`, name, arguments),
			"Authorization", "Bearer "+mcp, "Accept", "application/json, text/event-stream")
		i := slices.Index(b, '{')
		var out struct {
			Result struct {
				IsError           bool
				StructuredContent struct {
					ID string `json:"sandbox_id"`
				}
			}
		}
		if err := json.NewDecoder(bytes.NewReader(b[max(i, 0):])).Decode(&out); err != nil {
			t.Fatalf("%s: %v: %s", name, err, b)
		}
		return out.Result.StructuredContent.ID
	}

	const spec = `"spec":{"requirement":"Arbitrary"}`
	send(http.StatusOK, "POST", d.addresses[1]+"/v1/runs", `{`+spec+`,"process":{"args":["say"]}}`, "X-API-Key", rest)
	send(http.StatusAccepted, "POST", d.addresses[1]+"/v1/runs", `{`+spec+`,"process":{"args":["say"]},"async":true}`, "X-API-Key", rest)
	send(http.StatusCreated, "POST", d.addresses[1]+"/v1/sandboxes", `{"id":"rest",`+spec+`}`, "X-API-Key", rest)
	send(http.StatusNoContent, "DELETE", d.addresses[1]+"/v1/sandboxes/rest", "", "X-API-Key", rest)
	tool("run_shell", map[string]any{"command": "true"}) // this host has no shell, and it was asked for
	box := tool("create_sandbox", map[string]any{})
	tool("exec", map[string]any{"sandbox_id": box, "command": "true"})
	tool("delete_sandbox", map[string]any{"sandbox_id": box})
	var made struct{ SandboxID, EnvdAccessToken string }
	if err := json.Unmarshal(send(http.StatusCreated, "POST", d.addresses[2]+"/sandboxes", `{"templateID":"base"}`, "X-API-Key", e2b), &made); err != nil {
		t.Fatal(err)
	}
	send(http.StatusNoContent, "DELETE", d.addresses[2]+"/sandboxes/"+made.SandboxID, "", "X-API-Key", e2b)

	var all []audit.Entry
	runs := func() int {
		n := 0
		for _, e := range all {
			if e.Kind == "run" {
				n++
			}
		}
		return n
	}
	for range 600 { // a run that nobody waits for begins after the answer
		if all, err = log.List(t.Context(), audit.Query{Tenant: "t"}); err != nil {
			t.Fatal(err)
		}
		if runs() == 3 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if runs() != 3 {
		t.Errorf("%d runs, want 3: %+v", runs(), all)
	}
	count := map[string]int{}
	for _, e := range all {
		var want string
		switch {
		case e.Kind == "ran" || e.Kind == "exited":
			continue // they follow by their subject
		case e.Subject == box:
			want = mcpID
		case e.Subject == made.SandboxID:
			want = e2bID
		case e.Kind == "run" && e.Fields["args"] != `["say"]`:
			want = mcpID
		default:
			want = restID
		}
		if e.Key != want {
			t.Errorf("%s of %s has the key %q, want %q", e.Kind, e.Subject, e.Key, want)
		}
		count[e.Kind+" "+want]++
	}
	for what, n := range map[string]int{
		"run " + restID: 2, "run " + mcpID: 1, "created " + restID: 1, "created " + mcpID: 1, "created " + e2bID: 1,
		"deleted " + restID: 1, "deleted " + mcpID: 1, "deleted " + e2bID: 1,
	} {
		if count[what] != n {
			t.Errorf("%d entries %s, want %d", count[what], what, n)
		}
	}
}
