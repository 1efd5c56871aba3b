package e2b

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/build"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/image"
)

// What is kept with a sandbox of a template that was built.
const labelBuild = "e2b.build"

// uploadPattern is that of what tells a link by which files are sent.
const uploadPattern = "GET /templates/{id}/files/{hash}"

func (s *Server) registerTemplates(handle func(pattern string, h handler)) {
	t := func(h handler) handler {
		return func(w http.ResponseWriter, r *http.Request, tenant string) error {
			if s.config.Templates == nil {
				return &isolation.UnsupportedError{Feature: "building templates", Need: "a host with containers"}
			}
			return h(w, r, tenant)
		}
	}
	handle("POST /v3/templates", t(s.newTemplate))
	handle("POST /v2/templates/{id}/builds/{build}", t(s.startBuild))
	handle("GET /templates/{id}/builds/{build}/status", t(s.buildStatus))
	handle("GET /templates/{id}/builds/{build}/logs", t(s.buildStatus))
	handle(uploadPattern, t(s.uploadLink))
	handle("GET /templates", t(s.listTemplates))
	handle("GET /v2/templates", t(s.listTemplates))
	handle("GET /templates/{id}", t(s.getTemplate))
	handle("GET /templates/{id}/{what}", t(s.aboutTemplate))
	handle("PATCH /templates/{id}", t(s.patchTemplate))
	handle("PATCH /v2/templates/{id}", t(s.patchTemplate))
	handle("POST /templates/tags", t(s.setTags))
	handle("DELETE /templates/tags", t(s.removeTags))
	handle("DELETE /templates/{id}", s.removeTemplate)
	s.control.HandleFunc("PUT /templates/{id}/files/{hash}", s.putFiles)
}

type templateCreated struct {
	TemplateID string   `json:"templateID"`
	BuildID    string   `json:"buildID"`
	Public     bool     `json:"public"`
	Names      []string `json:"names"`
	Tags       []string `json:"tags"`
	Aliases    []string `json:"aliases"`
}

func (s *Server) newTemplate(w http.ResponseWriter, r *http.Request, tenant string) error {
	var in struct {
		Name          string   `json:"name"`
		Alias         string   `json:"alias"`
		TeamID        string   `json:"teamID"` // there is the key's tenant alone
		Tags          []string `json:"tags"`
		CPUCount      int      `json:"cpuCount"`
		MemoryMB      int      `json:"memoryMB"`
		MinFreeDiskMB int      `json:"minFreeDiskMb"`
	}
	if err := decode(r, &in); err != nil {
		return err
	}
	if in.MinFreeDiskMB != 0 {
		return fmt.Errorf("minFreeDiskMb: what a sandbox may write is bounded by the server: %w", isolation.ErrInvalidArgument)
	}
	if in.Name == "" {
		in.Name = in.Alias
	}
	x, b, err := s.config.Templates.New(tenant, build.Want{Name: in.Name, Tags: in.Tags, CPUs: in.CPUCount, MemoryMB: in.MemoryMB})
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusAccepted, templateCreated{x.ID, b.ID, false, []string{x.Name}, b.Tags, []string{x.Name}})
	return nil
}

// signUpload is what opens an upload for who has no key: it goes to a place of its own in
// E2B's service, and its clients send none.
func (s *Server) signUpload(tenant, hash, until string) string {
	h := hmac.New(sha256.New, s.secret)
	fmt.Fprintf(h, "upload\x00%s\x00%s\x00%s", tenant, hash, until)
	return hex.EncodeToString(h.Sum(nil))
}

const uploadTime = time.Hour

func (s *Server) uploadLink(w http.ResponseWriter, r *http.Request, tenant string) error {
	x, err := s.config.Templates.Get(tenant, r.PathValue("id"))
	if err != nil {
		return err
	}
	hash := r.PathValue("hash")
	if len(hash) != 64 {
		return fmt.Errorf("files %.80q: want 64 hexadecimal digits: %w", hash, isolation.ErrInvalidArgument)
	}
	until := strconv.FormatInt(time.Now().Add(uploadTime).Unix(), 10)
	scheme := "http"
	if r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https" {
		scheme = "https"
	}
	u := url.URL{Scheme: scheme, Host: r.Host, Path: "/templates/" + x.ID + "/files/" + hash, RawQuery: url.Values{
		"tenant": {tenant}, "until": {until}, "signature": {s.signUpload(tenant, hash, until)},
	}.Encode()}
	writeJSON(w, http.StatusCreated, struct {
		Present bool   `json:"present"`
		URL     string `json:"url"`
	}{s.config.Templates.Uploaded(tenant, hash), u.String()})
	return nil
}

