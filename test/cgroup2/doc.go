// Command cgroup2 runs tests on a Linux that has control groups of version 2
// only, with all controllers: see package inside, and `make test-cgroup2`.
package main
