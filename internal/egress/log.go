package egress

import (
	"io"
	"log"
)

// discardLog is for what the proxy's parts would say about a hostile client.
var discardLog = log.New(io.Discard, "", 0)
