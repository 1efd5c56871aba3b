//go:build !unix

package server

import (
	"net"

	"github.com/axocoatl/isolation"
)

var errNoDaemon = &isolation.UnsupportedError{Feature: "the daemon on this system", Need: "Linux, or another unix"}

func lockAlone(string) (unlock func(), err error) { return nil, errNoDaemon }

func listenPrivate(string) (net.Listener, error) { return nil, errNoDaemon }
