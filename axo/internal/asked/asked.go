// Package asked has who asked for something go with its context, so that it is written
// down with what comes of it.
package asked

import "context"

type by struct{}

// By is a context of what was asked for with an API key, by the key's id.
func By(ctx context.Context, key string) context.Context { return context.WithValue(ctx, by{}, key) }

// Key is the id of the key by which something was asked for; "": nobody asked, or no key
// was needed.
func Key(ctx context.Context) string {
	key, _ := ctx.Value(by{}).(string)
	return key
}
