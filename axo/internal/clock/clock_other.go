//go:build !linux

package clock

import "time"

// Boot names this boot of the host, and tells how long it has been up. Empty: it cannot
// be found out.
func Boot() (id string, up time.Duration) { return "", 0 }
