//go:build !linux

package main

func main() { panic("attacks are for Linux") }
