package engine

import (
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/egress"
)

// Config makes an Engine. Only Registry is needed.
type Config struct {
	Registry isolation.Registry
	Policy   Policy
	// Rules returns the policy for one request, and the name of the rule that it is
	// of; its Admission is not looked at. An error refuses the request. It is called
	// for each, so it must be quick, and safe for concurrent use. nil: Policy is
	// everybody's.
	Rules func(Request) (p Policy, rule string, err error)
	// StateDir holds the journal, the probe cache and spill files; it is made
	// with mode 0700. Empty: nothing is kept across processes, and there is
	// no journal.
	StateDir string
	// MaxRuns bounds the runs that are admitted at once; further ones wait.
	// 0: 1024. Drivers bound by themselves what computes at once.
	MaxRuns int
	// MaxQueue bounds the runs that wait for admission; one more is
	// ResourceExhausted at once. 0: 4096.
	MaxQueue int
	// ProbeTimeout bounds one probe of one engine. 0: 3 s.
	ProbeTimeout time.Duration
	Logger       *slog.Logger     // nil: silent
	OnEvent      func(Event)      // called in order for each run, from its goroutine, but for EventEgress; nil: none
	Observer     Observer         // of the steps of runs; nil: none
	Now          func() time.Time // nil: time.Now
}

// Policy is what the operator allows. The zero value is the strict default.
type Policy struct {
	// MinTier is the weakest tier for a requirement. An entry is the operator's
	// word: no request lowers it. Where there is none DefaultMinTier holds,
	// which a request that names a tier may lower.
	MinTier map[isolation.Requirement]isolation.Tier `json:"min_tier,omitempty"`
	// Engines lists the engines that may be used; empty allows all.
	Engines []string `json:"engines,omitempty"`
	// AllowEmulated lets emulated virtual machines be used.
	AllowEmulated bool `json:"allow_emulated,omitempty"`
	// EmulatedIsMicroVM lets an emulated one satisfy MinTier microvm.
	EmulatedIsMicroVM bool `json:"emulated_is_microvm,omitempty"`
	// DefaultLimits and DefaultResources fill what a request leaves zero. A
	// default that the chosen tier cannot enforce is listed as such, not
	// refused: nobody asked for it by name.
	DefaultLimits    isolation.Limits    `json:"default_limits,omitzero"`
	DefaultResources isolation.Resources `json:"default_resources,omitzero"`
	// MaxLimits and MaxResources bound what a request may ask for, and fill what it
	// leaves zero where there is no default. An engine that cannot enforce one of
	// them is not used. Zero is no bound.
	MaxLimits    isolation.Limits    `json:"max_limits,omitzero"`
	MaxResources isolation.Resources `json:"max_resources,omitzero"`
	// Egress lists what requests may ask for of the network, in the words of
	// [Egress].Allow; what none of these rules covers is refused. Empty: nothing; nil
	// in the policy of a rule: what the engine's own has.
	Egress []string `json:"egress,omitempty"`
	// Admission bounds the wait for a place; 0: 30 s.
	Admission time.Duration `json:"-"`

	rule string // that it is of
}

// Validate checks that the policy's bounds are bounds. The error is of class
// InvalidArgument.
func (p Policy) Validate() error {
	bad := func(what string) error {
		return fmt.Errorf("policy: %s: %w", what, isolation.ErrInvalidArgument)
	}
	if p.Admission < 0 {
		return bad("admission must not be negative")
	}
	// Any requirement and program do: the policy's own values alone are looked at.
	for _, r := range []isolation.Resources{p.DefaultResources, p.MaxResources} {
		if err := (isolation.Spec{Requirement: isolation.Arbitrary, Resources: r}).Validate(); err != nil {
			return fmt.Errorf("policy: %w", err)
		}
	}
	for _, l := range []isolation.Limits{p.DefaultLimits, p.MaxLimits} {
		if err := (isolation.ProcessSpec{Args: []string{"x"}, Limits: l}).Validate(); err != nil {
			return fmt.Errorf("policy: %w", err)
		}
	}
	if _, err := egress.ParseRules(p.Egress); err != nil {
		return bad("egress: " + err.Error())
	}
	if _, err := p.limits(p.DefaultLimits); err != nil {
		return bad("a default is above what a request may have: " + err.Error())
	}
	if _, err := p.resources(p.DefaultResources); err != nil {
		return bad("a default is above what a request may have: " + err.Error())
	}
	return nil
}

