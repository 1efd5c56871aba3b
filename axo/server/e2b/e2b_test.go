package e2b

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/axocoatl/isolation"
	fspb "github.com/axocoatl/isolation/axo/server/e2b/internal/filesystempb"
	pb "github.com/axocoatl/isolation/axo/server/e2b/internal/processpb"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/axo/tenant"
	"github.com/axocoatl/isolation/driver/mem"
	"github.com/axocoatl/isolation/engine"
)

type server struct {
	*httptest.Server
	keys   map[string]string // by tenant
	dir    string
	driver *mem.Driver
	h      *Server
}

// start serves sandboxes in memory.
func start(t *testing.T) *server {
	t.Helper()
	var reg isolation.Registry
	d := mem.New(mem.Config{Features: func(f *isolation.Features) { f.Tier = isolation.TierOCI }})
	reg.Add(isolation.TierOCI, d)
	e, err := engine.New(engine.Config{Registry: reg})
	if err != nil {
		t.Fatal(err)
	}
	m, err := session.Open(t.Context(), session.Config{Engine: e, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	s := &server{keys: map[string]string{}, dir: t.TempDir(), driver: d}
	keys, err := tenant.Open(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, who := range []string{"a", "b"} {
		if s.keys[who], _, err = keys.Add(who, tenant.RoleUser); err != nil {
			t.Fatal(err)
		}
	}
	if s.keys["viewer"], _, err = keys.Add("a", tenant.RoleViewer); err != nil {
		t.Fatal(err)
	}
	h, err := New(Config{Sessions: m, Find: keys.Find, StateDir: s.dir, Domain: "boxes.example:7443", MaxTimeout: time.Hour, Keep: 2 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	s.Server, s.h = httptest.NewServer(h), h
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
		h.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		var errs []error
		for _, sn := range m.All() {
			errs = append(errs, sn.Delete(ctx))
		}
		if err := errors.Join(append(errs, m.Close(ctx))...); err != nil {
			t.Error(err)
		}
	})
	return s
}

// call sends v as JSON, or a string as it is, and reads JSON into out, or all of it
// into a *[]byte. A header Host is the request's host.
func (s *server) call(t *testing.T, who, method, path string, v, out any, headers ...string) *http.Response {
	t.Helper()
	var in io.Reader
	switch v := v.(type) {
	case nil:
	case string:
		in = strings.NewReader(v)
	default:
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		in = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, in)
	if err != nil {
		t.Fatal(err)
	}
	if who != "" {
		r.Header.Set("X-API-Key", s.keys[who])
	}
	for i := 0; i+1 < len(headers); i += 2 {
		if headers[i] == "Host" {
			r.Host = headers[i+1]
		}
		r.Header.Set(headers[i], headers[i+1])
	}
	resp, err := s.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	switch out := out.(type) {
	case nil:
	case *[]byte:
		*out = b
	default:
		if err := json.Unmarshal(b, out); err != nil {
			t.Fatalf("%s %s: %s: %v", method, path, b, err)
		}
	}
	return resp
}

func (s *server) create(t *testing.T, who string, more map[string]any) sandbox {
	t.Helper()
	body := map[string]any{"templateID": "base"}
	for k, v := range more {
		body[k] = v
	}
	var b sandbox
	if r := s.call(t, who, "POST", "/v2/sandboxes", body, &b); r.StatusCode != 201 || b.SandboxID == "" || b.EnvdAccessToken == "" {
		t.Fatalf("%d %+v", r.StatusCode, b)
	}
	return b
}

// in are the headers of a request for what is in a sandbox.
func in(b sandbox) []string {
	return []string{"E2b-Sandbox-Id", b.SandboxID, "E2b-Sandbox-Port", "49983", "X-Access-Token", b.EnvdAccessToken}
}

func TestControlPlane(t *testing.T) {
	s := start(t)
	a := s.create(t, "a", map[string]any{"metadata": map[string]string{"k": "v w"}, "timeout": 100})
	b := s.create(t, "a", nil)
	var list []sandbox
	if s.call(t, "a", "GET", "/sandboxes?metadata=k%3Dv%2Bw", nil, &list); len(list) != 1 || list[0].SandboxID != a.SandboxID {
		t.Errorf("by metadata: %+v", list)
	}
	r := s.call(t, "a", "GET", "/v2/sandboxes?limit=1", nil, &list)
	if next := r.Header.Get("X-Next-Token"); len(list) != 1 || list[0].SandboxID != b.SandboxID || next == "" {
		t.Errorf("first page: %+v %q", list, next)
	} else if r = s.call(t, "a", "GET", "/v2/sandboxes?limit=1&nextToken="+next, nil, &list); len(list) != 1 || list[0].SandboxID != a.SandboxID || r.Header.Get("X-Next-Token") != "" {
		t.Errorf("second page: %+v %v", list, r.Header)
	}
	var one sandbox
	if s.call(t, "a", "GET", "/sandboxes/"+a.SandboxID, nil, &one); one.State != "running" || one.EnvdVersion != envdVersion || one.EndAt.Sub(*one.StartedAt) != 100*time.Second {
		t.Errorf("%+v", one)
	}
	for _, step := range []struct {
		path, body string
		status     int
		ends       time.Duration // from now, at least
	}{
		{"/timeout", `{"timeout":1000}`, 204, 900 * time.Second},
		{"/refreshes", `{"duration":60}`, 204, 900 * time.Second},
		{"/connect", `{"timeout":10}`, 200, 900 * time.Second},
		{"/pause", ``, 204, 7000 * time.Second},
		{"/pause", ``, 409, 0},
		{"/connect", `{"timeout":60}`, 201, 50 * time.Second},
		{"/pause", `{"memory":false}`, 400, 0},
		{"/timeout", `{"timeout":3601}`, 400, 0},
		{"/timeout", `{"timeout":-1}`, 400, 0},
		{"/timeout", `{}`, 400, 0},
		{"/fork", `{"count":0}`, 400, 0},
	} {
		var p problem
		var text []byte
		if r := s.call(t, "a", "POST", "/sandboxes/"+a.SandboxID+step.path, step.body, &text); r.StatusCode != step.status {
			t.Errorf("%s %s: %d %s", step.path, step.body, r.StatusCode, text)
		} else if r.StatusCode >= 400 && (json.Unmarshal(text, &p) != nil || p.Code != step.status || p.Message == "") {
			t.Errorf("%s %s: %s", step.path, step.body, text)
		}
		if s.call(t, "a", "GET", "/sandboxes/"+a.SandboxID, nil, &one); step.ends > 0 && time.Until(*one.EndAt) < step.ends {
			t.Errorf("%s: ends in %v, want at least %v", step.path, time.Until(*one.EndAt), step.ends)
		}
	}
	if r := s.call(t, "a", "DELETE", "/sandboxes/"+a.SandboxID, nil, nil); r.StatusCode != 204 {
		t.Errorf("kill: %d", r.StatusCode)
	}
	var p problem
	if r := s.call(t, "a", "DELETE", "/sandboxes/"+a.SandboxID, nil, &p); r.StatusCode != 404 || p.Code != 404 {
		t.Errorf("killed again: %d %+v", r.StatusCode, p)
	}
	if r := s.call(t, "", "GET", "/health", nil, nil, in(a)...); r.StatusCode != 502 {
		t.Errorf("health of what is gone: %d", r.StatusCode)
	}
}

func TestSnapshotsAndForks(t *testing.T) {
	s := start(t)
	a := s.create(t, "a", map[string]any{"envVars": map[string]string{"A": "1", "B": "1"}})
	write := func(b sandbox, text string) {
		t.Helper()
		if r := s.call(t, "", "POST", "/files?path=/tmp/f", text, nil, append(in(b), "Content-Type", "application/octet-stream")...); r.StatusCode != 200 {
			t.Fatalf("%d", r.StatusCode)
		}
	}
	holds := func(what string, b sandbox, want string) {
		t.Helper()
		var text []byte
		if s.call(t, "", "GET", "/files?path=/tmp/f", nil, &text, in(b)...); string(text) != want {
			t.Errorf("%s: %s, want %s", what, text, want)
		}
	}
	write(a, "then")
	var x, y snapshotInfo
	if r := s.call(t, "a", "POST", "/sandboxes/"+a.SandboxID+"/snapshots", `{"name":"one"}`, &x); r.StatusCode != 201 || len(x.Names) != 1 || x.Names[0] != "one" {
		t.Fatalf("%d %+v", r.StatusCode, x)
	}
	write(a, "now")
	s.call(t, "a", "POST", "/sandboxes/"+a.SandboxID+"/snapshots", `{}`, &y)
	var forks []struct{ Sandbox sandbox }
	if r := s.call(t, "a", "POST", "/sandboxes/"+a.SandboxID+"/fork", `{"count":2,"timeout":100}`, &forks); r.StatusCode != 201 || len(forks) != 2 || forks[0].Sandbox.EnvdAccessToken == a.EnvdAccessToken {
		t.Fatalf("%d %+v", r.StatusCode, forks)
	}
	holds("a fork", forks[1].Sandbox, "now")
	for _, name := range []string{x.SnapshotID, "one"} {
		b := s.create(t, "a", map[string]any{"templateID": name, "envVars": map[string]string{"B": "2"}})
		holds(name, b, "then")
		c := pb.NewProcessClient(&http.Client{Transport: bearer{in(b), ""}}, s.URL)
		stream, err := c.Start(t.Context(), connect.NewRequest(&pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "env"}}))
		if err != nil {
			t.Fatal(err)
		}
		var out string
		for stream.Receive() {
			out += string(stream.Msg().GetEvent().GetData().GetStdout())
		}
		if !strings.Contains(out, "A=1\x00") || !strings.Contains(out, "B=2\x00") {
			t.Errorf("%q", out)
		}
	}
	var list []snapshotInfo
	r := s.call(t, "a", "GET", "/snapshots?limit=1", nil, &list)
	if next := r.Header.Get("X-Next-Token"); len(list) != 1 || list[0].SnapshotID != x.SnapshotID || next == "" {
		t.Errorf("%+v %q", list, next)
	} else if r = s.call(t, "a", "GET", "/snapshots?limit=1&nextToken="+next, nil, &list); len(list) != 1 || list[0].SnapshotID != y.SnapshotID || r.Header.Get("X-Next-Token") != "" {
		t.Errorf("%+v %v", list, r.Header)
	}
	for _, c := range []struct {
		who, method, path, body string
		status                  int
	}{
		{"b", "POST", "/sandboxes", `{"templateID":"one"}`, 404},
		{"b", "DELETE", "/templates/one", ``, 404},
		{"a", "POST", "/sandboxes", `{"templateID":"one","metadata":{"axo.tier":"microvm"}}`, 400},
		{"a", "DELETE", "/templates/base", ``, 404},
		{"a", "DELETE", "/templates/one", ``, 204},
		{"a", "DELETE", "/templates/one", ``, 404},
		{"a", "DELETE", "/templates/" + y.SnapshotID, ``, 204},
	} {
		if r := s.call(t, c.who, c.method, c.path, c.body, nil); r.StatusCode != c.status {
			t.Errorf("%+v: %d", c, r.StatusCode)
		}
	}
}

func TestWhatIsNotSupportedIsRefused(t *testing.T) {
	s := start(t)
	for body, status := range map[string]int{
		`{"templateID":"base","autoPause":true,"autoPauseMemory":false}`:    400,
		`{"templateID":"base","autoResume":{"enabled":true}}`:               400,
		`{"templateID":"base","network":{"allowOut":["1.1.1.1"]}}`:          403,
		`{"templateID":"base","network":{"allowOut":["a:80"]}}`:             400,
		`{"templateID":"base","network":{"allowOut":["http://a"]}}`:         400,
		`{"templateID":"base","network":{"denyOut":["example.org"]}}`:       400,
		`{"templateID":"base","network":{"rules":{"a":[{}]}}}`:              400,
		`{"templateID":"base","network":{"egressProxy":{"address":"a:1"}}}`: 400,
		`{"templateID":"base","volumeMounts":[{"name":"v","path":"/v"}]}`:   400,
		`{"templateID":"base","mcp":{"x":{}}}`:                              400,
		`{"templateID":"base","fieldOfTomorrow":1}`:                         400,
		`{"templateID":"base","metadata":{"axo.tier":"none"}}`:              400,
		`{"templateID":"base","envVars":{"A=B":"c"}}`:                       400,
		`{"templateID":"no-such"}`:                                          404,
		`{"templateID":`:                                                    400,
		`{"templateID":"base","autoPause":false,"mcp":null,"secure":false}`: 201,
	} {
		var p problem
		if r := s.call(t, "a", "POST", "/sandboxes", body, &p); r.StatusCode != status || status != 201 && p.Code != status {
			t.Errorf("%s: %d %+v", body, r.StatusCode, p)
		}
	}
	var p problem
	for _, path := range []string{"/v3/templates", "/volumes", "/secrets"} {
		if r := s.call(t, "a", "POST", path, `{}`, &p); r.StatusCode != 501 || p.Code != 501 {
			t.Errorf("%s: %d %+v", path, r.StatusCode, p)
		}
	}
}

// Who has not made a sandbox gets at nothing of it, and learns nothing.
func TestOthersSandboxes(t *testing.T) {
	s := start(t)
	mine, other := s.create(t, "a", nil), s.create(t, "b", nil)
	base := "/sandboxes/" + mine.SandboxID
	var list []sandbox
	if s.call(t, "b", "GET", "/v2/sandboxes", nil, &list); len(list) != 1 || list[0].SandboxID != other.SandboxID {
		t.Errorf("%+v", list)
	}
	for _, c := range [][2]string{{"GET", base}, {"DELETE", base}, {"POST", base + "/connect"}, {"POST", base + "/pause"}, {"GET", base + "/logs"}} {
		if r := s.call(t, "b", c[0], c[1], nil, nil); r.StatusCode != 404 {
			t.Errorf("%v: %d", c, r.StatusCode)
		}
		if r := s.call(t, "", c[0], c[1], nil, nil); r.StatusCode != 401 {
			t.Errorf("%v without a key: %d", c, r.StatusCode)
		}
	}
	stolen := mine
	for _, token := range []string{"", other.EnvdAccessToken, s.keys["a"], strings.Repeat("0", 64)} {
		stolen.EnvdAccessToken = token
		for _, path := range []string{"/process.Process/List", "/filesystem.Filesystem/ListDir", "/files?path=x"} {
			if r := s.call(t, "b", "POST", path, `{}`, nil, append(in(stolen), "Content-Type", "application/json")...); r.StatusCode != 401 {
				t.Errorf("token %.10q, %s: %d", token, path, r.StatusCode)
			}
		}
	}
	if r := s.call(t, "", "GET", "/init", nil, nil, in(mine)...); r.StatusCode != 404 {
		t.Errorf("/init: %d", r.StatusCode)
	}
	// Its ports are open to who knows its name, unless its maker says otherwise.
	private := s.create(t, "a", map[string]any{"network": map[string]any{"allowPublicTraffic": false}})
	at := []string{"E2b-Sandbox-Id", private.SandboxID, "E2b-Sandbox-Port", "80"}
	if r := s.call(t, "", "GET", "/", nil, nil, at...); r.StatusCode != 403 {
		t.Errorf("a private port: %d", r.StatusCode)
	}
	if r := s.call(t, "", "GET", "/", nil, nil, append(at, "E2b-Traffic-Access-Token", private.TrafficAccessToken)...); r.StatusCode != 502 {
		t.Errorf("a private port, with the token, where nothing listens: %d", r.StatusCode)
	}
}

func TestHosts(t *testing.T) {
	s := start(t)
	b := s.create(t, "a", nil)
	for host, want := range map[string]int{
		"49983-" + b.SandboxID + ".boxes.example:7443": 204, "49983-" + b.SandboxID + ".boxes.example": 204, "49983-none.boxes.example": 502,
		"api.boxes.example": 204, "x.boxes.example": 421, "evil.example": 421, "localhost:1": 204, "[::1]": 204, "169.254.169.254": 421,
		"99999-" + b.SandboxID + ".boxes.example": 400, "0-" + b.SandboxID + ".boxes.example": 400,
	} {
		if r := s.call(t, "", "GET", "/health", nil, nil, "Host", host); r.StatusCode != want {
			t.Errorf("%s: %d, want %d", host, r.StatusCode, want)
		}
	}
}

// What is asked for of the network is what the engine is told, or is refused.
func TestNetwork(t *testing.T) {
	no := false
	for text, want := range map[string]struct {
		n newSandbox
		e engine.Egress
	}{
		"as it is":          {newSandbox{}, engine.Egress{Granted: true}},
		"none":              {newSandbox{AllowInternetAccess: &no}, engine.Egress{}},
		"none by addresses": {newSandbox{Network: &network{DenyOut: []string{everything}}}, engine.Egress{}},
		"but these": {
			newSandbox{Network: &network{DenyOut: []string{"0.0.0.0/0"}, AllowOut: []string{"*.a.test", "b.test", "10.0.0.0/8", "fd00::1"}}},
			engine.Egress{Allow: []string{"*.a.test", "b.test", "[10.0.0.0/8]:*", "[fd00::1/128]:*"}},
		},
		"none but these": {newSandbox{AllowInternetAccess: &no, Network: &network{AllowOut: []string{"b.test"}}}, engine.Egress{Allow: []string{"b.test"}}},
		"all but these":  {newSandbox{Network: &network{DenyOut: []string{"8.8.8.8", "9.9.9.9/8"}}}, engine.Egress{Granted: true, Deny: []string{"8.8.8.8/32", "9.0.0.0/8"}}},
		"all, said":      {newSandbox{AllowInternetAccess: &no, Network: &network{AllowOut: []string{everything}}}, engine.Egress{Granted: true}},
		"opened again":   {newSandbox{Network: &network{DenyOut: []string{"10.0.0.0/8"}, AllowOut: []string{"10.1.0.0/16"}}}, engine.Egress{MaxBytes: -1}},
	} {
		r := session.Request{Labels: map[string]string{}}
		if err := want.n.network(&r); err != nil {
			if want.e.MaxBytes != -1 || !errors.Is(err, isolation.ErrInvalidArgument) {
				t.Errorf("%s: %v", text, err)
			}
		} else if !reflect.DeepEqual(r.Egress, want.e) {
			t.Errorf("%s: %+v, want %+v", text, r.Egress, want.e)
		}
	}
	s := start(t)
	b := s.create(t, "a", map[string]any{"network": map[string]any{"denyOut": []string{everything}}})
	var one sandbox
	if s.call(t, "a", "GET", "/sandboxes/"+b.SandboxID, nil, &one); one.Network == nil || len(one.Network.DenyOut) != 1 || one.Internet == nil || *one.Internet {
		t.Errorf("%+v", one)
	}
}

// A sandbox that is to pause at its timeout does, and goes on for a request that may use
// it, and for no other, if its maker wanted that.
func TestAutoPause(t *testing.T) {
	s := start(t)
	b := s.create(t, "a", map[string]any{"timeout": 0, "autoPause": true, "autoResume": map[string]bool{"enabled": true}, "network": map[string]any{"allowPublicTraffic": false}})
	stays := s.create(t, "a", map[string]any{"timeout": 0, "autoPause": true})
	state := func(b sandbox) string {
		var one sandbox
		s.call(t, "a", "GET", "/sandboxes/"+b.SandboxID, nil, &one)
		return one.State
	}
	paused := func(b sandbox) {
		t.Helper()
		for range 1500 {
			if state(b) == "paused" {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Fatalf("it is %q", state(b))
	}
	paused(b)
	paused(stays)
	var one sandbox
	if s.call(t, "a", "GET", "/sandboxes/"+b.SandboxID, nil, &one); one.Lifecycle == nil || *one.Lifecycle != (lifecycle{"pause", true}) || time.Until(*one.EndAt) < time.Hour {
		t.Errorf("%+v", one)
	}
	port := []string{"E2b-Sandbox-Id", b.SandboxID, "E2b-Sandbox-Port", "80"}
	thief := b
	thief.EnvdAccessToken = stays.EnvdAccessToken
	for name, c := range map[string]struct {
		path    string
		headers []string
		status  int
	}{
		"health": {"/health", in(b), 502}, "no token": {"/files?path=/tmp/x", in(sandbox{SandboxID: b.SandboxID}), 502}, "another's token": {"/files?path=/tmp/x", in(thief), 502},
		"a private port": {"/", port, 409}, "one that is not to go on": {"/files?path=/tmp/x", in(stays), 502},
	} {
		if r := s.call(t, "", "GET", c.path, nil, nil, c.headers...); r.StatusCode != c.status {
			t.Errorf("%s: %d, want %d", name, r.StatusCode, c.status)
		}
	}
	if state(b) != "paused" || state(stays) != "paused" {
		t.Fatal("it goes on for who may not use it")
	}
	if r := s.call(t, "", "GET", "/files?path=/tmp/none", nil, nil, in(b)...); r.StatusCode != 404 {
		t.Errorf("a file of a sandbox that goes on: %d", r.StatusCode)
	}
	if r := s.call(t, "a", "POST", "/sandboxes/"+stays.SandboxID+"/connect", `{"timeout":60}`, nil); r.StatusCode != 201 || state(stays) != "running" {
		t.Errorf("connect: %d, %s", r.StatusCode, state(stays))
	}
}

// What a sandbox takes is told to whose it is, from when he asks for it.
func TestMetrics(t *testing.T) {
	s := start(t)
	b := s.create(t, "a", nil)
	other := s.create(t, "b", nil)
	path := "/sandboxes/" + b.SandboxID + "/metrics"
	var list []metric
	if r := s.call(t, "a", "GET", path, nil, &list); r.StatusCode != 200 || len(list) != 1 || list[0].CPUCount != 1 || list[0].TimestampUnix == 0 || list[0].CPUUsedPct < 0 {
		t.Fatalf("%d %+v", r.StatusCode, list)
	}
	at := list[0].TimestampUnix
	for query, want := range map[string]int{fmt.Sprintf("?end=%d", at-10): 0, fmt.Sprintf("?start=%d&end=%d", at, at): 1, fmt.Sprintf("?start=%d", at+1000): 0} {
		if s.call(t, "a", "GET", path+query, nil, &list); len(list) != want {
			t.Errorf("%s: %+v", query, list)
		}
	}
	var many struct{ Sandboxes map[string]metric }
	if s.call(t, "a", "GET", "/sandboxes/metrics?sandbox_ids="+b.SandboxID+","+other.SandboxID+",none", nil, &many); len(many.Sandboxes) != 1 || many.Sandboxes[b.SandboxID].CPUCount != 1 {
		t.Errorf("%+v", many)
	}
	for _, c := range []struct {
		who, path string
		status    int
	}{{"b", path, 404}, {"a", path + "?start=x", 400}, {"a", "/sandboxes/metrics", 400}, {"", path, 401}, {"a", "/sandboxes/metrics?sandbox_ids=" + strings.Repeat("a,", 200), 400}} {
		if r := s.call(t, c.who, "GET", c.path, nil, nil); r.StatusCode != c.status {
			t.Errorf("%.60s: %d", c.path, r.StatusCode)
		}
	}
}

// Why a port is not reached is told as E2B's proxy does, to a person with a page.
func TestPortProblems(t *testing.T) {
	s := start(t)
	b := s.create(t, "a", nil)
	evil := "<script>"
	for _, c := range []struct {
		id   string
		json string
	}{
		{b.SandboxID, `{"sandboxId":"` + b.SandboxID + `","message":"The sandbox is running but port is not open","port":81,"code":502}` + "\n"},
		{"gone", `{"sandboxId":"gone","message":"The sandbox was not found","code":502}` + "\n"},
		{evil, ""},
	} {
		var text []byte
		headers := []string{"E2b-Sandbox-Id", c.id, "E2b-Sandbox-Port", "81"}
		r := s.call(t, "", "GET", "/", nil, &text, headers...)
		if r.StatusCode != 502 || c.json != "" && string(text) != c.json || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %s", c.id, r.StatusCode, text)
		}
		r = s.call(t, "", "GET", "/", nil, &text, append(headers, "User-Agent", "Mozilla/5.0 (X11)")...)
		if r.StatusCode != 502 || !strings.HasPrefix(r.Header.Get("Content-Type"), "text/html") || !bytes.Contains(text, []byte("<html")) || bytes.Contains(text, []byte(evil)) {
			t.Errorf("%s in a browser: %d %s", c.id, r.StatusCode, text)
		}
	}
}

func sign(parts ...string) string {
	h := sha256.Sum256([]byte(strings.Join(parts, ":")))
	return "v1_" + base64.RawStdEncoding.EncodeToString(h[:])
}

func TestSignatures(t *testing.T) {
	s := start(t)
	s.create(t, "b", nil)
	b := s.create(t, "a", nil)
	if r := s.call(t, "", "POST", "/files?path=/tmp/f", "content", nil, append(in(b), "Content-Type", "application/octet-stream")...); r.StatusCode != 200 {
		t.Fatalf("%d", r.StatusCode)
	}
	past, future := fmt.Sprint(time.Now().Unix()-10), fmt.Sprint(time.Now().Unix()+100)
	get := func(path, user, signature, expires string) string {
		q := "/files?path=" + path + "&username=" + user + "&signature=" + strings.NewReplacer("+", "%2B", "/", "%2F").Replace(signature)
		if expires != "" {
			q += "&signature_expiration=" + expires
		}
		return q
	}
	token := b.EnvdAccessToken
	for name, c := range map[string]struct {
		method, url string
		status      int
		message     string
	}{
		"good":                   {"GET", get("/tmp/f", "", sign("/tmp/f", "read", "", token), ""), 200, ""},
		"good until":             {"GET", get("/tmp/f", "user", sign("/tmp/f", "read", "user", token, future), future), 200, ""},
		"expired":                {"GET", get("/tmp/f", "", sign("/tmp/f", "read", "", token, past), past), 401, "signature is already expired"},
		"longer than signed":     {"GET", get("/tmp/f", "", sign("/tmp/f", "read", "", token, past), future), 401, "invalid signature"},
		"for ever, not signed":   {"GET", get("/tmp/f", "", sign("/tmp/f", "read", "", token, future), ""), 401, "invalid signature"},
		"another file":           {"GET", get("/tmp/g", "", sign("/tmp/f", "read", "", token), ""), 401, "invalid signature"},
		"another user":           {"GET", get("/tmp/f", "root", sign("/tmp/f", "read", "", token), ""), 401, "invalid signature"},
		"to read, used to write": {"POST", get("/tmp/f", "", sign("/tmp/f", "read", "", token), ""), 401, "invalid signature"},
		"none":                   {"GET", "/files?path=/tmp/f", 401, "missing signature query parameter"},
		"of nobody's":            {"GET", get("/tmp/f", "", sign("/tmp/f", "read", "", "x"), ""), 401, "invalid signature"},
	} {
		var text []byte
		r := s.call(t, "", c.method, c.url, nil, &text)
		if r.StatusCode != c.status || !strings.Contains(string(text), c.message) {
			t.Errorf("%s: %d %s", name, r.StatusCode, text)
		}
	}
	good := get("/tmp/f", "", sign("/tmp/f", "read", "", token), "")
	if r := s.call(t, "a", "DELETE", "/sandboxes/"+b.SandboxID, nil, nil); r.StatusCode != 204 {
		t.Fatal(r.StatusCode)
	}
	if r := s.call(t, "", "GET", good, nil, nil); r.StatusCode != 401 {
		t.Errorf("when its sandbox is gone: %d", r.StatusCode)
	}
}

func TestParts(t *testing.T) {
	for _, c := range []struct {
		header   string
		from, to int64
		part     bool
		bad      bool
	}{
		{"", 0, 10, false, false}, {"bytes=0-0", 0, 1, true, false}, {"bytes=2-", 2, 10, true, false}, {"bytes=-3", 7, 10, true, false},
		{"bytes=-30", 0, 10, true, false}, {"bytes=5-100", 5, 10, true, false}, {"bytes=10-", 0, 0, true, true}, {"bytes=-0", 0, 0, true, true},
		{"bytes=5-2", 0, 10, false, false}, {"bytes=0-1,3-4", 0, 10, false, false}, {"bytes=x-", 0, 10, false, false},
		{"bytes=0-9223372036854775807", 0, 10, true, false}, {"lines=1-2", 0, 10, false, false}, {"bytes=--1", 0, 10, false, false},
	} {
		from, to, part, err := span(c.header, 10)
		if from != c.from || to != c.to || part != c.part || (err != nil) != c.bad {
			t.Errorf("%q: %d-%d %v %v", c.header, from, to, part, err)
		}
	}
}

// bearer sends what selects a sandbox and opens it.
type bearer struct {
	headers []string
	user    string
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	for i := 0; i+1 < len(b.headers); i += 2 {
		r.Header.Set(b.headers[i], b.headers[i+1])
	}
	if b.user != "" {
		r.SetBasicAuth(b.user, "")
	}
	return http.DefaultTransport.RoundTrip(r)
}

// Go clients of E2B's speak the binary form.
func TestBinaryForm(t *testing.T) {
	s := start(t)
	b := s.create(t, "a", nil)
	hc := &http.Client{Transport: bearer{in(b), "user"}}
	p := pb.NewProcessClient(hc, s.URL)
	tag, ctx := "shell", t.Context()
	stream, err := p.Start(ctx, connect.NewRequest(&pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "echo"}, Tag: &tag}))
	if err != nil {
		t.Fatal(err)
	}
	if !stream.Receive() || stream.Msg().GetEvent().GetStart().GetPid() == 0 {
		t.Fatalf("%v %v", stream.Msg(), stream.Err())
	}
	pid := stream.Msg().GetEvent().GetStart().GetPid()
	list, err := p.List(ctx, connect.NewRequest(&pb.ListRequest{}))
	if err != nil || len(list.Msg.Processes) != 1 || list.Msg.Processes[0].Pid != pid || list.Msg.Processes[0].GetTag() != tag {
		t.Errorf("%v %v", list, err)
	}
	sel := &pb.ProcessSelector{Selector: &pb.ProcessSelector_Tag{Tag: tag}}
	input := p.StreamInput(ctx)
	for _, m := range []*pb.StreamInputRequest{
		{Event: &pb.StreamInputRequest_Start{Start: &pb.StreamInputRequest_StartEvent{Process: sel}}},
		{Event: &pb.StreamInputRequest_Data{Data: &pb.StreamInputRequest_DataEvent{Input: &pb.ProcessInput{Input: &pb.ProcessInput_Stdin{Stdin: []byte("one ")}}}}},
		{Event: &pb.StreamInputRequest_Data{Data: &pb.StreamInputRequest_DataEvent{Input: &pb.ProcessInput{Input: &pb.ProcessInput_Stdin{Stdin: []byte("two")}}}}},
	} {
		if err := input.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := input.CloseAndReceive(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.CloseStdin(ctx, connect.NewRequest(&pb.CloseStdinRequest{Process: sel})); err != nil {
		t.Fatal(err)
	}
	var out string
	var end *pb.ProcessEvent_EndEvent
	for stream.Receive() {
		out += string(stream.Msg().GetEvent().GetData().GetStdout())
		end = stream.Msg().GetEvent().GetEnd()
	}
	if stream.Err() != nil || out != "one two" || end == nil || !end.Exited || end.ExitCode != 0 {
		t.Errorf("%q %v %v", out, end, stream.Err())
	}
	if _, err := p.SendSignal(ctx, connect.NewRequest(&pb.SendSignalRequest{Process: sel, Signal: pb.Signal_SIGNAL_SIGKILL})); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("a signal for what has ended: %v", err)
	}
	f := fspb.NewFilesystemClient(hc, s.URL)
	if _, err := f.MakeDir(ctx, connect.NewRequest(&fspb.MakeDirRequest{Path: "/tmp/d"})); err != nil {
		t.Error(err)
	}
	if _, err := f.MakeDir(ctx, connect.NewRequest(&fspb.MakeDirRequest{Path: "/tmp/d"})); connect.CodeOf(err) != connect.CodeAlreadyExists {
		t.Errorf("the same directory: %v", err)
	}
	if st, err := f.Stat(ctx, connect.NewRequest(&fspb.StatRequest{Path: "/tmp/d/../d/"})); err != nil || st.Msg.Entry.Type != fspb.FileType_FILE_TYPE_DIRECTORY || st.Msg.Entry.Path != "/tmp/d" {
		t.Errorf("%v %v", st, err)
	}
	root := fspb.NewFilesystemClient(&http.Client{Transport: bearer{in(b), "root"}}, s.URL)
	if _, err := root.Stat(ctx, connect.NewRequest(&fspb.StatRequest{Path: "/"})); connect.CodeOf(err) != connect.CodeUnimplemented {
		t.Errorf("files as root: %v", err)
	}
}

// A sandbox that goes while a program's output is told is an error, and no result; and
// what it was is not found any more.
func TestSandboxIsLost(t *testing.T) {
	s := start(t)
	b := s.create(t, "a", nil)
	p := pb.NewProcessClient(&http.Client{Transport: bearer{in(b), "user"}}, s.URL)
	stream, err := p.Start(t.Context(), connect.NewRequest(&pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "echo"}}))
	if err != nil {
		t.Fatal(err)
	}
	if !stream.Receive() || stream.Msg().GetEvent().GetStart() == nil {
		t.Fatalf("%v %v", stream.Msg(), stream.Err())
	}
	// It waits for its input, which does not come.
	h := sha256.Sum256([]byte("a/" + b.SandboxID))
	if !s.driver.Lose(b.SandboxID+"."+hex.EncodeToString(h[:10]), "the test lost it") {
		t.Fatal("there is no such sandbox")
	}
	for stream.Receive() {
		if end := stream.Msg().GetEvent().GetEnd(); end != nil {
			t.Errorf("it is told to have ended: %v", end)
		}
	}
	if c := connect.CodeOf(stream.Err()); c != connect.CodeUnavailable {
		t.Errorf("%v", stream.Err())
	}
	for range 1500 {
		if r := s.call(t, "", "GET", "/health", nil, nil, in(b)...); r.StatusCode == 502 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error("it is still told to run")
}

