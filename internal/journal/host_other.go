//go:build !linux

package journal

import (
	"errors"
	"os"
)

// Elsewhere nothing outlives its process but processes, which end when their
// connection does: the journal keeps no entries of other processes alive.
func thisProcess() (owner, error) { return owner{PID: os.Getpid()}, nil }

// OursAlone is for Linux.
func OursAlone(string) error { return nil }

func startTime(int) (uint64, error) { return 0, nil }

func killProcess(int, uint64) (bool, error) { return false, errors.ErrUnsupported }

func removeGroup(string) (bool, error) { return false, errors.ErrUnsupported }

func letDie(string) {}

func killBranded(uint64) (bool, error) { return false, errors.ErrUnsupported }

func validBrand(uint64) bool { return false }

func openNoFollow(name string, flag int) (*os.File, error) { return os.OpenFile(name, flag, 0) }

func takeLock(*os.File) error { return errors.ErrUnsupported }

func dropLock(*os.File) error { return errors.ErrUnsupported }

func lockedBy(string) (bool, error) { return false, errors.ErrUnsupported }

func processLives(int, uint64) bool { return false }
