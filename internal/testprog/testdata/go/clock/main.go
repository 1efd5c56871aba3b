// Command clock prints, as JSON, the wall clock in nanoseconds, how far the
// monotonic clock moved over a millisecond's sleep, and 16 random bytes.
package main

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"os"
	"time"
)

func main() {
	start := time.Now()
	time.Sleep(time.Millisecond)
	moved := time.Since(start)
	b := make([]byte, 16)
	rand.Read(b)
	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"wall_ns":  start.UnixNano(),
		"moved_ns": int64(moved),
		"random":   hex.EncodeToString(b),
	})
}
