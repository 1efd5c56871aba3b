package e2b

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/axocoatl/isolation"
	pb "github.com/axocoatl/isolation/axo/server/e2b/internal/filesystempb"
)

// filesystem has the files of a sandbox.
type filesystem struct{ s *Server }

// files are what a request works on, and the names of users in the sandbox.
type files struct {
	isolation.Files
	isolation.Directories
	box           *box
	users, groups map[int64]string
}

// maxEntries bounds a listing of several levels, maxNames a file of users.
const (
	maxEntries = 10_000
	maxNames   = 1 << 20
)

// open is for a request that works on files, with the rights of its user.
func open(ctx context.Context) (*files, error) {
	b := boxOf(ctx)
	var f interface {
		isolation.Files
		isolation.Directories
	}
	var err error
	if u := b.owner(); u != "" {
		f, err = b.FilesAs(ctx, u)
	} else {
		f, err = b.Files(ctx)
	}
	if err != nil {
		return nil, err
	}
	return &files{Files: f, Directories: f, box: b}, nil
}

// names reads who is who. What the sandbox has there is its own to say.
func (f *files) names(ctx context.Context, file string) map[int64]string {
	m := map[int64]string{0: "root"}
	r, err := f.ReadFile(ctx, file)
	if err != nil {
		return m
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxNames))
	if err != nil {
		return m
	}
	for line := range strings.Lines(string(b)) {
		if p := strings.SplitN(line, ":", 4); len(p) == 4 {
			if n, err := strconv.ParseInt(p[2], 10, 64); err == nil && m[n] == "" {
				m[n] = valid(p[0])
			}
		}
	}
	return m
}

func name(m map[int64]string, id int64) string { return cmp.Or(m[id], strconv.FormatInt(id, 10)) }

// typeOf is a file's type, of those that clients know.
func typeOf(m fs.FileMode) pb.FileType {
	switch {
	case m.IsDir():
		return pb.FileType_FILE_TYPE_DIRECTORY
	case m&fs.ModeSymlink != 0:
		return pb.FileType_FILE_TYPE_SYMLINK
	case m.IsRegular():
		return pb.FileType_FILE_TYPE_FILE
	}
	return pb.FileType_FILE_TYPE_UNSPECIFIED
}

// entry is a file as clients see it; a link has the type of what it leads to.
func (f *files) entry(ctx context.Context, at string, i fs.FileInfo) *pb.EntryInfo {
	if f.users == nil {
		f.users, f.groups = f.names(ctx, "/etc/passwd"), f.names(ctx, "/etc/group")
	}
	e := &pb.EntryInfo{
		Name: valid(path.Base(at)), Type: typeOf(i.Mode()), Path: valid(at), Size: i.Size(), Mode: uint32(i.Mode().Perm()),
		Permissions: i.Mode().String(), ModifiedTime: timestamppb.New(i.ModTime()),
	}
	x, ok := i.(isolation.FileInfo)
	if !ok {
		return e
	}
	e.Owner, e.Group = name(f.users, x.UID), name(f.groups, x.GID)
	if x.Mode()&fs.ModeSymlink == 0 {
		return e
	}
	to := x.Link
	if !strings.HasPrefix(to, "/") {
		to = path.Join(path.Dir(at), to)
	}
	to = valid(to)
	e.SymlinkTarget = &to
	if t, err := f.Stat(ctx, at); err == nil {
		e.Type = typeOf(t.Mode())
	}
	return e
}

// look tells of a file itself, also of a link: only a listing tells links.
func (f *files) look(ctx context.Context, at string) (*pb.EntryInfo, error) {
	if at != "/" {
		list, err := f.ReadDir(ctx, path.Dir(at))
		for _, i := range list {
			if i.Name() == path.Base(at) {
				return f.entry(ctx, at, i), nil
			}
		}
		if err == nil {
			return nil, fmt.Errorf("%s: %w", at, isolation.ErrNotFound)
		}
	}
	// One that cannot be listed, or not whole, may let its files be looked at.
	i, err := f.Stat(ctx, at)
	if err != nil {
		return nil, err
	}
	return f.entry(ctx, at, i), nil
}

func (filesystem) Stat(ctx context.Context, req *connect.Request[pb.StatRequest]) (*connect.Response[pb.StatResponse], error) {
	f, err := open(ctx)
	if err != nil {
		return nil, rpcError(err)
	}
	e, err := f.look(ctx, f.box.abs(req.Msg.GetPath()))
	if err != nil {
		return nil, rpcError(err)
	}
	return connect.NewResponse(&pb.StatResponse{Entry: e}), nil
}

