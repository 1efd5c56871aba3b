// Package api is what the daemon's REST interface says, for the server and for
// its clients: the JSON of requests and answers, the classes of errors, and the
// frames of streams.
package api

import (
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/engine"
)

// Create asks for a sandbox that stays. Zero times are the daemon's defaults.
type Create struct {
	ID              string            `json:"id,omitempty"`
	Spec            isolation.Spec    `json:"spec"`
	Tier            *isolation.Tier   `json:"tier,omitempty"`
	Engine          string            `json:"engine,omitempty"`
	MinTier         *isolation.Tier   `json:"min_tier,omitempty"`
	AllowEmulated   bool              `json:"allow_emulated,omitempty"`
	AllowUnenforced bool              `json:"allow_unenforced,omitempty"`
	Egress          engine.Egress     `json:"egress,omitzero" doc:"What it may reach of the network; the daemon's policy has to grant it"`
	Ephemeral       bool              `json:"ephemeral,omitempty" doc:"The sandbox may go with the daemon"`
	Metadata        map[string]string `json:"metadata,omitempty"`
	IdleMS          int64             `json:"idle_ms,omitempty" doc:"How long nothing may happen before it is deleted; a running program counts as something"`
	LifeMS          int64             `json:"life_ms,omitempty" doc:"When it is deleted in any case"`
	HoldMS          int64             `json:"hold_ms,omitempty" doc:"Delete it, whatever runs in it, when nobody has held it for so long"`
}

// Status is what a sandbox is at a moment. Of a lost one nothing is left but what
// is known of it; one that is unknown may live, and cannot be reached.
type Status string

// The statuses.
const (
	StatusCreating Status = "creating"
	StatusRunning  Status = "running"
	StatusPaused   Status = "paused"
	StatusDeleting Status = "deleting"
	StatusLost     Status = "lost"
	StatusUnknown  Status = "unknown"
)

// Sandbox is what is known of a sandbox.
type Sandbox struct {
	ID     string `json:"id"`
	Tenant string `json:"tenant,omitempty" doc:"Whose it is, where an admin asked about another tenant's"`
	// Instance differs between sandboxes that had the same id one after another.
	// As If-Match it keeps a request from reaching another than is meant.
	Instance string            `json:"instance" doc:"What a request's If-Match must be, if it has one"`
	Status   Status            `json:"status" enum:"creating,running,paused,deleting,lost,unknown"`
	Reason   string            `json:"reason,omitempty" doc:"Why it is lost or unknown"`
	Durable  bool              `json:"durable" doc:"It outlives the daemon"`
	Spec     isolation.Spec    `json:"spec"`
	Decision engine.Decision   `json:"decision"`
	Metadata map[string]string `json:"metadata,omitempty"`
	From     string            `json:"from,omitempty" doc:"The snapshot or sandbox that it is a copy of"`
	Created  time.Time         `json:"created"`
	Active   time.Time         `json:"active" doc:"When something happened last"`
	IdleMS   int64             `json:"idle_ms"`
	IdleEnds *time.Time        `json:"idle_ends,omitempty" doc:"When it is deleted if nothing happens; not there while a program runs or it is paused"`
	Expires  time.Time         `json:"expires" doc:"When it is deleted in any case"`
	Execs    []string          `json:"live_execs" nullable:"false"`
	// Abilities are named as in isolation.Features; none while it is being made, or when
	// it is lost.
	Abilities []string `json:"abilities" nullable:"false" doc:"What can be done with it beside running programs: pause, files, watch, stats, ports, snapshot, fork"`
}

// Sandboxes is a list.
type Sandboxes struct {
	Sandboxes []Sandbox `json:"sandboxes" nullable:"false"`
}

// Copy is what a copy of a sandbox has of its own; zero times are the daemon's
// defaults. The rest is as it was.
type Copy struct {
	ID       string            `json:"id,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"`
	IdleMS   int64             `json:"idle_ms,omitempty"`
	LifeMS   int64             `json:"life_ms,omitempty"`
}

