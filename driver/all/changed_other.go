//go:build !linux

package all

import "io/fs"

func changed(fs.FileInfo) string { return "" }
