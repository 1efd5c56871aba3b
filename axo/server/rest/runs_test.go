package rest_test

import (
	"bytes"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/client"
	"github.com/axocoatl/isolation/engine"
)

func ask(args ...string) api.Run {
	return api.Run{Spec: isolation.Spec{Requirement: isolation.Arbitrary}, Process: isolation.ProcessSpec{Args: args}}
}

func TestAsyncRun(t *testing.T) {
	s := start(t)
	in := ask("echo")
	in.Async, in.Input = true, []byte("hello")
	var r api.RunStatus
	if st := s.call(t, "a", "POST", "/v1/runs", in, &r); st != 202 || r.ID == "" {
		t.Fatalf("%d %+v", st, r)
	}
	base := "/v1/runs/" + r.ID
	if st := s.call(t, "a", "GET", base+"/wait", nil, &r); st != 200 || r.Running || r.Result == nil || r.Result.Stdout.String() != "hello" || r.Stdout.To != 5 {
		t.Fatalf("%d %+v", st, r)
	}
	if r.Result.ID != r.ID || r.Result.Engine != "mem" || r.Result.Exit.Reason != isolation.ReasonExited {
		t.Errorf("%+v", r.Result)
	}
	var text []byte
	s.call(t, "a", "GET", base+"/stream", nil, &text, "Accept", "text/event-stream", "Last-Event-ID", "2:0")
	if !strings.Contains(string(text), "event: stdout\nid: 5:0\ndata: bGxv\n\n") || strings.Count(string(text), "event: run\n") != 2 {
		t.Errorf("%s", text)
	}
	for from, status := range map[string]int{"?stdout=6": 400, "?stdout=5": 200} {
		if st := s.call(t, "a", "GET", base+"/stream"+from, nil, nil); st != status {
			t.Errorf("%s: %d", from, st)
		}
	}
	var all api.RunStatuses
	if st := s.call(t, "a", "GET", "/v1/runs", nil, &all); st != 200 || len(all.Runs) != 1 || all.Runs[0].ID != r.ID {
		t.Errorf("%d %+v", st, all)
	}
	if st := s.call(t, "a", "DELETE", base, nil, nil); st != 204 {
		t.Errorf("delete: %d", st)
	}
	if st := s.call(t, "a", "GET", base, nil, nil); st != 404 {
		t.Errorf("after delete: %d", st)
	}
	// One that no engine may run is refused at once, and nothing is known of it.
	in.Spec.Requirement = isolation.WasmCompiled
	var p api.Problem
	if st := s.call(t, "a", "POST", "/v1/runs", in, &p); st != 400 && st != 501 || p.Outcome != string(isolation.NotStarted) {
		t.Errorf("%d %+v", st, p)
	}
	if s.call(t, "a", "GET", "/v1/runs", nil, &all); len(all.Runs) != 0 {
		t.Errorf("%+v", all)
	}
}

