package main

// watchSize never calls f: Windows has no signal for it.
func watchSize(func()) (stop func()) { return func() {} }