// Fork asks for copies of a sandbox, with what runs in it.
type Fork struct {
	Copies []Copy `json:"copies" minItems:"1" maxItems:"64" nullable:"false"`
}

// TakeSnapshot asks for a snapshot of a sandbox.
type TakeSnapshot struct {
	Name string `json:"name,omitempty" doc:"Its name among the tenant's; made if there is none"`
}

// SnapshotStatus is what a snapshot is at a moment.
type SnapshotStatus string

// The statuses.
const (
	SnapshotTaking   SnapshotStatus = "taking"
	SnapshotReady    SnapshotStatus = "ready"
	SnapshotDeleting SnapshotStatus = "deleting"
)

// Snapshot is a sandbox on disk, of which others are made.
type Snapshot struct {
	ID       string         `json:"id"`
	Tenant   string         `json:"tenant,omitempty" doc:"Whose it is, where an admin asked about another tenant's"`
	Name     string         `json:"name"`
	Status   SnapshotStatus `json:"status" enum:"taking,ready,deleting"`
	Sandbox  string         `json:"sandbox" doc:"Of which it was taken"`
	Durable  bool           `json:"durable" doc:"What is made of it outlives the daemon"`
	Tier     isolation.Tier `json:"tier"`
	Engine   string         `json:"engine"`
	Spec     isolation.Spec `json:"spec"`
	Programs []string       `json:"programs" nullable:"false" doc:"Ids of those that run in it"`
	Created  time.Time      `json:"created"`
}

// Snapshots is a list.
type Snapshots struct {
	Snapshots []Snapshot `json:"snapshots" nullable:"false"`
}

// Touch sets times anew; zero leaves one as it is. It counts as activity.
type Touch struct {
	IdleMS int64 `json:"idle_ms,omitempty"`
	LifeMS int64 `json:"life_ms,omitempty" doc:"From now on"`
}

// Exec starts a program.
type Exec struct {
	Process isolation.ProcessSpec `json:"process"`
	// Stdin keeps the program's input open for what is sent to it later. Input is
	// the beginning of it, or all of it if Stdin is not set.
	Stdin bool   `json:"stdin,omitempty" doc:"Input is sent later"`
	Input []byte `json:"input,omitempty" doc:"The beginning of the input, or all of it"`
	// RawArgs and RawEnv are process.args and process.env where those are not text:
	// JSON would silently change them.
	RawArgs [][]byte `json:"raw_args,omitempty" doc:"In the place of process.args, where they are not text"`
	RawEnv  [][]byte `json:"raw_env,omitempty" doc:"In the place of process.env, where it is not text"`
}

// Process is what is known of a program.
type Process struct {
	ID      string                `json:"id"`
	Process isolation.ProcessSpec `json:"process"`
	PID     int                   `json:"pid,omitempty" doc:"On the host"`
	Running bool                  `json:"running"`
	Started time.Time             `json:"started"`
	Ended   *time.Time            `json:"ended,omitempty"`
	Exit    *isolation.Exit       `json:"exit,omitempty"`
	Unknown string                `json:"unknown,omitempty" doc:"Why nobody knows how it ended"`
	Stdin   Input                 `json:"stdin"`
	Stdout  Kept                  `json:"stdout"`
	Stderr  Kept                  `json:"stderr"`
}

// Input is the state of a program's input.
type Input struct {
	Open bool  `json:"open" doc:"It takes more"`
	Busy bool  `json:"busy,omitempty" doc:"A request is giving it some"`
	To   int64 `json:"to" doc:"How much it was given; -1: it is not known"`
}

// Kept is what is kept of a stream, by offsets from its beginning.
type Kept struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
}

// Processes is a list.
type Processes struct {
	Execs []Process `json:"execs" nullable:"false"`
}