// A client's frames are not believed.
func TestBadFrames(t *testing.T) {
	s := start(t)
	b := s.create(t, "a", nil)
	good := `{"process":{"cmd":"exit0"}}`
	frame := func(flags byte, length int, body string) string {
		return string([]byte{flags, byte(length >> 24), byte(length >> 16), byte(length >> 8), byte(length)}) + body
	}
	for name, body := range map[string]string{
		"empty": "", "no frame": good, "short": frame(0, len(good)+10, good), "huge": frame(0, 1<<31-1, good),
		"compressed, by what?": frame(1, len(good), good), "no JSON": frame(0, 3, "{{{"), "no program": frame(0, 2, "{}"),
		"a NUL": frame(0, len(`{"process":{"cmd":"a\u0000b"}}`), `{"process":{"cmd":"a\u0000b"}}`),
	} {
		var text []byte
		r := s.call(t, "", "POST", "/process.Process/Start", body, &text, append(in(b), "Content-Type", "application/connect+json", "Connect-Protocol-Version", "1")...)
		if !strings.Contains(string(text), `"error":{"code":"`) || r.StatusCode != 200 {
			t.Errorf("%s: %d %q", name, r.StatusCode, text)
		}
	}
	var text []byte
	s.call(t, "", "POST", "/process.Process/Start", frame(0, len(good), good), &text, append(in(b), "Content-Type", "application/connect+json", "Connect-Protocol-Version", "1")...)
	if !strings.Contains(string(text), `"exited":true`) {
		t.Errorf("after all that: %q", text)
	}
}