func (filesystem) MakeDir(ctx context.Context, req *connect.Request[pb.MakeDirRequest]) (*connect.Response[pb.MakeDirResponse], error) {
	f, err := open(ctx)
	if err != nil {
		return nil, rpcError(err)
	}
	at := f.box.abs(req.Msg.GetPath())
	if i, err := f.Stat(ctx, at); err == nil {
		if i.IsDir() {
			return nil, rpcError(fmt.Errorf("directory %s: %w", at, isolation.ErrAlreadyExists))
		}
		return nil, rpcError(fmt.Errorf("%s is there and is no directory: %w", at, isolation.ErrInvalidArgument))
	}
	if err := f.Mkdir(ctx, at, 0o755); err != nil {
		return nil, rpcError(err)
	}
	e, err := f.look(ctx, at)
	if err != nil {
		return nil, rpcError(err)
	}
	return connect.NewResponse(&pb.MakeDirResponse{Entry: e}), nil
}

func (filesystem) Move(ctx context.Context, req *connect.Request[pb.MoveRequest]) (*connect.Response[pb.MoveResponse], error) {
	f, err := open(ctx)
	if err != nil {
		return nil, rpcError(err)
	}
	from, to := f.box.abs(req.Msg.GetSource()), f.box.abs(req.Msg.GetDestination())
	if _, err = f.look(ctx, from); err == nil {
		if err = f.Mkdir(ctx, path.Dir(to), 0o755); err == nil {
			err = f.Rename(ctx, from, to)
		}
	}
	if err != nil {
		return nil, rpcError(err)
	}
	e, err := f.look(ctx, to)
	if err != nil {
		return nil, rpcError(err)
	}
	return connect.NewResponse(&pb.MoveResponse{Entry: e}), nil
}

// ListDir lists a directory, and those below it as deep as is asked for. Links are
// not followed.
func (filesystem) ListDir(ctx context.Context, req *connect.Request[pb.ListDirRequest]) (*connect.Response[pb.ListDirResponse], error) {
	f, err := open(ctx)
	if err != nil {
		return nil, rpcError(err)
	}
	at := f.box.abs(req.Msg.GetPath())
	i, err := f.Stat(ctx, at)
	if err == nil && !i.IsDir() {
		err = fmt.Errorf("%s is no directory: %w", at, isolation.ErrInvalidArgument)
	}
	if err != nil {
		return nil, rpcError(err)
	}
	out := &pb.ListDirResponse{}
	if err := f.list(ctx, at, max(1, req.Msg.GetDepth()), out); err != nil {
		return nil, rpcError(err)
	}
	return connect.NewResponse(out), nil
}

func (f *files) list(ctx context.Context, dir string, depth uint32, out *pb.ListDirResponse) error {
	list, err := f.ReadDir(ctx, dir)
	if err != nil {
		return err
	}
	slices.SortFunc(list, func(a, b fs.FileInfo) int { return cmp.Compare(a.Name(), b.Name()) })
	for _, i := range list {
		at := path.Join(dir, i.Name())
		if len(out.Entries) == maxEntries {
			return fmt.Errorf("more than %d entries: list fewer levels: %w", maxEntries, isolation.ErrResourceExhausted)
		}
		out.Entries = append(out.Entries, f.entry(ctx, at, i))
		if !i.IsDir() || depth < 2 {
			continue
		}
		// One that is gone by now, or that the user may not list, has no entries.
		if err := f.list(ctx, at, depth-1, out); err != nil && !errors.Is(err, isolation.ErrNotFound) && !errors.Is(err, isolation.ErrPermissionDenied) {
			return err
		}
	}
	return nil
}

func (filesystem) Remove(ctx context.Context, req *connect.Request[pb.RemoveRequest]) (*connect.Response[pb.RemoveResponse], error) {
	f, err := open(ctx)
	if err != nil {
		return nil, rpcError(err)
	}
	if err := f.RemoveAll(ctx, f.box.abs(req.Msg.GetPath())); err != nil && !errors.Is(err, isolation.ErrNotFound) {
		return nil, rpcError(err)
	}
	return connect.NewResponse(&pb.RemoveResponse{}), nil
}
