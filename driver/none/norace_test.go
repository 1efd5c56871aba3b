//go:build !race

package none_test

const raceEnabled = false
