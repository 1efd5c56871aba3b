//go:build !linux

package image

import "context"

func (s *Store) correction(context.Context, string, []string, []layerInfo) (string, error) {
	return "", nil
}
