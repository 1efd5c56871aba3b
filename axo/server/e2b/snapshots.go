package e2b

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/engine"
)

func (s *Server) registerSnapshots(handle func(pattern string, h handler)) {
	handle("POST /sandboxes/{id}/snapshots", s.snapshot)
	handle("POST /sandboxes/{id}/fork", s.fork)
	handle("GET /snapshots", s.snapshots)
}

// snapshotInfo is a snapshot as clients see it. What they call it is what they make a
// sandbox of, in the place of a template.
type snapshotInfo struct {
	SnapshotID string   `json:"snapshotID"`
	Names      []string `json:"names"`
}

func snapshotOf(x *session.Snapshot) snapshotInfo {
	i := x.Info()
	out := snapshotInfo{i.ID, []string{}}
	if i.Name != i.ID {
		out.Names = append(out.Names, i.Name)
	}
	return out
}

func (s *Server) snapshot(w http.ResponseWriter, r *http.Request, tenant string) error {
	var in struct {
		Name string `json:"name"`
	}
	if err := decode(r, &in); err != nil {
		return err
	}
	sn, err := s.mine(r, tenant)
	if err != nil {
		return err
	}
	x, err := sn.Snapshot(r.Context(), in.Name)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, snapshotOf(x))
	return nil
}

func (s *Server) snapshots(w http.ResponseWriter, r *http.Request, tenant string) error {
	q := r.URL.Query()
	limit := maxPage
	if v := q.Get("limit"); v != "" {
		var err error
		if limit, err = strconv.Atoi(v); err != nil || limit < 1 || limit > maxPage {
			return fmt.Errorf("limit %.20q: want 1 to %d: %w", v, maxPage, isolation.ErrInvalidArgument)
		}
	}
	out, token := []snapshotInfo{}, q.Get("nextToken")
	for _, x := range s.config.Sessions.Snapshots(tenant) {
		i := x.Info()
		// A page goes on after the one that was last on the page before.
		if at := strconv.FormatInt(i.Created.UnixNano(), 10) + "_" + i.ID; token != "" {
			if at == token {
				token = ""
			}
			continue
		}
		if x.Labels()[labelTemplate] == "" || q.Get("sandboxID") != "" && q.Get("sandboxID") != i.Sandbox || q.Get("name") != "" && q.Get("name") != i.Name {
			continue
		}
		if len(out) == limit {
			last, err := s.config.Sessions.FindSnapshot(tenant, out[limit-1].SnapshotID)
			if err != nil {
				return err
			}
			w.Header().Set("X-Next-Token", strconv.FormatInt(last.Info().Created.UnixNano(), 10)+"_"+last.Info().ID)
			break
		}
		out = append(out, snapshotOf(x))
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

func (s *Server) removeSnapshot(w http.ResponseWriter, r *http.Request, tenant string) error {
	x, err := s.config.Sessions.FindSnapshot(tenant, r.PathValue("id"))
	if err != nil || x.Labels()[labelTemplate] == "" {
		return fmt.Errorf("snapshot %.80q: %w", r.PathValue("id"), isolation.ErrNotFound)
	}
	// It goes on when the caller does not wait for it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), time.Minute)
	defer cancel()
	if err := x.Delete(ctx); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// labelsFor are those of a copy: what its origin has, and over it what is asked for.
func labelsFor(origin, own map[string]string) (map[string]string, error) {
	out := maps.Clone(origin)
	delete(out, labelPrivate)
	env := map[string]string{}
	for _, text := range []string{origin[labelEnv], own[labelEnv]} {
		if text == "" {
			continue
		}
		if err := json.Unmarshal([]byte(text), &env); err != nil {
			return nil, fmt.Errorf("environment: %w", err)
		}
	}
	b, err := json.Marshal(env)
	if err != nil {
		return nil, err
	}
	for k, v := range own {
		out[k] = v
	}
	out[labelEnv] = string(b)
	return out, nil
}

// restore makes a sandbox of a snapshot; what ran in it goes on.
func (s *Server) restore(ctx context.Context, tenant string, x *session.Snapshot, r session.Request) (*session.Session, error) {
	if i := x.Info(); r.Tier != nil && *r.Tier != i.Tier {
		return nil, fmt.Errorf("the snapshot is of the tier %s: %w", i.Tier, isolation.ErrInvalidArgument)
	}
	var err error
	if r.Labels, err = labelsFor(x.Labels(), r.Labels); err != nil {
		return nil, err
	}
	if r.Egress.IsZero() { // which would be what its origin has
		r.Egress = engine.Egress{Granted: true, Deny: []string{everything, "::/0"}}
	}
	return s.config.Sessions.Restore(ctx, tenant, x.Info().ID, r)
}

// maxForks is how many copies clients may ask for at once.
const maxForks = 64

func (s *Server) fork(w http.ResponseWriter, r *http.Request, tenant string) error {
	in := struct {
		Timeout int64 `json:"timeout"`
		Count   int   `json:"count"`
	}{Timeout: defaultTimeout, Count: 1}
	if err := decode(r, &in); err != nil {
		return err
	}
	if in.Count < 1 || in.Count > maxForks {
		return fmt.Errorf("count %d: want 1 to %d: %w", in.Count, maxForks, isolation.ErrInvalidArgument)
	}
	sn, err := s.mine(r, tenant)
	if err != nil {
		return err
	}
	life, err := s.times(in.Timeout)
	if err != nil {
		return err
	}
	var requests []session.Request
	for range in.Count {
		requests = append(requests, session.Request{ID: newID(), Metadata: sn.Info().Metadata, Labels: sn.Labels(), Idle: life, Life: life, PauseAtEnd: sn.PausesAtEnd()})
	}
	copies, err := sn.Fork(r.Context(), requests)
	if err != nil {
		return err
	}
	type result struct {
		Sandbox sandbox `json:"sandbox"`
	}
	out := slices.Grow([]result{}, len(copies))
	for _, c := range copies {
		out = append(out, result{s.opened(c)})
	}
	writeJSON(w, http.StatusCreated, out)
	return nil
}
