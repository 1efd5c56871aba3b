// Package testprog makes the programs that tests, benchmarks and the demo run:
// small Go and C programs compiled here to WebAssembly and natively, and
// modules that are put together byte by byte, so that they need no compiler.
//
// Builds are kept in the user's cache directory under a key made of source,
// compiler and flags; each is made once for all test binaries.
//
// The functions that take a testing.TB skip the test when a compiler is
// missing, and fail it when AXO_REQUIRE=1 is set, as `make test` does.
package testprog
