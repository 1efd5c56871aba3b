package e2b

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/axocoatl/isolation"
	pb "github.com/axocoatl/isolation/axo/server/e2b/internal/filesystempb"
	"github.com/axocoatl/isolation/axo/server/forward"
)

// watch begins to watch a directory.
func watch(ctx context.Context, at string, all bool) (*files, <-chan isolation.FileEvent, error) {
	f, err := open(ctx)
	if err != nil {
		return nil, nil, err
	}
	i, err := f.Stat(ctx, at)
	if err == nil && !i.IsDir() {
		err = fmt.Errorf("%s is no directory: %w", at, isolation.ErrInvalidArgument)
	}
	if err != nil {
		return nil, nil, err
	}
	var w isolation.Watcher
	if u := f.box.owner(); u != "" {
		w, err = f.box.FilesAs(ctx, u)
	} else {
		w, err = f.box.Watcher(ctx)
	}
	if err != nil {
		return nil, nil, err
	}
	events, err := w.Watch(ctx, at, all)
	return f, events, err
}

var errLost = fmt.Errorf("more happened than could be told: watch anew: %w", isolation.ErrResourceExhausted)

// told is an event as clients know them: one for each thing that happened.
func (f *files) told(ctx context.Context, dir string, e isolation.FileEvent, entry bool) (out []*pb.FilesystemEvent) {
	name := strings.TrimPrefix(strings.TrimPrefix(e.Name, dir), "/")
	for _, x := range []struct {
		happened bool
		kind     pb.EventType
	}{
		{e.Created, pb.EventType_EVENT_TYPE_CREATE}, {e.Written, pb.EventType_EVENT_TYPE_WRITE},
		{e.Changed, pb.EventType_EVENT_TYPE_CHMOD}, {e.Removed, pb.EventType_EVENT_TYPE_REMOVE},
	} {
		if !x.happened {
			continue
		}
		ev := &pb.FilesystemEvent{Name: valid(name), Type: x.kind}
		if entry {
			if i, err := f.look(ctx, e.Name); err == nil {
				ev.Entry = i
			}
		}
		out = append(out, ev)
	}
	return out
}

// WatchDir tells what happens in a directory until the client has enough.
func (fl filesystem) WatchDir(ctx context.Context, req *connect.Request[pb.WatchDirRequest], out *connect.ServerStream[pb.WatchDirResponse]) error {
	ctx, cancel := forward.Until(ctx, fl.s.config.Stopping)
	defer cancel()
	m, dir := req.Msg, boxOf(ctx).abs(req.Msg.GetPath())
	f, events, err := watch(ctx, dir, m.GetRecursive())
	if err != nil {
		return rpcError(err)
	}
	if err := out.Send(&pb.WatchDirResponse{Event: &pb.WatchDirResponse_Start{Start: &pb.WatchDirResponse_StartEvent{}}}); err != nil {
		return err
	}
	tick := time.NewTicker(every(req.Header()))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := out.Send(&pb.WatchDirResponse{Event: &pb.WatchDirResponse_Keepalive{Keepalive: &pb.WatchDirResponse_KeepAlive{}}}); err != nil {
				return err
			}
		case e, ok := <-events:
			switch {
			case !ok && ctx.Err() != nil:
				return rpcError(context.Cause(ctx))
			case !ok:
				return rpcError(fmt.Errorf("the sandbox is gone: %w", isolation.ErrUnavailable))
			case e.Lost:
				return rpcError(errLost)
			}
			for _, ev := range f.told(ctx, dir, e, m.GetIncludeEntry()) {
				if err := out.Send(&pb.WatchDirResponse{Event: &pb.WatchDirResponse_Filesystem{Filesystem: ev}}); err != nil {
					return err
				}
			}
		}
	}
}

// maxWatchers bounds those of one sandbox, maxEvents what one keeps.
const (
	maxWatchers = 64
	maxEvents   = 4096
)

// watchers keep what happens until somebody asks.
type watchers struct {
	wg sync.WaitGroup

	mu     sync.Mutex
	m      map[string]*watcher // by id; guarded by mu
	closed bool                // guarded by mu
}

