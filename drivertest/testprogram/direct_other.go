//go:build !linux

package main

const direct = 0

func aligned(n int) []byte { return make([]byte, n) }
