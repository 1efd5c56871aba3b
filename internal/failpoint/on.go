//go:build failpoint

package failpoint

import (
	"os"
)

var chosen = os.Getenv("AXO_FAILPOINT")

// Hit kills the program if this is the chosen point.
func Hit(name string) {
	if name != chosen {
		return
	}
	p, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = p.Kill()
	}
	if err != nil {
		panic(err)
	}
	select {} // the signal is on its way
}
