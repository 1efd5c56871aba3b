//go:build unix

package main

import (
	"os"
	"os/signal"
	"syscall"
)

// watchSize calls f, from one goroutine, whenever the terminal's size has
// changed, until stop is called.
func watchSize(f func()) (stop func()) {
	changed, done, ended := make(chan os.Signal, 1), make(chan struct{}), make(chan struct{})
	signal.Notify(changed, syscall.SIGWINCH)
	go func() {
		defer close(ended)
		for {
			select {
			case <-changed:
				f()
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(changed)
		close(done)
		<-ended
	}
}
