//go:build !linux

package main

func main() { panic("this is for Linux") }
