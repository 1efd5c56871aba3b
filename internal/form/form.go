// Package form has regular expressions that are compiled when they are first used: a
// program that starts for one call does not pay for all that it could check.
package form

import (
	"regexp"
	"sync"
)

// Of is an expression of package regexp. One that is none panics when it is first used.
func Of(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}
