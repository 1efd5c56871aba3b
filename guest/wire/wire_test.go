package wire

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

type message interface {
	Append([]byte) []byte
	Parse([]byte) error
}

// samples has every message with every field set, and with none.
func samples() map[string]struct {
	t Type
	m message
} {
	type s = struct {
		t Type
		m message
	}
	return map[string]s{
		"hello":        {Hello, &HelloMessage{Version: Version, Role: "wasm-run", Engine: "wazero 1.12.0", Execs: []string{"a", "b"}, Notes: []string{"landlock: kernel has none"}}},
		"exec":         {Exec, &ExecMessage{"e1", []string{"tool", "", "ü\n"}, []string{"A=1", "B="}, "/w", "1000:1000", 64 << 20, 1e9, 32, 4096, true, true, 24, 80, 50_000, nil}},
		"exec-minimal": {Exec, &ExecMessage{Args: []string{"x"}}},
		"exit": {Exit, &ExitMessage{Cause: CauseTrap, Code: 7, Signal: 9, Detail: "unreachable", CPU: 12345, PeakMemory: 65536, Fuel: 99,
			Stdout: 10, Stderr: 11, MemoryHits: 1, DiskHits: 2, FileHits: 3, TableHits: 4, StackHits: 5, ReadBytes: 6, WrittenBytes: 7}},
		"exit-0":   {Exit, &ExitMessage{Cause: CauseExited}},
		"load":     {Load, &LoadMessage{true, true, 1024, 1 << 28, true, "/m", "/n", "/i", []LoadMount{{"/data", "/srv", true}, {"/w", "", false}}, true, true}},
		"loaded":   {Loaded, &LoadedMessage{[]string{"seccomp: 2"}, []string{"landlock: none"}}},
		"compile":  {Compile, &CompileMessage{true, true, true, "/m", "/o", true}},
		"compiled": {Compiled, &CompiledMessage{true, 1024, 65536, 131072, true}},
		"fail":     {Fail, &FailMessage{"invalid argument", "not a module"}},
		"spawn":    {Spawn, &SpawnMessage{[]string{"sh", "-c", ""}, []string{"A=1"}, "/w", "1000", []Rlimit{{7, 1024, 1 << 40}, {4, 0, 0}}, true, 24, 80}},
		"prepare":  {Prepare, &PrepareMessage{"python", []string{"LANG=C.UTF-8"}}},
		"resize":   {Resize, &ResizeMessage{24, 80}},
		"spawned":  {Spawned, &SpawnedMessage{PID: 42}},
		"window":   {Window, &WindowMessage{Stdout, 65536}},

		"guest-hello": {Hello, &HelloMessage{Version: Version, Role: "guest", Engine: "axo-guest", Notes: []string{"a"},
			Processes: []ProcessState{{"e1", true, 1, 2, 3, 4, 5}, {ID: "e2"}}, Steps: []Step{{"modules", 12345}}, NeedsSync: true}},
		"guest-exec": {Exec, &ExecMessage{ID: "e1", Args: []string{"sh"}, Tty: true, Rows: 24, Cols: 80, Rlimits: []Rlimit{{7, 1024, 1 << 40}, {4, 0, 0}}}},
		"guest-exit": {Exit, &ExitMessage{Cause: CauseSignaled, Signal: 9, OOMKills: 1, PidsHits: 2, Survivors: 3, Wall: 4}},
		"attached":   {Spawned, &SpawnedMessage{42, 1000, 131072, true, 10, 20}},
		"attach":     {Attach, &AttachMessage{"e1", 10, 20, true}},
		"kill":       {Kill, &KillMessage{15, true}},
		"usage":      {Usage, &UsageMessage{1, 2, 3, 4}},
		"sync": {Sync, &SyncMessage{bytes.Repeat([]byte{7}, MinEntropy), 1.7e18, "box", "0123456789abcdef0123456789abcdef",
			"00000000-0000-4000-8000-000000000000", bytes.Repeat([]byte{9}, TokenBytes), 64 << 20, 100, 1500, 32 << 20, false}},
		"sync-snapshot": {Sync, &SyncMessage{Snapshot: true}},
		"mount":         {Mount, &MountMessage{"vdb", "/work", "ext4", "noatime", true, true, true, "/0"}},
		"power":         {Power, &PowerMessage{true}},
		"file":          {File, &FileMessage{FileRename, "/a", "/b", 0o644, true, true, true, "1000:1000"}},
		"file-entry":    {File, &FileEntry{"a", 0o100644, 1, 2, 3, 4, "../b", 5, 6, 7}},
		"file-event":    {Stdout, &FileEvent{"/a", EventCreate | EventMeta}},
		"port":          {Port, &PortMessage{PortAccept, 3128}},
		"port-done":     {Port, &PortMessage{}},
	}
}

