// Package session keeps sandboxes that stay: who owns them, what runs in them,
// what it wrote, and when they go. It writes down what it is about to do before
// it does it, so that a process that comes after it, however it ended, finds
// every sandbox and every program again, or can say truthfully that it is lost.
//
// It knows sandboxes by the contract of the root package and nothing of HTTP.
package session