type watcher struct {
	box    string // the sandbox's instance
	cancel context.CancelFunc

	mu     sync.Mutex
	events []*pb.FilesystemEvent // guarded by mu
	err    error                 // why there are no more; guarded by mu
}

func (w *watchers) close() {
	w.mu.Lock()
	w.closed = true
	for _, x := range w.m {
		x.cancel()
	}
	w.mu.Unlock()
	w.wg.Wait()
}

func (w *watchers) add(id string, x *watcher) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	have := 0
	for _, other := range w.m {
		if other.box == x.box {
			have++
		}
	}
	switch {
	case w.closed:
		return errStopping
	case have >= maxWatchers:
		return fmt.Errorf("the sandbox has %d watchers: remove one: %w", have, isolation.ErrResourceExhausted)
	}
	w.m[id] = x
	return nil
}

func (w *watchers) get(ctx context.Context, id string, remove bool) (*watcher, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	x := w.m[id]
	if x == nil || x.box != boxOf(ctx).Instance() {
		return nil, fmt.Errorf("watcher %.80q: %w", id, isolation.ErrNotFound)
	}
	if remove {
		delete(w.m, id)
	}
	return x, nil
}

func (fl filesystem) CreateWatcher(ctx context.Context, req *connect.Request[pb.CreateWatcherRequest]) (*connect.Response[pb.CreateWatcherResponse], error) {
	m, b := req.Msg, boxOf(ctx)
	dir := b.abs(m.GetPath())
	// It lives on after this request.
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	x := &watcher{box: b.Instance(), cancel: cancel}
	var random [10]byte
	_, _ = rand.Read(random[:]) // it never fails
	id := "w" + hex.EncodeToString(random[:])
	if err := fl.s.watchers.add(id, x); err != nil {
		cancel()
		return nil, rpcError(err)
	}
	f, events, err := watch(own, dir, m.GetRecursive())
	if err != nil {
		cancel()
		_, _ = fl.s.watchers.get(ctx, id, true)
		return nil, rpcError(err)
	}
	fl.s.watchers.wg.Go(func() {
		defer cancel()
		err := x.keep(own, f, events, dir, m.GetIncludeEntry())
		x.mu.Lock()
		x.err = err
		x.mu.Unlock()
		if !errors.Is(err, errLost) {
			_, _ = fl.s.watchers.get(own, id, true) // nobody can ask any more
		}
	})
	return connect.NewResponse(&pb.CreateWatcherResponse{WatcherId: id}), nil
}

// keep takes what happens, until there is no more or it is too much.
func (w *watcher) keep(ctx context.Context, f *files, events <-chan isolation.FileEvent, dir string, entry bool) error {
	for e := range events {
		if e.Lost {
			return errLost
		}
		list := f.told(ctx, dir, e, entry)
		w.mu.Lock()
		full := len(w.events)+len(list) > maxEvents
		if !full {
			w.events = append(w.events, list...)
		}
		w.mu.Unlock()
		if full {
			return errLost
		}
	}
	return fmt.Errorf("the watcher has ended: %w", isolation.ErrUnavailable)
}

// GetWatcherEvents tells what has happened since it was asked last.
func (fl filesystem) GetWatcherEvents(ctx context.Context, req *connect.Request[pb.GetWatcherEventsRequest]) (*connect.Response[pb.GetWatcherEventsResponse], error) {
	x, err := fl.s.watchers.get(ctx, req.Msg.GetWatcherId(), false)
	if err != nil {
		return nil, rpcError(err)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	list := x.events
	x.events = nil
	if len(list) == 0 && x.err != nil {
		return nil, rpcError(x.err)
	}
	return connect.NewResponse(&pb.GetWatcherEventsResponse{Events: list}), nil
}

func (fl filesystem) RemoveWatcher(ctx context.Context, req *connect.Request[pb.RemoveWatcherRequest]) (*connect.Response[pb.RemoveWatcherResponse], error) {
	x, err := fl.s.watchers.get(ctx, req.Msg.GetWatcherId(), true)
	if err != nil {
		return nil, rpcError(err)
	}
	x.cancel()
	return connect.NewResponse(&pb.RemoveWatcherResponse{}), nil
}
