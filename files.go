package isolation

import (
	"context"
	"io"
	"io/fs"
	"time"
)

// Files is an ability of a Sandbox: its own file system, seen from inside, with
// the rights of its user. Names are absolute paths in the sandbox; any other is
// InvalidArgument. No name is ever followed on the host. What is not there is
// NotFound, what the user may not do PermissionDenied, what does not fit
// ResourceExhausted. A sandbox with Files has Directories too.
type Files interface {
	// Stat follows links.
	Stat(ctx context.Context, name string) (fs.FileInfo, error)
	// ReadFile opens a regular file; another is InvalidArgument. ctx bounds the
	// reading too. Close it.
	ReadFile(ctx context.Context, name string) (io.ReadCloser, error)
	// WriteFile makes a regular file, or puts a new one in the place of what has
	// the name, when all of r is there: after an error all is as it was. A link
	// is replaced, not followed. Of mode the permission bits count.
	WriteFile(ctx context.Context, name string, mode fs.FileMode, r io.Reader) error
	// Remove removes a file, a link, or an empty directory; one that is not
	// empty is FailedPrecondition.
	Remove(ctx context.Context, name string) error
}

// Directories is an ability of a Sandbox with [Files], told by the same name.
type Directories interface {
	// ReadDir lists a directory, in no order. One of more entries than a
	// listing takes returns those, and ResourceExhausted.
	ReadDir(ctx context.Context, name string) ([]fs.FileInfo, error)
	// Mkdir makes a directory, with those above it that are not there. One that
	// is there already is well, and stays as it is.
	Mkdir(ctx context.Context, name string, mode fs.FileMode) error
	// Rename moves a file, or a directory, in the place of what has the new
	// name. A directory does not take the place of one that is not empty.
	Rename(ctx context.Context, from, to string) error
	// RemoveAll removes a file, or a directory with all that is in it.
	RemoveAll(ctx context.Context, name string) error
}

// UserFiles is an ability of a Sandbox with [Files] whose programs can have users
// (OptionUser).
type UserFiles interface {
	// FilesAs returns the files as a user, of the form of ProcessSpec.User, can reach
	// them: by owner and mode, without capabilities. One that the sandbox does not know
	// is NotFound when they are used. A container on the host's own directories has
	// only its own user's: Unsupported.
	FilesAs(user string) (UserFilesystem, error)
}

// UserFilesystem is what a user can do with files.
type UserFilesystem interface {
	Files
	Directories
	Watcher
}

// Watcher is an ability of a Sandbox.
type Watcher interface {
	// Watch tells what happens to a file, or in a directory; with all also in
	// directories below it, as far as the sandbox can watch them. It has begun
	// when Watch returns. The channel is closed when ctx ends or the sandbox
	// does. Who is slow to receive is told, by Lost, that there was more.
	Watch(ctx context.Context, name string, all bool) (<-chan FileEvent, error)
}

// FileInfo is what is known of a file of a sandbox. It implements [fs.FileInfo].
type FileInfo struct {
	Base     string      `json:"name"` // the last element
	Bytes    int64       `json:"size"`
	Bits     fs.FileMode `json:"mode"`
	Modified time.Time   `json:"modified"`
	UID      int64       `json:"uid"` // in the sandbox
	GID      int64       `json:"gid"`
	Link     string      `json:"link,omitempty"` // what a link says
}

// Name returns the last element of the name.
func (i FileInfo) Name() string { return i.Base }

// Size returns the length in bytes.
func (i FileInfo) Size() int64 { return i.Bytes }

// Mode returns type and permission bits.
func (i FileInfo) Mode() fs.FileMode { return i.Bits }

// ModTime returns when the content was changed last.
func (i FileInfo) ModTime() time.Time { return i.Modified }

// IsDir reports whether it is a directory.
func (i FileInfo) IsDir() bool { return i.Bits.IsDir() }

// Sys returns nil.
func (i FileInfo) Sys() any { return nil }

// FileEvent is something that happened to a file; more than one may have.
type FileEvent struct {
	Name    string `json:"name,omitempty"` // absolute path in the sandbox
	Created bool   `json:"created,omitempty"`
	Written bool   `json:"written,omitempty"`
	Removed bool   `json:"removed,omitempty"`
	Changed bool   `json:"changed,omitempty"` // mode, owner or times
	Lost    bool   `json:"lost,omitempty"`    // more happened than is told
}