func TestUploads(t *testing.T) {
	s := start(t)
	b := s.create(t, "a", nil)
	form := "multipart/form-data; boundary=B"
	part := func(name, file, content string) string {
		return fmt.Sprintf("--B\r\nContent-Disposition: form-data; name=%q; filename=%q\r\n\r\n%s\r\n", name, file, content)
	}
	for _, c := range []struct {
		name, query, kind, body string
		status                  int
	}{
		{"two files", "", form, part("file", "/tmp/x/one", "1") + part("file", "/tmp/x/two", "2") + "--B--\r\n", 200},
		{"two for one path", "?path=/tmp/y", form, part("file", "a", "1") + part("file", "b", "2") + "--B--\r\n", 400},
		{"cut off", "?path=/tmp/z", form, "--B\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nhalf", 400},
		{"no name", "", form, "--B\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nx\r\n--B--\r\n", 400},
		{"no path", "", "application/octet-stream", "x", 400},
		{"a directory", "?path=/tmp/x", "application/octet-stream", "x", 400},
		{"another type", "?path=/tmp/t", "text/html", "x", 400},
		{"no type that is one", "?path=/tmp/t", ";", "x", 400},
	} {
		var text []byte
		if r := s.call(t, "", "POST", "/files"+c.query, c.body, &text, append(in(b), "Content-Type", c.kind)...); r.StatusCode != c.status {
			t.Errorf("%s: %d %s", c.name, r.StatusCode, text)
		}
	}
	var text []byte
	if s.call(t, "", "GET", "/files?path=/tmp/x/two", nil, &text, in(b)...); string(text) != "2" {
		t.Errorf("%s", text)
	}
	if r := s.call(t, "", "GET", "/files?path=/tmp/z", nil, nil, in(b)...); r.StatusCode != 404 {
		t.Errorf("half a file was kept: %d", r.StatusCode)
	}
	if r := s.call(t, "", "POST", "/files?path=/tmp/m", "x", nil, append(in(b), "Content-Type", "application/octet-stream", "X-Metadata-A", "b")...); r.StatusCode != 501 {
		t.Errorf("metadata: %d", r.StatusCode)
	}
}

// Tokens are good after the daemon's restart.
func TestSecretIsKept(t *testing.T) {
	path := t.TempDir() + "/secret"
	a, err := openSecret(path)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := openSecret(path); err != nil || !bytes.Equal(a, b) || len(a) != 32 {
		t.Errorf("%x %x %v", a, b, err)
	}
}
