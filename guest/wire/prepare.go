package wire

// PrepareMessage has the guest start an interpreter ahead of the program that
// it will run. The answer is PREPARED on the same stream, or FAIL.
type PrepareMessage struct {
	Language string // "python"
}

// Append appends the body.
func (m *PrepareMessage) Append(b []byte) []byte { return appendText(b, 1, m.Language) }

// Parse reads the body.
func (m *PrepareMessage) Parse(body []byte) error {
	*m = PrepareMessage{}
	return fields(body, func(tag byte, v value) error {
		if tag == 1 {
			return v.text(&m.Language)
		}
		return unknown("PREPARE", tag)
	})
}
