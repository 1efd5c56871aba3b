package wire

// PrepareMessage has the guest start an interpreter ahead of the program that
// it will run. The answer is PREPARED on the same stream, or FAIL.
type PrepareMessage struct {
	Language string // "python"
	// Env is what programs have in their environments anyway, such as an image's.
	// What the interpreter looks at of it when it starts it gets.
	Env []string
}

// Append appends the body.
func (m *PrepareMessage) Append(b []byte) []byte {
	b = appendText(b, 1, m.Language)
	for _, v := range m.Env {
		b = appendBytes(b, 2, v)
	}
	return b
}

// Parse reads the body.
func (m *PrepareMessage) Parse(body []byte) error {
	*m = PrepareMessage{}
	return fields(body, func(tag byte, v value) error {
		switch tag {
		case 1:
			return v.text(&m.Language)
		case 2:
			return v.list(&m.Env, maxList)
		}
		return unknown("PREPARE", tag)
	})
}