// guestOnly are those of samples that a WASM worker is never sent and does not
// send.
func guestOnly(name string) bool {
	switch name {
	case "spawn", "spawned", "attached", "attach", "prepare", "prepared", "resize", "kill", "usage", "sync", "sync-snapshot", "mount", "power",
		"file", "file-entry", "file-event", "port", "port-done":
		return true
	}
	return strings.HasPrefix(name, "guest-")
}

var update = flag.Bool("update", false, "write testdata/vectors.json anew")

type vector struct {
	Name   string `json:"name"`
	Role   string `json:"role,omitempty"` // "guest": a worker need not know it
	Type   string `json:"type"`
	Number Type   `json:"number"`
	Stream uint32 `json:"stream"`
	Frame  string `json:"frame"` // hex of the whole frame
	Fields any    `json:"fields,omitempty"`
}

func role(name string) string {
	if guestOnly(name) {
		return "guest"
	}
	return ""
}

// TestGoldenVectors holds every implementation of the protocol to one set of
// bytes. The file is changed only together with Version.
func TestGoldenVectors(t *testing.T) {
	const file = "testdata/vectors.json"
	want := map[string]vector{}
	for name, s := range samples() {
		want[name] = vector{name, role(name), s.t.String(), s.t, 3, hex.EncodeToString(Append(nil, s.t, 3, s.m.Append(nil))), s.m}
	}
	for _, d := range []struct {
		t    Type
		body string
	}{{Stdin, "in"}, {StdinEOF, ""}, {Stdout, "out\n"}, {Stderr, "err"}, {Ping, "x"}, {Pong, "x"}, {Wait, ""}, {Run, ""}, {Prepared, ""}} {
		name := strings.ToLower(d.t.String())
		want[name] = vector{name, role(name), d.t.String(), d.t, 3, hex.EncodeToString(Append(nil, d.t, 3, []byte(d.body))), nil}
	}
	if *update {
		b, err := json.MarshalIndent(want, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var golden map[string]vector
	if err := json.Unmarshal(b, &golden); err != nil {
		t.Fatal(err)
	}
	if len(golden) != len(want) {
		t.Errorf("%d vectors in %s, %d in the code", len(golden), file, len(want))
	}
	for name, w := range want {
		g := golden[name]
		if g.Frame != w.Frame || g.Number != w.Number || g.Role != w.Role {
			t.Errorf("%s: encoded %s, the vector is %s", name, w.Frame, g.Frame)
		}
	}
}

func TestMessagesRoundTrip(t *testing.T) {
	for name, s := range samples() {
		got := reflect.New(reflect.TypeOf(s.m).Elem()).Interface().(message)
		if err := got.Parse(s.m.Append(nil)); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !reflect.DeepEqual(got, s.m) {
			t.Errorf("%s: got %+v, want %+v", name, got, s.m)
		}
		// Every cut of the body is an error or a shorter message, never a
		// panic.
		body := s.m.Append(nil)
		for i := range body {
			_ = got.Parse(body[:i])
		}
	}
}

func TestReader(t *testing.T) {
	var stream []byte
	bodies := [][]byte{nil, []byte("x"), bytes.Repeat([]byte{7}, 40<<10), bytes.Repeat([]byte{9}, MaxBody), []byte("last")}
	for i, b := range bodies {
		stream = Append(stream, Stdout, uint32(i), b)
	}
	for name, wrap := range map[string]func(io.Reader) io.Reader{
		"whole": func(r io.Reader) io.Reader { return r }, "half": iotest.HalfReader, "error with data": iotest.DataErrReader,
	} {
		r := NewReader(wrap(bytes.NewReader(stream)))
		for i, want := range bodies {
			f, err := r.Next()
			if err != nil || f.Type != Stdout || f.Stream != uint32(i) || !bytes.Equal(f.Body, want) {
				t.Fatalf("%s: frame %d: %v stream %d, %d bytes, %v", name, i, f.Type, f.Stream, len(f.Body), err)
			}
		}
		if _, err := r.Next(); err != io.EOF {
			t.Errorf("%s: at the end: %v, want EOF", name, err)
		}
	}
	r := NewReader(iotest.OneByteReader(bytes.NewReader(stream[:20])))
	for range 2 {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Next(); err != io.ErrUnexpectedEOF {
		t.Errorf("cut frame: %v, want ErrUnexpectedEOF", err)
	}
}

func TestReaderRefusesHostileFrames(t *testing.T) {
	for name, b := range map[string][]byte{
		"body too long": {0x00, 0x10, 0x00, 0x01, byte(Stdout), 0, 0, 0, 1},
		"4 GiB":         {0xff, 0xff, 0xff, 0xff, byte(Stdout), 0, 0, 0, 1},
		"type 0":        {0, 0, 0, 0, 0, 0, 0, 0, 1},
		"unknown type":  {0, 0, 0, 0, 0xff, 0, 0, 0, 1},
	} {
		r := NewReader(bytes.NewReader(b))
		if _, err := r.Next(); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v, want a protocol violation", name, err)
		}
		if len(r.buf) > 64<<10 {
			t.Errorf("%s: the buffer grew to %d bytes for a frame that never came", name, len(r.buf))
		}
	}
	if _, err := NewReader(iotest.ErrReader(io.ErrClosedPipe)).Next(); err != io.ErrClosedPipe {
		t.Errorf("error of the connection: %v", err)
	}
}

func FuzzReader(f *testing.F) {
	for _, s := range samples() {
		f.Add(Append(nil, s.t, 3, s.m.Append(nil)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewReader(bytes.NewReader(b))
		var again []byte
		for {
			fr, err := r.Next()
			if err != nil {
				break
			}
			again = Append(again, fr.Type, fr.Stream, fr.Body)
			for _, m := range []message{&HelloMessage{}, &ExecMessage{}, &ExitMessage{}, &LoadMessage{}, &LoadedMessage{},
				&CompileMessage{}, &CompiledMessage{}, &FailMessage{}, &WindowMessage{}, &SpawnMessage{}, &SpawnedMessage{}, &ResizeMessage{},
				&AttachMessage{}, &KillMessage{}, &UsageMessage{}, &SyncMessage{}, &MountMessage{}, &PowerMessage{}, &FileMessage{},
				&FileEntry{}, &FileEvent{}, &PrepareMessage{}} {
				if m.Parse(fr.Body) != nil {
					continue
				}
				// What was accepted is written and read back the same.
				twin := reflect.New(reflect.TypeOf(m).Elem()).Interface().(message)
				if err := twin.Parse(m.Append(nil)); err != nil || !reflect.DeepEqual(m, twin) {
					t.Fatalf("%T: %+v became %+v (%v)", m, m, twin, err)
				}
			}
		}
		if !bytes.HasPrefix(b, again) {
			t.Fatal("frames do not encode to the bytes they were read from")
		}
	})
}

func BenchmarkExecRoundTrip(b *testing.B) {
	m := ExecMessage{ID: "e1", Args: []string{"tool"}, Env: []string{"A=1"}, Memory: 64 << 20, NoStdin: true}
	var buf, frame []byte
	var got ExecMessage
	for b.Loop() {
		buf = m.Append(buf[:0])
		frame = Append(frame[:0], Exec, 1, buf)
		f, _, err := Parse(frame)
		if err != nil || got.Parse(f.Body) != nil {
			b.Fatal(err)
		}
	}
}
