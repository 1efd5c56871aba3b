//go:build !linux

package main

import "errors"

func serve(string) error           { return errors.ErrUnsupported }
func connect(string, string) error { return errors.ErrUnsupported }