// Request is one run.
type Request struct {
	ID      string // of the run and its sandbox; empty: made
	Spec    isolation.Spec
	Process isolation.ProcessSpec

	// Source says by which way the request came ("cli", "rest", "mcp"), Tool which
	// registered tool it is a call of, and Signer by whose key that is signed: a policy's
	// rules may go by them. Nothing else looks at them.
	Source, Tool, Signer string

	// Tier and Engine ask for exactly these; nil and "" leave the choice.
	Tier   *isolation.Tier
	Engine string
	// MinTier raises the least tier. It, or else Tier, lowers it where the
	// policy has no entry for the requirement: to name a weaker tier is the
	// caller's consent, and the Decision warns of it.
	MinTier *isolation.Tier
	// AllowEmulated is the caller's consent to an emulated virtual machine.
	AllowEmulated bool
	// AllowUnenforced is the caller's consent to limits that the tier cannot
	// enforce; they are then listed. Without it they are refused.
	AllowUnenforced bool

	// Egress is what the program may reach of the network.
	Egress Egress

	Stdin io.Reader
	// Stdout and Stderr get the output as it comes; nil: none.
	Stdout, Stderr io.Writer
	// Resize gives the sizes of the terminal as they change, if the process has
	// one and can be told.
	Resize <-chan isolation.TerminalSize
	// Capture keeps head and tail of each stream in the Result.
	Capture Capture
	// CopyIn is copied into the sandbox before the process starts; CopyOut out of
	// it when it has ended, however, unless ctx has. In a sandbox's files they
	// have the rights of its user.
	CopyIn, CopyOut []Copy
	// CopyOutBytes bounds what CopyOut copies, all together. 0, and at most: 4 GiB.
	CopyOutBytes int64
	// Sync are directories that are copied into the sandbox, and what has changed
	// there back when the process has ended, unless ctx has. Links are refused, in
	// both directions.
	Sync []Copy
}

// Capture says what is kept of a stream. The zero value keeps nothing.
type Capture struct {
	Head, Tail int64 // bytes kept of the beginning and of the end
	// SpillBytes > 0 also writes each stream to a file under the state
	// directory, up to that size; Result names it. Needs a StateDir.
	SpillBytes int64
}

// DefaultCapture keeps 512 KiB of the beginning and of the end.
var DefaultCapture = Capture{Head: 512 << 10, Tail: 512 << 10}

// Decision is how the tier was chosen.
type Decision struct {
	Wanted   isolation.Tier          `json:"wanted"` // the ideal
	Got      isolation.Tier          `json:"got"`
	Engine   string                  `json:"engine"`
	MinTier  isolation.Tier          `json:"min_tier"`
	Degraded bool                    `json:"degraded"` // source through a WASM interpreter
	Emulated bool                    `json:"emulated,omitempty"`
	Rule     string                  `json:"rule,omitempty"` // of the policy, where that has rules
	Skipped  []Skip                  `json:"skipped"`
	Enforced []isolation.Enforcement `json:"enforced"` // each limit asked for or defaulted
	Warnings []string                `json:"warnings,omitempty"`
}

// Skip is an engine that was not used, and why.
type Skip struct {
	Tier   isolation.Tier `json:"tier"`
	Engine string         `json:"engine,omitempty"` // empty: the whole tier
	Reason string         `json:"reason"`
	Fix    string         `json:"fix,omitempty"` // what a person can do
}

// Result is one run's truth.
type Result struct {
	ID       string         `json:"id"`
	Tier     isolation.Tier `json:"tier"`
	Engine   string         `json:"engine"`
	Decision Decision       `json:"decision"`
	Exit     isolation.Exit `json:"exit"`

	Stdout      Text   `json:"stdout"` // head and tail, as Capture asked
	Stderr      Text   `json:"stderr"`
	StdoutBytes int64  `json:"stdout_bytes"` // all that was written
	StderrBytes int64  `json:"stderr_bytes"`
	Truncated   bool   `json:"truncated"` // something written is not in Stdout or Stderr
	StdoutFile  string `json:"stdout_file,omitempty"`
	StderrFile  string `json:"stderr_file,omitempty"`

	Usage isolation.Usage `json:"usage"` // of Exit, with all phases

	Egress *EgressReport `json:"egress,omitempty"` // nil: it had no network
}

// Event is something that happened to a run.
type Event struct {
	Time  time.Time `json:"time"`
	RunID string    `json:"run_id"`
	// Tenant is the Spec's.
	Tenant string    `json:"tenant,omitempty"`
	Kind   EventKind `json:"kind"`
	// Fields hold what belongs to the kind: tier, engine, reason, error.
	Fields map[string]string `json:"fields,omitempty"`
}

// EventKind names an event.
type EventKind string

// The events of a run, in their order; refused and failed end it.
const (
	EventAdmitted EventKind = "admitted"
	EventChosen   EventKind = "chosen"
	EventRefused  EventKind = "refused"
	EventCreated  EventKind = "created"
	EventStarted  EventKind = "started"
	EventExited   EventKind = "exited"
	EventDeleted  EventKind = "deleted"
	EventFailed   EventKind = "failed"
	// EventEgress comes at any time while the sandbox is there, also of one that
	// Create has made: a program asks for a connection; method, host, allowed, and
	// address or reason.
	EventEgress EventKind = "egress"
)

// EngineReport is one line of Doctor.
type EngineReport struct {
	Tier     isolation.Tier     `json:"tier"`
	Engine   string             `json:"engine"`
	OK       bool               `json:"ok"`
	Reason   string             `json:"reason,omitempty"` // why not
	Fix      string             `json:"fix,omitempty"`
	Features isolation.Features `json:"features"`
	Took     time.Duration      `json:"-"`
	TookMS   float64            `json:"took_ms"`
}
