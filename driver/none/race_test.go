//go:build race

package none_test

// raceEnabled: times mean nothing under the race detector.
const raceEnabled = true
