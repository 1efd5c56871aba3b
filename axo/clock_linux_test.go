package main

import (
	"database/sql"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/audit"
)

// TestDaemonAndAClockThatIsSet has what a daemon wrote down be what it would have written
// had the host's clock been otherwise then, which to the next daemon is as if the clock
// had been set in between.
func TestDaemonAndAClockThatIsSet(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	if !haveContainers(t, []string{"AXO_GUEST_PATH=" + filepath.Join(h.dir, "axo-guest")}) {
		t.Skip("SKIPPED, NOT PROVED: this host has no containers")
	}
	d := h.serve(t, "", "--warm", "0")
	names := []string{"forward", "back", "over"}
	for _, name := range names {
		h.must(t, "create", "--id", name, "--life", "2h")
	}
	if err := d.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-d.ended
	const years = 10 * 365 * 24 * time.Hour
	for name, by := range map[string]struct{ wall, up time.Duration }{"forward": {-years, 0}, "back": {years, 0}, "over": {years, -3 * time.Hour}} {
		files := h.glob(t, filepath.Join(h.state, "serve", name+".*", "session.json"))
		if len(files) != 1 {
			t.Fatalf("%v", files)
		}
		b, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		var rec map[string]any
		if err := json.Unmarshal(b, &rec); err != nil {
			t.Fatal(err)
		}
		moved := func(v any) string {
			at, err := time.Parse(time.RFC3339Nano, v.(string))
			if err != nil {
				t.Fatal(err)
			}
			return at.Add(by.wall).Format(time.RFC3339Nano)
		}
		at := rec["at"].(map[string]any)
		rec["expires"], at["wall"] = moved(rec["expires"]), moved(at["wall"])
		at["up"] = int64(at["up"].(float64)) + int64(by.up)
		if at["up"].(int64) < 0 && by.up < 0 {
			t.Skip("SKIPPED, NOT PROVED: this host has not been up for as long as a sandbox is to have lived")
		}
		if b, err = json.Marshal(rec); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(files[0], b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	db, err := sql.Open("sqlite", audit.Path(h.state))
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.Exec("UPDATE clock SET wall = wall - ?", years.Microseconds())
	if cerr := db.Close(); err != nil || cerr != nil {
		t.Fatal(err, cerr)
	}

	d = h.serve(t, "", "--warm", "0")
	eventually(t, "the sandbox to go whose time is over", func() bool { return len(h.glob(t, filepath.Join(h.state, "serve", "over.*"))) == 0 })
	var list []api.Sandbox
	if err := json.Unmarshal([]byte(h.must(t, "ps", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 {
		t.Errorf("%d sandboxes: %+v", len(list), list)
	}
	for _, s := range list {
		if left := time.Until(s.Expires); left < time.Hour || left > 2*time.Hour {
			t.Errorf("%s has %v left", s.ID, left)
		}
		if out := h.must(t, "exec", s.ID, "--", "echo", "lives"); out != "lives\n" {
			t.Errorf("%s: %q", s.ID, out)
		}
		h.must(t, "rm", s.ID)
	}
	if out := h.must(t, "audit", "ls", "--kind", audit.KindClock); strings.Count(out, "87600h0m") != 1 {
		t.Errorf("the audit log does not tell that the clock was set:\n%s", out)
	}
	h.must(t, "audit", "verify")
	d.stop(t)
	if !strings.Contains(d.log.String(), "the host's clock was set") {
		t.Errorf("nobody is told that the clock was set:\n%s", d.log)
	}
}