// Kill sends a signal.
type Kill struct {
	Signal string `json:"signal,omitempty" doc:"A name such as TERM, or a number; KILL if there is none"`
}

// Run is one program in a sandbox of its own.
type Run struct {
	Spec            isolation.Spec        `json:"spec"`
	Process         isolation.ProcessSpec `json:"process"`
	Tier            *isolation.Tier       `json:"tier,omitempty"`
	Engine          string                `json:"engine,omitempty"`
	MinTier         *isolation.Tier       `json:"min_tier,omitempty"`
	AllowEmulated   bool                  `json:"allow_emulated,omitempty"`
	AllowUnenforced bool                  `json:"allow_unenforced,omitempty"`
	Egress          engine.Egress         `json:"egress,omitzero" doc:"What it may reach of the network; the daemon's policy has to grant it"`
	Input           []byte                `json:"input,omitempty" doc:"All of its standard input"`
	// Async has the answer come at once, with 202 and a RunStatus: the run goes on.
	Async bool `json:"async,omitempty" doc:"Answer at once; the run goes on by itself"`
}

// RunStatus is what is known of a run that goes on by itself.
type RunStatus struct {
	ID      string                `json:"id"`
	Tenant  string                `json:"tenant,omitempty" doc:"Whose it is, where an admin asked about another tenant's"`
	Key     string                `json:"key,omitempty" doc:"The Idempotency-Key of its request"`
	Running bool                  `json:"running"`
	Durable bool                  `json:"durable" doc:"It goes on when the daemon ends, and the next one has its result"`
	Spec    isolation.Spec        `json:"spec" doc:"Without the data of a module"`
	Process isolation.ProcessSpec `json:"process"`
	Started time.Time             `json:"started"`
	Ended   *time.Time            `json:"ended,omitempty"`
	// Result is there when it has ended, unless Problem alone is. At the end of a
	// stream it is without the output, which the stream had.
	Result  *engine.Result `json:"result,omitempty"`
	Problem *Problem       `json:"problem,omitempty" doc:"Why it could not be run, or why nobody knows how it ended"`
	Stdout  Kept           `json:"stdout"`
	Stderr  Kept           `json:"stderr"`
}

// RunStatuses is a list.
type RunStatuses struct {
	Runs []RunStatus `json:"runs" nullable:"false"`
}

// File is what is known of a file of a sandbox.
type File = isolation.FileInfo

// Listing is a directory.
type Listing struct {
	Files     []File `json:"files" nullable:"false"`
	Truncated bool   `json:"truncated,omitempty" doc:"There are more than a listing takes"`
}

// Mkdir makes a directory, with those above it.
type Mkdir struct {
	Path string `json:"path"`
	Mode uint32 `json:"mode,omitempty" doc:"Permission bits; 0755 if there are none"`
}

// Rename moves a file.
type Rename struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// TunnelProtocol is what a request to a port's address upgrades to: the connection
// is then that to the port, byte for byte.
const TunnelProtocol = "axo-tcp"

// Tiers is what this host can run.
type Tiers struct {
	Engines []engine.EngineReport `json:"engines" nullable:"false"`
}

// Health says that the daemon answers.
type Health struct {
	Status  string `json:"status" enum:"ready,draining"`
	Version string `json:"version"`
}

// Image is a container image of the daemon's host.
type Image struct {
	Digest       string    `json:"digest" doc:"Of its manifest"`
	Names        []string  `json:"names" nullable:"false"`
	Platform     string    `json:"platform"`
	Created      time.Time `json:"created,omitzero"`
	Added        time.Time `json:"added"`
	Size         int64     `json:"size" doc:"Of its blobs, in bytes"`
	UnpackedSize int64     `json:"unpacked_size"`
	Layers       int       `json:"layers"`
	Entrypoint   []string  `json:"entrypoint,omitempty"`
	Cmd          []string  `json:"cmd,omitempty"`
	User         string    `json:"user,omitempty"`
	WorkingDir   string    `json:"working_dir,omitempty"`
}

