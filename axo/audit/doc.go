// Package audit is the record of who had what run, and what became of it: entries in
// a SQLite database, each with the hash of the one before it, so that an entry that
// was changed, taken out or put in is found. It cannot tell that its newest entries
// were cut off, or all of it was written anew, unless a hash is known from elsewhere:
// see [Log.Head].
package audit
