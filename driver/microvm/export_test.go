package microvm

// Sum is the digest that a template with these fields has.
func Sum(t *Template) string { return t.sum() }
