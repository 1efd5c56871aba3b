package isolation

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestSpecValidate(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0a", 32)
	good := map[string]func(*Spec){
		"least":           func(*Spec) {},
		"module path":     func(s *Spec) { s.Module = Module{Path: "/x.wasm", Digest: digest} },
		"module data":     func(s *Spec) { s.Module = Module{Data: []byte("x")} },
		"path, no data":   func(s *Spec) { s.Module = Module{Path: "/x", Data: []byte{}} },
		"image":           func(s *Spec) { s.Root.Image = "alpine" },
		"profile":         func(s *Spec) { s.Profile = "session" },
		"default profile": func(s *Spec) { s.Profile = "default" },
		"mounts":          func(s *Spec) { s.Mounts = []Mount{{"/a", "/x", true}, {"/a", "/y", false}} },
		"resources":       func(s *Spec) { s.Resources = Resources{math.MaxInt64, 0.5, 1, 1, IO{1, 2, 3, math.MaxInt64}} },
	}
	for name, change := range good {
		s := Spec{Requirement: Shell}
		change(&s)
		if err := s.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	bad := map[string]func(*Spec){
		"no requirement":       func(s *Spec) { s.Requirement = 0 },
		"requirement":          func(s *Spec) { s.Requirement = 99 },
		"path and data":        func(s *Spec) { s.Module = Module{Path: "/x", Data: []byte("x")} },
		"digest, other":        func(s *Spec) { s.Module.Digest = "md5:00" },
		"digest, short":        func(s *Spec) { s.Module.Digest = digest[:70] },
		"digest, long":         func(s *Spec) { s.Module.Digest = digest + "0" },
		"digest, upper case":   func(s *Spec) { s.Module.Digest = strings.ToUpper(digest) },
		"digest, no hex":       func(s *Spec) { s.Module.Digest = digest[:70] + "g" },
		"digest, no hex in it": func(s *Spec) { s.Module.Digest = "sha256:0" + "g" + digest[9:] },
		"image and path":       func(s *Spec) { s.Root = Root{Image: "x", Path: "/x"} },
		"profile":              func(s *Spec) { s.Profile = "Default" },
		"memory":               func(s *Spec) { s.Resources.MemoryBytes = -1 },
		"pids":                 func(s *Spec) { s.Resources.Pids = -1 },
		"disk":                 func(s *Spec) { s.Resources.DiskBytes = math.MinInt64 },
		"cpus":                 func(s *Spec) { s.Resources.CPUs = -0.1 },
		"cpus, NaN":            func(s *Spec) { s.Resources.CPUs = math.NaN() },
		"cpus, infinite":       func(s *Spec) { s.Resources.CPUs = math.Inf(1) },
		"mount from nowhere":   func(s *Spec) { s.Mounts = []Mount{{"", "/x", false}} },
		"mount, NUL":           func(s *Spec) { s.Mounts = []Mount{{"/a\x00", "/x", false}} },
		"mount to nowhere":     func(s *Spec) { s.Mounts = []Mount{{"/a", "", false}} },
		"mount, relative":      func(s *Spec) { s.Mounts = []Mount{{"/a", "x", false}} },
		"mount to NUL":         func(s *Spec) { s.Mounts = []Mount{{"/a", "/\x00", false}} },
		"mount twice":          func(s *Spec) { s.Mounts = []Mount{{"/a", "/x", false}, {"/b", "/x", true}} },
	}
	for name, change := range bad {
		s := Spec{Requirement: Shell}
		change(&s)
		if err := s.Validate(); !errors.Is(err, ErrInvalidArgument) {
			t.Errorf("%s: %v, want InvalidArgument", name, err)
		}
	}
}

func TestProcessSpecValidate(t *testing.T) {
	good := map[string]func(*ProcessSpec){
		"least":   func(*ProcessSpec) {},
		"empty":   func(p *ProcessSpec) { p.Args = []string{""} },
		"exec id": func(p *ProcessSpec) { p.ExecID = "a.1" },
		"env":     func(p *ProcessSpec) { p.Env = []string{"A=", "B=a=b", "C=\n"} },
		"full":    func(p *ProcessSpec) { p.Args = []string{strings.Repeat("x", 2<<20-1)} },
		"limits":  func(p *ProcessSpec) { p.Limits = Limits{1, 1, 1, 1, 1} },
	}
	for name, change := range good {
		p := ProcessSpec{Args: []string{"a"}}
		change(&p)
		if err := p.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	bad := map[string]func(*ProcessSpec){
		"no args":       func(p *ProcessSpec) { p.Args = nil },
		"args, NUL":     func(p *ProcessSpec) { p.Args = []string{"a", "b\x00"} },
		"env, no value": func(p *ProcessSpec) { p.Env = []string{"A"} },
		"env, no name":  func(p *ProcessSpec) { p.Env = []string{"=a"} },
		"env, empty":    func(p *ProcessSpec) { p.Env = []string{""} },
		"env, NUL":      func(p *ProcessSpec) { p.Env = []string{"A=\x00"} },
		"too much":      func(p *ProcessSpec) { p.Args = []string{strings.Repeat("x", 2<<20)} },
		"too much both": func(p *ProcessSpec) { p.Env = []string{"A=" + strings.Repeat("x", 2<<20-4)} },
		"exec id":       func(p *ProcessSpec) { p.ExecID = "a/b" },
		"cwd":           func(p *ProcessSpec) { p.Cwd = "/\x00" },
		"wall":          func(p *ProcessSpec) { p.Limits.Wall = -1 },
		"cpu":           func(p *ProcessSpec) { p.Limits.CPU = -1 },
		"output":        func(p *ProcessSpec) { p.Limits.OutputBytes = -1 },
		"files":         func(p *ProcessSpec) { p.Limits.OpenFiles = -1 },
	}
	for name, change := range bad {
		p := ProcessSpec{Args: []string{"a"}}
		change(&p)
		err := p.Validate()
		if !errors.Is(err, ErrInvalidArgument) {
			t.Errorf("%s: %v, want InvalidArgument", name, err)
		} else if len(err.Error()) > 1000 {
			t.Errorf("%s: the message has %d bytes", name, len(err.Error()))
		}
	}
}

func fullSpec() Spec {
	return Spec{
		Requirement: Arbitrary, Language: "lua", Module: Module{Path: "/x", Digest: "sha256:" + strings.Repeat("0", 64)},
		Root: Root{Image: "alpine"}, Func: "f", Mounts: []Mount{{"/a", "/b", true}},
		Resources: Resources{1, 0.5, 2, 3, IO{4, 5, 6, 7}}, Hostname: "h", Profile: "session", Tenant: "t",
		Annotations: map[string]string{"b": "2", "a": "1"},
	}
}

func fullProcess() ProcessSpec {
	return ProcessSpec{
		ExecID: "e", Args: []string{"a", "", "\n", "é"}, Env: []string{"A=1"}, Cwd: "/", User: "1:2", Terminal: true,
		Size: TerminalSize{24, 80}, Limits: Limits{1500 * time.Microsecond, time.Second, 1 << 63, 5, 6},
	}
}

func TestSpecJSON(t *testing.T) {
	for _, c := range []struct {
		v    any
		want string
	}{
		{Spec{Requirement: Shell}, `{"requirement":"Shell"}`},
		{Spec{Requirement: WasmCompiled, Module: Module{Data: []byte("\x00asm")}}, `{"requirement":"WasmCompiled","module":{"data":"AGFzbQ=="}}`},
		{fullSpec(), `{"requirement":"Arbitrary","language":"lua","module":{"path":"/x","digest":"sha256:` + strings.Repeat("0", 64) + `"},` +
			`"root":{"image":"alpine"},"func":"f","mounts":[{"source":"/a","destination":"/b","readonly":true}],` +
			`"resources":{"memory_bytes":1,"cpus":0.5,"pids":2,"disk_bytes":3,"io":{"read_bytes":4,"write_bytes":5,"read_ops":6,"write_ops":7}},"hostname":"h","profile":"session","tenant":"t",` +
			`"annotations":{"a":"1","b":"2"}}`},
		{ProcessSpec{Args: []string{"a"}}, `{"args":["a"]}`},
		{fullProcess(), `{"exec_id":"e","args":["a","","\n","é"],"env":["A=1"],"cwd":"/","user":"1:2","terminal":true,` +
			`"size":{"rows":24,"cols":80},"limits":{"wall_ms":1.5,"cpu_ms":1000,"fuel":9223372036854775808,"output_bytes":5,"open_files":6}}`},
	} {
		b, err := json.Marshal(c.v)
		if err != nil || string(b) != c.want {
			t.Errorf("JSON is\n%s, %v, want\n%s", b, err, c.want)
		}
		got := reflect.New(reflect.TypeOf(c.v))
		if err := json.Unmarshal(b, got.Interface()); err != nil || !reflect.DeepEqual(got.Elem().Interface(), c.v) {
			t.Errorf("read %+v, %v\nwant %+v", got.Elem(), err, c.v)
		}
	}
	if _, err := json.Marshal(Spec{}); !errors.Is(err, ErrInvalidArgument) {
		t.Errorf("JSON of a Spec without a requirement: %v", err)
	}
	for _, bad := range []string{
		`{"requirement":"python"}`, `{"requirement":1}`, `{"requirement":"Python","resources":{"memory_bytes":"1M"}}`,
		`{"requirement":"Python","resources":{"memory_bytes":1.5}}`, `[]`, `{`,
	} {
		var s Spec
		if err := json.Unmarshal([]byte(bad), &s); err == nil {
			t.Errorf("%s was read as %+v", bad, s)
		}
	}
	var l Limits
	if err := json.Unmarshal([]byte(`{"fuel":-1}`), &l); err == nil || !l.IsZero() {
		t.Errorf("negative fuel was read as %+v, %v", l, err)
	}
}

// TestFieldsSurvive finds fields that were added without a JSON name or a place
// in the hand-written conversions: each is set alone and must come back.
func TestFieldsSurvive(t *testing.T) {
	for _, v := range []any{Spec{Requirement: Shell}, ProcessSpec{}, Limits{}, Resources{}, Exit{}, Usage{}, State{}, LimitHit{}, Output{}} {
		typ := reflect.TypeOf(v)
		for i := range typ.NumField() {
			one := reflect.New(typ).Elem()
			one.Set(reflect.ValueOf(v))
			if !set(one.Field(i)) {
				t.Errorf("%v.%s: the test can't set a %v", typ, typ.Field(i).Name, typ.Field(i).Type)
				continue
			}
			b, err := json.Marshal(one.Interface())
			back := reflect.New(typ)
			if err == nil {
				err = json.Unmarshal(b, back.Interface())
			}
			if err != nil || !reflect.DeepEqual(back.Elem().Interface(), one.Interface()) {
				t.Errorf("%v.%s does not come back from %s: %v", typ, typ.Field(i).Name, b, err)
			}
		}
	}
}

// set gives v another value than zero, in all of its parts.
func set(v reflect.Value) bool {
	if v.Type() == reflect.TypeFor[Requirement]() {
		v.SetUint(uint64(Python))
		return true
	}
	if v.Type() == reflect.TypeFor[time.Time]() {
		v.Set(reflect.ValueOf(time.Date(2024, 5, 6, 7, 8, 9, 10, time.UTC)))
		return true
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(3)
	case reflect.Uint8, reflect.Uint16, reflect.Uint64:
		v.SetUint(3)
	case reflect.Float64:
		v.SetFloat(1.5)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		return set(v.Index(0))
	case reflect.Map:
		v.Set(reflect.ValueOf(map[string]string{"k": "v"}))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return set(v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			if !set(v.Field(i)) {
				return false
			}
		}
	default:
		return false
	}
	return true
}

// FuzzSpecJSON reads any bytes: no panic, and what can be read and written is
// the same when it is read again.
func FuzzSpecJSON(f *testing.F) {
	for _, v := range []any{fullSpec(), fullProcess(), Spec{Requirement: Shell}} {
		b, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for _, s := range []string{
		`{"requirement":"Python","module":{"data":""},"annotations":{},"mounts":[],"resources":{"cpus":1e-7}}`,
		`{"args":null,"limits":{"wall_ms":1e300,"cpu_ms":-0.0000001}}`,
		`{"requirement":"Shell","annotations":{"\ud800":"\u0000"}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var s Spec
		if json.Unmarshal(b, &s) == nil {
			valid := s.Validate() == nil
			again := Spec{}
			if same(t, s, &again) && valid != (again.Validate() == nil) {
				t.Errorf("%+v is valid: %v, and not so when it was written and read", s, valid)
			}
		}
		var p ProcessSpec
		if json.Unmarshal(b, &p) == nil {
			valid := p.Validate() == nil
			again := ProcessSpec{}
			const most = 1 << 51 // ns that JSON keeps exactly
			if p.Limits.Wall.Abs() < most && p.Limits.CPU.Abs() < most &&
				same(t, p, &again) && valid != (again.Validate() == nil) {
				t.Errorf("%+v is valid: %v, and not so when it was written and read", p, valid)
			}
		}
	})
}

// same writes v, reads it into back and writes that: it reports whether v could
// be written.
func same(t *testing.T, v, back any) bool {
	first, err := json.Marshal(v)
	if err != nil {
		return false
	}
	if err := json.Unmarshal(first, back); err != nil {
		t.Fatalf("%s was written and can't be read: %v", first, err)
	}
	second, err := json.Marshal(back)
	if err != nil || !bytes.Equal(first, second) {
		t.Fatalf("%s becomes %s, %v", first, second, err)
	}
	return true
}
