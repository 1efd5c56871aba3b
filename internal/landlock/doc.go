// Package landlock makes rule sets by which threads give up access to files,
// sockets and signals (landlock(7)). It is for Linux; elsewhere the package is empty.
package landlock
