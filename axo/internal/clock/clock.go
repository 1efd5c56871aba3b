// Package clock tells how long it is between two moments, of which one may be of a
// process before this one, whatever has become of the host's clock meanwhile. Within one
// process the time package does that.
package clock

import "time"

// Moment is one that can be written down.
type Moment struct {
	Wall time.Time `json:"wall"`
	// Boot names the time between two starts of the host, and Up is how long it had been
	// up then, standing by counted: the boot_id of random(4) and CLOCK_BOOTTIME of
	// clock_gettime(2). Empty where the host does not tell.
	Boot string        `json:"boot,omitempty"`
	Up   time.Duration `json:"up,omitempty"`
}

// At is the moment that the wall clock has as wall. boot is Boot, or nil: the host does
// not tell.
func At(wall time.Time, boot func() (string, time.Duration)) Moment {
	m := Moment{Wall: wall}
	if boot != nil {
		m.Boot, m.Up = boot()
	}
	return m
}

// SameBoot reports whether how long the host has been up tells the time between two
// moments. It does not where the same boot has gone back: one of them is of another
// time namespace.
func (m Moment) SameBoot(then Moment) bool {
	return m.Boot != "" && m.Boot == then.Boot && m.Up >= then.Up
}

// Since is how long it is from then to m: within one boot as the host counts that; else
// as the wall clock has it, and at least as long as the host has been up since.
func (m Moment) Since(then Moment) time.Duration {
	if m.SameBoot(then) {
		return m.Up - then.Up
	}
	return max(m.Wall.Sub(then.Wall), m.Up, 0)
}

// AtLeast is what of that does not rest on the wall clock, where the host tells.
func (m Moment) AtLeast(then Moment) time.Duration {
	if m.Boot == "" || then.Boot == "" || m.SameBoot(then) {
		return m.Since(then)
	}
	return m.Up
}

// Shown is a moment of this process as the wall clock would have it by now. It is t, but
// for a clock that was set since.
func Shown(t, now time.Time) time.Time {
	is := now.Add(t.Sub(now))
	if is.Round(0).Sub(t.Round(0)).Abs() < time.Second {
		return t
	}
	return is
}