// tooOld reports whether a link that is good until then is not any more. One that would be
// good for longer than any is was made before the clock was set back.
func tooOld(until int64, now time.Time) bool {
	return now.Unix() > until || until > now.Add(uploadTime).Unix()
}

// putFiles takes what a link of uploadLink is for.
func (s *Server) putFiles(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	tenant, hash, until := q.Get("tenant"), r.PathValue("hash"), q.Get("until")
	n, err := strconv.ParseInt(until, 10, 64)
	if err != nil || s.config.Templates == nil || !same(q.Get("signature"), s.signUpload(tenant, hash, until)) || tooOld(n, time.Now()) {
		writeError(w, http.StatusUnauthorized, "the link is not this server's, or too old")
		return
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(uploadTime)) // where it cannot be set, its own bounds it
	if err := s.config.Templates.Upload(r.Context(), tenant, hash, r.Body); err != nil {
		fail(w, err)
		return
	}
	w.WriteHeader(http.StatusOK)
}

func (s *Server) startBuild(w http.ResponseWriter, r *http.Request, tenant string) error {
	var in struct {
		FromImage    string `json:"fromImage"`
		FromTemplate string `json:"fromTemplate"`
		Registry     *struct {
			Type     string `json:"type"`
			Username string `json:"username"`
			Password string `json:"password"`
			// Of registries that are not known here.
			AWSAccessKeyID     json.RawMessage `json:"awsAccessKeyId"`
			AWSSecretAccessKey json.RawMessage `json:"awsSecretAccessKey"`
			AWSRegion          json.RawMessage `json:"awsRegion"`
			ServiceAccountJSON json.RawMessage `json:"serviceAccountJson"`
		} `json:"fromImageRegistry"`
		Force bool `json:"force"`
		Steps []struct {
			Type        string   `json:"type"`
			Args        []string `json:"args"`
			FilesHash   string   `json:"filesHash"`
			Force       bool     `json:"force"`
			ForceUpload *bool    `json:"forceUpload"` // it was done before
		} `json:"steps"`
		StartCmd string `json:"startCmd"`
		ReadyCmd string `json:"readyCmd"`
	}
	if err := decode(r, &in); err != nil {
		return err
	}
	p := build.Plan{FromImage: in.FromImage, FromTemplate: in.FromTemplate, Force: in.Force, Start: in.StartCmd, Ready: in.ReadyCmd}
	for _, x := range in.Steps {
		p.Steps = append(p.Steps, build.Step{Type: x.Type, Args: x.Args, FilesHash: x.FilesHash, Force: x.Force})
	}
	var keys image.Keychain
	if in.Registry != nil {
		if in.Registry.Type != "registry" {
			return fmt.Errorf("fromImageRegistry of type %.20q: this server has those of a name and a password: %w", in.Registry.Type, isolation.ErrInvalidArgument)
		}
		var err error
		if keys, err = image.BasicAuth(in.FromImage, in.Registry.Username, in.Registry.Password); err != nil {
			return err
		}
	}
	if err := s.config.Templates.Start(tenant, r.PathValue("id"), r.PathValue("build"), p, keys); err != nil {
		return err
	}
	w.WriteHeader(http.StatusAccepted)
	return nil
}

type buildReason struct {
	Message string        `json:"message"`
	Step    string        `json:"step,omitempty"`
	Log     []build.Entry `json:"logEntries"`
}

// maxLogEntries is how many lines clients are told at once.
const maxLogEntries = 100

