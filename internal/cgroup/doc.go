// Package cgroup makes control groups of both versions of the interface
// (Documentation/admin-guide/cgroup-v1, cgroup-v2.rst), below or beside this
// process's own group: limits, counters, members, and a kill that misses none.
// It is for Linux; elsewhere the package is empty.
package cgroup
