//go:build !linux

package server

import "net"

// Activated returns nothing: there is no such service manager.
func Activated() ([]net.Listener, error) { return nil, nil }
