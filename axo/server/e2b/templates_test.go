package e2b

import (
	"testing"
	"time"
)

func TestUploadLinkAndTheClock(t *testing.T) {
	now := time.Now()
	until := now.Add(uploadTime).Unix()
	for name, c := range map[string]struct {
		at   time.Time
		want bool
	}{
		"at once":             {now, false},
		"in time":             {now.Add(uploadTime - time.Minute), false},
		"too late":            {now.Add(uploadTime + time.Minute), true},
		"the clock set back":  {now.Add(-time.Hour), true},
		"the clock set ahead": {now.AddDate(1, 0, 0), true},
	} {
		if got := tooOld(until, c.at); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
