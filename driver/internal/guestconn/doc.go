// Package guestconn is the host's end of a connection to a guest
// (guest/wire/PROTOCOL.md) on which everything goes through frames: the
// transport need not pass descriptors. Drivers get from it what package proc
// wants: programs, their streams and their ends, and the files of the sandbox.
//
// What comes over the connection is hostile: the guest may have been taken over.
// A frame that breaks a rule ends the connection. What is kept of a peer is
// bounded by the credit that it was given.
package guestconn
