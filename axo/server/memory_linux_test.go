package server_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/axocoatl/isolation/axo/server"
	"github.com/axocoatl/isolation/driver/mem"
)

// TestMemoryIsBounded: what the host is for is not given away twice, whoever asks and for
// what, nor by the next daemon; what is given back can be had again.
func TestMemoryIsBounded(t *testing.T) {
	dir, host := t.TempDir(), mem.NewHost()
	bounded := func(c *server.Config) { c.Admission = server.Admission{Memory: 100 << 20, Wait: 10 * time.Millisecond} }
	d := run(t, dir, host, bounded)
	key := secret(t, dir)
	ask := func(want int, method, path, body string) {
		t.Helper()
		status, header, answer := ask(t, "", method, d.addresses[1]+path, body, "X-API-Key", key, "Content-Type", "application/json")
		if status != want {
			t.Errorf("%s %s: %d, want %d: %s", method, path, status, want, answer)
		}
		if status == http.StatusServiceUnavailable && header.Get("Retry-After") == "" {
			t.Errorf("%s %s: nobody says when to come back: %v", method, path, header)
		}
	}
	const (
		spec  = `"spec":{"requirement":"Arbitrary","resources":{"memory_bytes":62914560}}` // 60 MiB
		run60 = `{` + spec + `,"process":{"args":["say"]}}`
		never = `{"spec":{"requirement":"Arbitrary","resources":{"memory_bytes":104857601}},"process":{"args":["say"]}}`
	)
	ask(http.StatusOK, "POST", "/v1/runs", run60)
	ask(http.StatusOK, "POST", "/v1/runs", run60) // the first has given back what it had
	ask(http.StatusBadRequest, "POST", "/v1/runs", never)
	ask(http.StatusCreated, "POST", "/v1/sandboxes", `{"id":"box",`+spec+`}`)
	refused := func() {
		t.Helper()
		ask(http.StatusServiceUnavailable, "POST", "/v1/sandboxes", `{"id":"more",`+spec+`}`)
		ask(http.StatusServiceUnavailable, "POST", "/v1/runs", run60)
		eventually(t, dir, 60<<20, "axo_queue_taken", "queue", "memory")
	}
	refused()
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	d = run(t, dir, host, bounded)
	refused()
	ask(http.StatusNoContent, "DELETE", "/v1/sandboxes/box", "")
	ask(http.StatusCreated, "POST", "/v1/sandboxes", `{"id":"more",`+spec+`}`)
	ask(http.StatusNoContent, "DELETE", "/v1/sandboxes/more", "")
	ask(http.StatusOK, "POST", "/v1/runs", run60)
	eventually(t, dir, 0, "axo_queue_taken", "queue", "memory")
}
