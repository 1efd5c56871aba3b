-- +goose Up
CREATE TABLE entries (
	seq     INTEGER PRIMARY KEY,
	time    INTEGER NOT NULL, -- Unix time, microseconds
	kind    TEXT NOT NULL,
	tenant  TEXT NOT NULL,
	subject TEXT NOT NULL,
	body    BLOB NOT NULL, -- what is hashed; the columns before it are copies, to search by
	hash    BLOB NOT NULL  -- SHA-256 of the hash before it and the body
) STRICT;
CREATE INDEX entries_by_tenant ON entries (tenant, seq);
CREATE INDEX entries_by_subject ON entries (subject, seq);

-- What the first entry that is there follows: nothing, or the last that was removed.
CREATE TABLE base (
	one  INTEGER PRIMARY KEY CHECK (one = 1),
	seq  INTEGER NOT NULL,
	hash BLOB NOT NULL
) STRICT;
INSERT INTO base VALUES (1, 0, zeroblob(32));

-- +goose Down
DROP TABLE entries;
DROP TABLE base;