func (s *Server) buildStatus(w http.ResponseWriter, r *http.Request, tenant string) error {
	q, id := r.URL.Query(), r.PathValue("id")
	offset := 0
	if v := q.Get("logsOffset"); v != "" {
		var err error
		if offset, err = strconv.Atoi(v); err != nil || offset < 0 {
			return fmt.Errorf("logsOffset %.20q: %w", v, isolation.ErrInvalidArgument)
		}
	}
	b, lines, err := s.config.Templates.Status(tenant, id, r.PathValue("build"))
	if err != nil {
		return err
	}
	out := struct {
		TemplateID string        `json:"templateID"`
		BuildID    string        `json:"buildID"`
		Status     string        `json:"status"`
		Logs       []string      `json:"logs"`
		Entries    []build.Entry `json:"logEntries"`
		Reason     *buildReason  `json:"reason,omitempty"`
	}{TemplateID: id, BuildID: b.ID, Status: b.Status, Logs: []string{}, Entries: lines[min(offset, len(lines)):min(offset+maxLogEntries, len(lines))]}
	if out.Entries == nil {
		out.Entries = []build.Entry{}
	}
	for _, e := range out.Entries {
		out.Logs = append(out.Logs, e.Message)
	}
	if b.Reason != nil {
		out.Reason = &buildReason{b.Reason.Message, b.Reason.Step, []build.Entry{}}
		for _, e := range lines[max(0, len(lines)-20):] {
			if e.Step == b.Reason.Step {
				out.Reason.Log = append(out.Reason.Log, e)
			}
		}
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// templateInfo is a template as clients see it: what it was built as last.
type templateInfo struct {
	TemplateID    string          `json:"templateID"`
	BuildID       string          `json:"buildID"`
	CPUCount      int             `json:"cpuCount"`
	MemoryMB      int             `json:"memoryMB"`
	DiskSizeMB    int64           `json:"diskSizeMB"`
	Public        bool            `json:"public"`
	Aliases       []string        `json:"aliases"`
	Names         []string        `json:"names"`
	CreatedAt     time.Time       `json:"createdAt"`
	UpdatedAt     time.Time       `json:"updatedAt"`
	CreatedBy     *struct{}       `json:"createdBy"`
	LastSpawnedAt *time.Time      `json:"lastSpawnedAt"`
	SpawnCount    int             `json:"spawnCount"`
	BuildCount    int             `json:"buildCount"`
	EnvdVersion   string          `json:"envdVersion"`
	BuildStatus   string          `json:"buildStatus"`
	Builds        []templateBuild `json:"builds,omitempty"`
}

type templateBuild struct {
	BuildID     string     `json:"buildID"`
	Status      string     `json:"status"`
	CreatedAt   time.Time  `json:"createdAt"`
	UpdatedAt   time.Time  `json:"updatedAt"`
	FinishedAt  *time.Time `json:"finishedAt,omitempty"`
	CPUCount    int        `json:"cpuCount"`
	MemoryMB    int        `json:"memoryMB"`
	DiskSizeMB  int64      `json:"diskSizeMB,omitempty"`
	EnvdVersion string     `json:"envdVersion"`
}

func templateOf(x build.Template) templateInfo {
	out := templateInfo{
		TemplateID: x.ID, Aliases: []string{x.Name}, Names: []string{x.Name}, CreatedAt: x.Created, UpdatedAt: x.Updated,
		BuildCount: len(x.Builds), EnvdVersion: envdVersion,
	}
	if len(x.Builds) > 0 {
		b := x.Builds[len(x.Builds)-1]
		out.BuildID, out.CPUCount, out.MemoryMB, out.DiskSizeMB, out.BuildStatus = b.ID, b.CPUs, b.MemoryMB, b.Disk>>20, b.Status
	}
	return out
}

func (s *Server) listTemplates(w http.ResponseWriter, _ *http.Request, tenant string) error {
	out := []templateInfo{}
	for _, x := range s.config.Templates.List(tenant) {
		out = append(out, templateOf(x))
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

func (s *Server) getTemplate(w http.ResponseWriter, r *http.Request, tenant string) error {
	x, err := s.config.Templates.Get(tenant, r.PathValue("id"))
	if err != nil {
		return err
	}
	out := templateOf(x)
	for i := len(x.Builds) - 1; i >= 0; i-- {
		b := x.Builds[i]
		tb := templateBuild{BuildID: b.ID, Status: b.Status, CreatedAt: b.Created, UpdatedAt: b.Created, CPUCount: b.CPUs, MemoryMB: b.MemoryMB, DiskSizeMB: b.Disk >> 20, EnvdVersion: envdVersion}
		if !b.Finished.IsZero() {
			tb.FinishedAt, tb.UpdatedAt = &b.Finished, b.Finished
		}
		out.Builds = append(out.Builds, tb)
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// aboutTemplate is /templates/aliases/NAME and /templates/ID/tags.
func (s *Server) aboutTemplate(w http.ResponseWriter, r *http.Request, tenant string) error {
	id, what := r.PathValue("id"), r.PathValue("what")
	switch {
	case id == "aliases":
		name, _, err := build.ParseName(what)
		if err != nil {
			return err
		}
		x, err := s.config.Templates.Get(tenant, name)
		if err != nil {
			return err
		}
		writeJSON(w, http.StatusOK, struct {
			TemplateID string `json:"templateID"`
			Public     bool   `json:"public"`
		}{x.ID, false})
		return nil
	case what == "tags":
		x, err := s.config.Templates.Get(tenant, id)
		if err != nil {
			return err
		}
		type tag struct {
			Tag       string    `json:"tag"`
			BuildID   string    `json:"buildID"`
			CreatedAt time.Time `json:"createdAt"`
		}
		out := []tag{}
		for _, k := range slices.Sorted(maps.Keys(x.Tags)) {
			out = append(out, tag{k, x.Tags[k], x.Tagged[k]})
		}
		writeJSON(w, http.StatusOK, out)
		return nil
	}
	return &isolation.UnsupportedError{Feature: fmt.Sprintf("%s %.80s of E2B's API", r.Method, r.URL.Path)}
}

func (s *Server) patchTemplate(w http.ResponseWriter, r *http.Request, tenant string) error {
	var in struct {
		Public bool `json:"public"`
	}
	if err := decode(r, &in); err != nil {
		return err
	}
	if in.Public {
		return fmt.Errorf("a template is its tenant's alone: it cannot be public: %w", isolation.ErrInvalidArgument)
	}
	x, err := s.config.Templates.Get(tenant, r.PathValue("id"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, struct {
		Names []string `json:"names"`
	}{[]string{x.Name}})
	return nil
}

func (s *Server) setTags(w http.ResponseWriter, r *http.Request, tenant string) error {
	var in struct {
		Target string   `json:"target"`
		Tags   []string `json:"tags"`
	}
	if err := decode(r, &in); err != nil {
		return err
	}
	b, err := s.config.Templates.SetTags(tenant, in.Target, in.Tags)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, struct {
		BuildID string   `json:"buildID"`
		Tags    []string `json:"tags"`
	}{b.ID, in.Tags})
	return nil
}

func (s *Server) removeTags(w http.ResponseWriter, r *http.Request, tenant string) error {
	var in struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}
	if err := decode(r, &in); err != nil {
		return err
	}
	if err := s.config.Templates.RemoveTags(tenant, in.Name, in.Tags); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// removeTemplate removes what clients call a template: one that was built, or a snapshot.
func (s *Server) removeTemplate(w http.ResponseWriter, r *http.Request, tenant string) error {
	if s.config.Templates != nil {
		err := s.config.Templates.Delete(tenant, r.PathValue("id"))
		if err == nil {
			w.WriteHeader(http.StatusNoContent)
		}
		if !errors.Is(err, isolation.ErrNotFound) {
			return err
		}
	}
	return s.removeSnapshot(w, r, tenant)
}

// built has a request start from a template that its tenant has built; ok is false if there is
// none of this name.
func (s *Server) built(r *session.Request, tenant, template string) (img image.Image, ok bool, err error) {
	if s.config.Templates == nil {
		return img, false, nil
	}
	_, b, err := s.config.Templates.Find(tenant, template)
	if errors.Is(err, isolation.ErrNotFound) {
		if _, terr := s.config.Templates.Get(tenant, template); terr == nil {
			return img, true, err // what there is of it cannot be used
		}
		return img, false, nil
	}
	if err == nil {
		img, err = s.config.Images.Get(b.Image)
	}
	if err != nil {
		return img, true, fmt.Errorf("the image of template %.80q is gone; build it again: %w (%w)", template, isolation.ErrFailedPrecondition, err)
	}
	r.Spec.Resources.CPUs, r.Spec.Resources.MemoryBytes = float64(b.CPUs), int64(b.MemoryMB)<<20
	r.Labels[labelBuild] = b.ID
	return img, true, nil
}

// Bounds of the start of a template's own program.
const (
	readyTime = 50 * time.Second // clients wait for a minute
	readyPoll = 100 * time.Millisecond
)

// createOf makes a sandbox, and starts what its template says.
func (s *Server) createOf(ctx context.Context, tenant string, r session.Request, img image.Image) (*session.Session, error) {
	sn, err := s.config.Sessions.Create(ctx, tenant, r)
	if err != nil {
		return nil, err
	}
	if err := s.startUp(ctx, sn, img.Config.Labels[build.StartLabel], img.Config.Labels[build.ReadyLabel]); err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return nil, errors.Join(err, sn.Delete(ctx))
	}
	return sn, nil
}

// startUp runs the start command of a template in a sandbox that was just made, and waits
// until its ready command says that it is ready.
func (s *Server) startUp(ctx context.Context, sn *session.Session, start, ready string) error {
	if start == "" {
		return nil
	}
	x := &box{sn, "", homeOf(sn)}
	tag := "start"
	command := func(text, id string) (*session.Exec, error) {
		return sn.Exec(ctx, isolation.ProcessSpec{ExecID: id, Args: []string{"/bin/bash", "-l", "-c", text}, Env: x.env(nil), Cwd: x.home}, false, false)
	}
	if _, err := command(start, newExecID(&tag)); err != nil {
		return fmt.Errorf("start command of the template: %w", err)
	}
	if ready == "" {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, readyTime, fmt.Errorf("the template's ready command has not succeeded within %v: %w", readyTime, isolation.ErrUnavailable))
	defer cancel()
	for {
		e, err := command(ready, "")
		if err != nil {
			return fmt.Errorf("ready command of the template: %w", err)
		}
		exit, err := e.Wait(ctx)
		switch {
		case err != nil:
			return fmt.Errorf("ready command of the template: %w", err)
		case exit.Reason == isolation.ReasonExited && exit.Code == 0:
			return nil
		}
		select {
		case <-time.After(readyPoll):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
