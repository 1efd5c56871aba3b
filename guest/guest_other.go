//go:build !linux

package guest

import "errors"

// Main fails: containers are made on Linux.
func Main([]string) error { return errors.ErrUnsupported }
