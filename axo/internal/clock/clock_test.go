package clock_test

import (
	"encoding/json"
	"runtime"
	"testing"
	"time"

	"github.com/axocoatl/isolation/axo/internal/clock"
)

func TestSince(t *testing.T) {
	day := time.Date(2026, 1, 10, 0, 0, 0, 0, time.UTC)
	at := func(wall time.Duration, boot string, up time.Duration) clock.Moment {
		return clock.Moment{Wall: day.Add(wall), Boot: boot, Up: up}
	}
	for name, c := range map[string]struct {
		then, now      clock.Moment
		since, atLeast time.Duration
	}{
		"steady":               {at(0, "a", time.Hour), at(time.Minute, "a", time.Hour+time.Minute), time.Minute, time.Minute},
		"set forward":          {at(0, "a", time.Hour), at(9000*time.Hour, "a", time.Hour+time.Minute), time.Minute, time.Minute},
		"set back":             {at(0, "a", time.Hour), at(-9000*time.Hour, "a", time.Hour+time.Minute), time.Minute, time.Minute},
		"another boot":         {at(0, "a", time.Hour), at(3*time.Hour, "b", time.Minute), 3 * time.Hour, time.Minute},
		"another, forward":     {at(0, "a", time.Hour), at(9000*time.Hour, "b", time.Minute), 9000 * time.Hour, time.Minute},
		"another, back":        {at(0, "a", time.Hour), at(-9000*time.Hour, "b", time.Minute), time.Minute, time.Minute},
		"another namespace":    {at(0, "a", time.Hour), at(3*time.Hour, "a", time.Minute), 3 * time.Hour, time.Minute},
		"nothing but the wall": {at(0, "", 0), at(3*time.Hour, "", 0), 3 * time.Hour, 3 * time.Hour},
		"that, back":           {at(0, "", 0), at(-3*time.Hour, "", 0), 0, 0},
		"an old record":        {at(0, "", 0), at(3*time.Hour, "a", time.Hour), 3 * time.Hour, 3 * time.Hour},
	} {
		if got := c.now.Since(c.then); got != c.since {
			t.Errorf("%s: %v since, want %v", name, got, c.since)
		}
		if got := c.now.AtLeast(c.then); got != c.atLeast {
			t.Errorf("%s: at least %v, want %v", name, got, c.atLeast)
		}
	}
}

func TestThisHost(t *testing.T) {
	first := clock.At(time.Now(), clock.Boot)
	b, err := json.Marshal(first)
	if err != nil {
		t.Fatal(err)
	}
	var read clock.Moment
	if err := json.Unmarshal(b, &read); err != nil {
		t.Fatal(err)
	}
	now := clock.At(time.Now(), clock.Boot)
	if runtime.GOOS == "linux" && (now.Boot == "" || !now.SameBoot(read)) {
		t.Errorf("%+v, then %+v", read, now)
	}
	if d := now.Since(read); d < 0 || d > time.Hour {
		t.Errorf("%v have passed", d)
	}
}

func TestShown(t *testing.T) {
	now := time.Now()
	end := now.Add(time.Hour)
	if got := clock.Shown(end, now.Add(time.Minute)); got != end {
		t.Errorf("the clock was not set, and %v is shown as %v", end, got)
	}
	// Without what only one process knows there is nothing to tell that it was set.
	bare := end.Round(0)
	if got := clock.Shown(bare, now.Add(time.Minute)); got != bare {
		t.Errorf("%v is shown as %v", bare, got)
	}
}