// Images is a list.
type Images struct {
	Images []Image `json:"images" nullable:"false"`
}

// Pull fetches an image from a registry.
type Pull struct {
	Reference string `json:"reference" minLength:"1" maxLength:"1024" doc:"As for docker pull"`
	Platform  string `json:"platform,omitempty" doc:"os/architecture, optionally /variant; the host's if there is none"`
	Insecure  bool   `json:"insecure,omitempty" doc:"Plain HTTP is allowed"`
}

// PullProgress is an event of a pull.
type PullProgress struct {
	Stage   string `json:"stage"`
	Digest  string `json:"digest"`
	Done    int64  `json:"done"`
	Total   int64  `json:"total"`
	Message string `json:"message,omitempty"`
}

// RemovedImage is what was removed.
type RemovedImage struct {
	Digest string   `json:"digest"`
	Names  []string `json:"names" nullable:"false"`
	Image  bool     `json:"image" doc:"False: it is still there under other names"`
}

// Template is one of virtual machines: a machine that was booted once, of which the
// sandboxes of tier microvm are copies.
type Template struct {
	Name      string    `json:"name"`
	Engine    string    `json:"engine"`
	Digest    string    `json:"digest"`
	Source    string    `json:"source" doc:"What its root disk was made of"`
	Accel     string    `json:"accel"`
	MemoryMiB int       `json:"memory_mib"`
	CPUs      int       `json:"cpus"`
	Kernel    string    `json:"kernel"`
	DiskBytes int64     `json:"disk_bytes"`
	Built     time.Time `json:"built"`
}

// Templates is a list.
type Templates struct {
	Templates []Template `json:"templates" nullable:"false"`
}

// BuildTemplate makes a template, of an image or of the host's system.
type BuildTemplate struct {
	Name      string   `json:"name" minLength:"1"`
	Engine    string   `json:"engine,omitempty" doc:"firecracker or qemu; what works here if there is none"`
	Image     string   `json:"image,omitempty" doc:"Make the root disk of this image; of the host's system if there is none"`
	Packages  []string `json:"packages,omitempty" doc:"Of the host, with the host's system"`
	Kernel    string   `json:"kernel,omitempty" doc:"Release or digest; the newest import if there is none"`
	Session   bool     `json:"session,omitempty" doc:"For the profile session: root and sudo work inside"`
	MemoryMiB int      `json:"memory_mib,omitempty" minimum:"0" doc:"640 if there is none"`
	CPUs      int      `json:"cpus,omitempty" minimum:"0" doc:"1 if there is none"`
	Accel     string   `json:"accel,omitempty" doc:"kvm or tcg; what works here if there is none"`
}

// Pool is an engine's sandboxes that are made before anybody asks.
type Pool struct {
	Engine string         `json:"engine"`
	Tier   isolation.Tier `json:"tier"`

	Hits     int64 `json:"hits" doc:"Handed out from a shelf"`
	Misses   int64 `json:"misses" doc:"Made while the caller waited"`
	Made     int64 `json:"made" doc:"Ahead"`
	Failures int64 `json:"failures" doc:"Of making ahead"`
	Aged     int64 `json:"aged" doc:"Removed for their age"`
	Spoiled  int64 `json:"spoiled" doc:"Ended while they stood ready"`
	Stuck    int64 `json:"stuck" doc:"Could not be removed"`

	Idle     int     `json:"idle"`
	Making   int     `json:"making"`
	Removing int     `json:"removing"`
	Out      int     `json:"out" doc:"Handed out and not deleted"`
	Shelves  []Shelf `json:"shelves" nullable:"false"`
}

