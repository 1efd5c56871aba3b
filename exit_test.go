package isolation

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"
)

func TestExitString(t *testing.T) {
	for _, c := range []struct {
		exit    Exit
		want    string
		success bool
	}{
		{Exit{Reason: ReasonExited}, "exited with status 0", true},
		{Exit{Reason: ReasonExited, Code: 7}, "exited with status 7", false},
		{Exit{Reason: ReasonSignaled, Code: -1, Signal: SIGKILL}, "ended by SIGKILL", false},
		{Exit{Reason: ReasonTrap, Code: -1, Detail: "unreachable"}, "trap: unreachable", false},
		{Exit{Reason: ReasonTimeoutWall, Code: -1}, "timeout_wall", false},
		// A status of 0 is no success when something else ended it.
		{Exit{Reason: ReasonOutputLimit}, "output_limit", false},
		{Exit{}, "", false},
	} {
		if got := c.exit.String(); got != c.want {
			t.Errorf("%+v: String() is %q, want %q", c.exit, got, c.want)
		}
		if got := c.exit.Success(); got != c.success {
			t.Errorf("%v: Success() is %v", c.exit, got)
		}
	}
}

func TestReasons(t *testing.T) {
	seen := map[Reason]bool{}
	for _, r := range Reasons() {
		if r == "" || seen[r] {
			t.Errorf("reason %q is empty or there twice", r)
		}
		seen[r] = true
	}
	if len(seen) != 11 {
		t.Errorf("%d reasons", len(seen))
	}
}

func TestExitJSON(t *testing.T) {
	exit := Exit{
		Code: -1, Signal: SIGTERM, Reason: ReasonOOM, Detail: "d",
		LimitsHit: []LimitHit{{LimitMemory, 2, 1 << 40}},
		Usage: Usage{
			Wall: 1500 * time.Microsecond, CPU: 1, PeakMemoryBytes: -1, ReadBytes: 1, WrittenBytes: 2, Fuel: 1 << 63,
			Phases: Phases{1, 2, 3, 4, 5},
		},
		Stdout: Output{Bytes: 10, Dropped: 3}, Stderr: Output{Bytes: 1, Cut: true}, Survivors: 2,
	}
	b, err := json.Marshal(exit)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"code":-1,"signal":15,"reason":"oom","detail":"d",` +
		`"limits_hit":[{"limit":"memory","count":2,"value":1099511627776}],` +
		`"usage":{"wall_ms":1.5,"cpu_ms":0.000001,"peak_memory_bytes":-1,"read_bytes":1,"written_bytes":2,"fuel":9223372036854775808,` +
		`"phases":{"select_ms":0.000001,"create_ms":0.000002,"start_ms":0.000003,"run_ms":0.000004,"teardown_ms":0.000005}},` +
		`"stdout":{"bytes":10,"dropped":3},"stderr":{"bytes":1,"cut":true},"survivors":2}`
	if string(b) != want {
		t.Errorf("JSON is\n%s\nwant\n%s", b, want)
	}
	var got Exit
	if err := json.Unmarshal(b, &got); err != nil || !reflect.DeepEqual(got, exit) {
		t.Errorf("read %+v, %v\nwant %+v", got, err, exit)
	}
	if b, err = json.Marshal(Exit{Reason: ReasonExited}); err != nil || string(b) != `{"code":0,"signal":0,"reason":"exited","limits_hit":null,`+
		`"usage":{"wall_ms":0,"cpu_ms":0,"peak_memory_bytes":0,"phases":{"select_ms":0,"create_ms":0,"start_ms":0,"run_ms":0,"teardown_ms":0}},`+
		`"stdout":{"bytes":0},"stderr":{"bytes":0}}` {
		t.Errorf("JSON of a small one is %s, %v", b, err)
	}
	if err := json.Unmarshal([]byte(`{"usage":{"wall_ms":"1s"}}`), &got); err == nil {
		t.Error("a string was read as milliseconds")
	}
}

// TestMillis checks that JSON keeps every time, to the nanosecond, below 26
// days, and saturates at the ends.
func TestMillis(t *testing.T) {
	const day = 24 * time.Hour
	for _, d := range []time.Duration{0, 1, 999, 1001, time.Second, 25*day - 1, 25*day + 1, 100 * day, -1, -1001, -25*day + 1} {
		if got := fromMillis(millis(d)); got != d {
			t.Errorf("%d ns become %d", d, got)
		}
	}
	for d := time.Duration(1); d < 25*day; d = d*3 + 1 {
		if got := fromMillis(millis(d)); got != d {
			t.Errorf("%d ns become %d", d, got)
		}
	}
	const most, least = time.Duration(1<<63 - 1), time.Duration(-1 << 63)
	for ms, want := range map[float64]time.Duration{1e300: most, -1e300: least, 1e13: most, -1e13: least} {
		if got := fromMillis(ms); got != want {
			t.Errorf("%g ms are %v, want %v", ms, got, want)
		}
	}
}
