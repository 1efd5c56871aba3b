-- +goose Up
-- What the host's clock had when it was looked at last: so it is seen that it was set.
CREATE TABLE clock (
	one  INTEGER PRIMARY KEY CHECK (one = 1),
	boot TEXT NOT NULL,    -- boot_id of random(4); empty: the host does not tell
	wall INTEGER NOT NULL, -- Unix time, microseconds
	up   INTEGER NOT NULL  -- CLOCK_BOOTTIME, microseconds
) STRICT;

-- +goose Down
DROP TABLE clock;