// Shelf is what a pool has of one kind.
type Shelf struct {
	Spec     isolation.Spec `json:"spec" doc:"Without the data of a module"`
	Learned  bool           `json:"learned,omitempty" doc:"It was asked for, and nobody has configured it"`
	Size     int            `json:"size"`
	Idle     int            `json:"idle"`
	Making   int            `json:"making"`
	OldestMS float64        `json:"oldest_ms,omitempty" doc:"Age of the oldest that stands ready"`
	Error    string         `json:"error,omitempty" doc:"Of the last attempt to make one, if it failed"`
}

// Pools is a list.
type Pools struct {
	Pools []Pool `json:"pools" nullable:"false"`
}

// AuditEntry is one thing that happened, or was asked for.
type AuditEntry struct {
	Seq     int64     `json:"seq" doc:"1, 2, 3, ... of the whole log"`
	Time    time.Time `json:"time"`
	Kind    string    `json:"kind" doc:"request and refused: of a caller; created, exec, exited, deleted, lost, ...: of a sandbox; run, ran: of a run; egress; key_added; pruned"`
	Tenant  string    `json:"tenant,omitempty"`
	Key     string    `json:"key,omitempty" doc:"The id of the key that asked"`
	Subject string    `json:"subject,omitempty" doc:"The sandbox, run, snapshot or key"`
	Exec    string    `json:"exec,omitempty" doc:"The program in it"`
	// Fields hold what belongs to the kind.
	Fields map[string]string `json:"fields,omitempty"`
	Hash   string            `json:"hash,omitempty" doc:"SHA-256 of the hash before it and of the entry, hex"`
}

// Roles of keys.
const (
	RoleViewer = "viewer"
	RoleUser   = "user"
	RoleAdmin  = "admin"
)

// Key is a key of the daemon's, without what it is.
type Key struct {
	ID      string    `json:"id"`
	Tenant  string    `json:"tenant"`
	Role    string    `json:"role" enum:"viewer,user,admin"`
	Created time.Time `json:"created"`
}

// Keys is a list.
type Keys struct {
	Keys []Key `json:"keys" nullable:"false"`
}

// AddKey asks for a key.
type AddKey struct {
	Tenant string `json:"tenant" doc:"Whose it is to be"`
	Role   string `json:"role,omitempty" enum:"viewer,user,admin" doc:"What it is good for; not there: user"`
}

// NewKey is a key that was made.
type NewKey struct {
	Key
	Secret string `json:"secret" doc:"The key itself; it is told once"`
}

// Quota is what a tenant may have at once, and begin; 0 is no bound.
type Quota struct {
	Sandboxes   int     `json:"sandboxes,omitempty" minimum:"0"`
	Snapshots   int     `json:"snapshots,omitempty" minimum:"0"`
	MemoryBytes int64   `json:"memory_bytes,omitempty" minimum:"0" doc:"Of its sandboxes together"`
	CPUs        float64 `json:"cpus,omitempty" minimum:"0"`
	DiskBytes   int64   `json:"disk_bytes,omitempty" minimum:"0"`
	Rate        float64 `json:"rate,omitempty" minimum:"0" doc:"Sandboxes and runs that it may begin in a second"`
	Burst       int     `json:"burst,omitempty" minimum:"0" doc:"How many at once when it has begun none for a while"`
}

// Tenant is one who has a key, or something here.
type Tenant struct {
	Name      string `json:"name"`
	Keys      int    `json:"keys"`
	Sandboxes int    `json:"sandboxes"`
	Snapshots int    `json:"snapshots"`
	Runs      int    `json:"runs" doc:"That are known, ended ones too"`
	Quota     *Quota `json:"quota,omitempty" doc:"Its own; not there: it has the daemon's for all others"`
}

// Tenants is a list.
type Tenants struct {
	Tenants []Tenant `json:"tenants" nullable:"false"`
}

// AuditEntries are some of them, in order.
type AuditEntries struct {
	Entries []AuditEntry `json:"entries" nullable:"false"`
	// More is set when there are more after the last.
	More bool `json:"more"`
}