// TestStreamedRun: a run's output comes as it is written; who loses the connection goes
// on where he was, and the run has not noticed.
func TestStreamedRun(t *testing.T) {
	s := start(t)
	var stream []byte
	in := ask("both")
	if st := s.call(t, "a", "POST", "/v1/runs", in, &stream, "Accept", api.StreamType); st != 200 {
		t.Fatalf("%d %s", st, stream)
	}
	out, last := frames(t, stream)
	if out[api.FrameStdout] != "out\n" || out[api.FrameStderr] != "err\n" || !strings.Contains(last, `"running":false`) || strings.Contains(last, "out\\n") {
		t.Errorf("%v %s", out, last)
	}

	req, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+"/v1/runs", strings.NewReader(
		`{"spec":{"requirement":"Arbitrary"},"process":{"args":["ready","100"]}}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.keys["a"])
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	where := resp.Header.Get("Location")
	buf := make([]byte, 1<<16)
	var got string
	for !strings.Contains(got, "event: stdout") {
		n, err := resp.Body.Read(buf)
		got += string(buf[:n])
		if err != nil {
			t.Fatalf("%v %s", err, got)
		}
	}
	resp.Body.Close()
	var r api.RunStatus
	if st := s.call(t, "a", "GET", where, nil, &r); st != 200 || !r.Running {
		t.Fatalf("who went away has ended it: %d %+v", st, r)
	}
	if st := s.call(t, "a", "POST", where+"/cancel", nil, nil); st != 204 {
		t.Errorf("cancel: %d", st)
	}
	s.call(t, "a", "GET", where+"/stream", nil, &stream, "Accept", api.StreamType)
	if out, last := frames(t, stream); out[api.FrameStdout] != "ready\n" || !strings.Contains(last, `"reason":"canceled"`) {
		t.Errorf("%v %s", out, last)
	}
}

// frames reads a stream: the output by kind, and the last value.
func frames(t *testing.T, stream []byte) (out map[api.FrameKind]string, last string) {
	t.Helper()
	out = map[api.FrameKind]string{}
	for r := bytes.NewReader(stream); r.Len() > 0; {
		k, b, err := api.ReadFrame(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if k == api.FrameRun || k == api.FrameProblem {
			last = string(b)
		} else {
			out[k] += string(b)
		}
	}
	return out, last
}

// TestIdempotencyKey: a request that is repeated, at the same time or later, runs its
// program once.
func TestIdempotencyKey(t *testing.T) {
	s := start(t)
	in := ask("sleep", "0.1")
	var mu sync.Mutex
	ids := map[string]int{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			var r engine.Result
			if st := s.call(t, "a", "POST", "/v1/runs", in, &r, "Idempotency-Key", "k"); st != 200 {
				t.Errorf("%d", st)
			}
			mu.Lock()
			ids[r.ID]++
			mu.Unlock()
		})
	}
	wg.Wait()
	if len(ids) != 1 {
		t.Errorf("%d runs of one request", len(ids))
	}
	var later engine.Result
	if s.call(t, "a", "POST", "/v1/runs", in, &later, "Idempotency-Key", "k"); ids[later.ID] != 8 {
		t.Errorf("it ran again: %+v", later)
	}
	var p api.Problem
	if st := s.call(t, "a", "POST", "/v1/runs", ask("exit7"), &p, "Idempotency-Key", "k"); st != 409 || p.Outcome != string(isolation.NotStarted) {
		t.Errorf("another request with the key: %d %+v", st, p)
	}
	var theirs engine.Result
	if s.call(t, "b", "POST", "/v1/runs", in, &theirs, "Idempotency-Key", "k"); theirs.ID == "" || ids[theirs.ID] != 0 {
		t.Errorf("another tenant's: %+v", theirs)
	}
	if st := s.call(t, "a", "POST", "/v1/runs", in, nil, "Idempotency-Key", strings.Repeat("k", 300)); st != 400 {
		t.Errorf("a long key: %d", st)
	}
	// One whose program never ran is tried again.
	for range 2 {
		if st := s.call(t, "a", "POST", "/v1/runs", ask("no such"), &p, "Idempotency-Key", "n"); st != 404 {
			t.Errorf("%d %+v", st, p)
		}
	}
	var all api.RunStatuses
	s.call(t, "a", "GET", "/v1/runs", nil, &all)
	tried := 0
	for _, r := range all.Runs {
		if r.Key == "n" && r.Problem != nil {
			tried++
		}
	}
	if tried != 2 {
		t.Errorf("%d times tried: %+v", tried, all)
	}
}

// TestClientRuns: the client goes on with a run where the connection broke off.
func TestClientRuns(t *testing.T) {
	s := start(t)
	d, err := client.New(client.Config{Address: "unix://" + s.socket, Key: s.keys["a"]})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	res, err := d.RunOnce(t.Context(), ask("exit7"), "k")
	if err != nil || res.Exit.Code != 7 {
		t.Fatalf("%+v %v", res, err)
	}
	again, err := d.RunOnce(t.Context(), ask("exit7"), "k")
	if err != nil || again.ID != res.ID {
		t.Errorf("%+v %v", again, err)
	}
	r, err := d.StartRun(t.Context(), ask("ready", "100"), "")
	if err != nil || !r.Running {
		t.Fatalf("%+v %v", r, err)
	}
	var out bytes.Buffer
	seen := make(chan struct{}, 1)
	cut := writer(func(p []byte) (int, error) {
		out.Write(p)
		s.CloseClientConnections() // those over TCP
		seen <- struct{}{}
		return len(p), nil
	})
	over, err := client.New(client.Config{Address: s.URL, Key: s.keys["a"]})
	if err != nil {
		t.Fatal(err)
	}
	defer over.Close()
	go func() {
		<-seen
		if err := d.CancelRun(t.Context(), r.ID); err != nil {
			t.Error(err)
		}
	}()
	last, err := over.FollowRun(t.Context(), r.ID, isolation.Offsets{}, cut, nil)
	if err != nil || last.Running || last.Result.Exit.Reason != isolation.ReasonCanceled || out.String() != "ready\n" {
		t.Errorf("%+v %v %q", last, err, out.String())
	}
	if w, err := d.WaitRun(t.Context(), r.ID); err != nil || w.Result.Stdout.String() != "ready\n" {
		t.Errorf("%+v %v", w, err)
	}
	if list, err := d.Runs(t.Context()); err != nil || len(list) != 2 {
		t.Errorf("%+v %v", list, err)
	}
	if err := d.DeleteRun(t.Context(), r.ID); err != nil {
		t.Error(err)
	}
	_, err = d.WaitRun(t.Context(), r.ID)
	if !errors.Is(err, isolation.ErrNotFound) {
		t.Errorf("%v", err)
	}
	x, err := d.Explain(t.Context(), ask("exit7"))
	if err != nil || x.Engine != "mem" {
		t.Errorf("%+v %v", x, err)
	}
	bad := ask("exit7")
	bad.Engine = "none such"
	_, err = d.Explain(t.Context(), bad)
	var refused *engine.RefusedError
	if !errors.As(err, &refused) {
		t.Errorf("%v", err)
	}
	_, err = d.Pools(t.Context())
	if !errors.Is(err, isolation.ErrPermissionDenied) {
		t.Errorf("%v", err)
	}
	if tiers, err := d.Tiers(t.Context(), false); err != nil || len(tiers) != 1 {
		t.Errorf("%+v %v", tiers, err)
	}
	if list, err := d.Images(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("%+v %v", list, err)
	}
	if list, err := d.Templates(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("%+v %v", list, err)
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }
