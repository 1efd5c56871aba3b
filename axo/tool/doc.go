// Package tool has tools as first-class things: declared once in a manifest, kept in
// a registry by content and version, and called by name. Each call goes through the
// engine, in the tier that what the tool is and the policy demand.
//
// A Registry is a directory. Its tools are content-addressed: a Tool's digest is of
// its manifest and of each file that came with it, and what is called is what was
// added. A Caller calls them: input that the tool's schema refuses runs nothing, and
// output that it refuses is a failure.
package tool
