package build

import (
	"fmt"
	"path"
	"strings"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/form"
)

// The kinds of steps.
const (
	Run     = "RUN"     // Args: command, user or ""
	Copy    = "COPY"    // Args: source, destination, owner or "", mode in octal or ""
	Env     = "ENV"     // Args: name, value, name, value ...
	Workdir = "WORKDIR" // Args: directory
	User    = "USER"    // Args: name or number
)

// Step is one line of a plan.
type Step struct {
	Type string   `json:"type"`
	Args []string `json:"args"`
	// FilesHash names the files of a Copy, which were uploaded before.
	FilesHash string `json:"filesHash,omitempty"`
	// Force has it, and what follows, done anew.
	Force bool `json:"force,omitempty"`
}

// Plan says what is to be built.
type Plan struct {
	// What it begins with: one of these.
	FromImage    string `json:"fromImage,omitempty"`
	FromTemplate string `json:"fromTemplate,omitempty"`
	Steps        []Step `json:"steps,omitempty"`
	// Force has all steps done anew.
	Force bool `json:"force,omitempty"`
	// Start is a command that runs in every sandbox of it from the beginning, Ready one
	// that succeeds when that is ready.
	Start string `json:"startCmd,omitempty"`
	Ready string `json:"readyCmd,omitempty"`
	// Entrypoint and Cmd take the place of the image's.
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
	// Shell runs commands, as its last argument; nil: a login shell of bash.
	Shell []string `json:"shell,omitempty"`
	// Plain keeps the image's own user and directory, and adds no user "user".
	Plain bool `json:"plain,omitempty"`
}

const (
	maxSteps = 200
	maxText  = 64 << 10
)

var (
	filesHash = form.Of(`^[0-9a-f]{64}$`)
	octal     = form.Of(`^0?[0-7]{3,4}$`)
)

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, isolation.ErrInvalidArgument)...)
}

// Validate checks what can be checked before anything is done.
func (p Plan) Validate() error {
	if (p.FromImage == "") == (p.FromTemplate == "") {
		return invalid("a build begins with an image or with a template: want one of the two")
	}
	if len(p.Steps) > maxSteps {
		return invalid("%d steps: at most %d are done", len(p.Steps), maxSteps)
	}
	if p.Ready != "" && p.Start == "" {
		return invalid("a ready command without a start command")
	}
	for _, text := range []string{p.Start, p.Ready, p.FromImage, p.FromTemplate} {
		if len(text) > maxText || strings.ContainsRune(text, 0) {
			return invalid("a command, or a name, of %d bytes, or with a zero byte", len(text))
		}
	}
	for i, s := range p.Steps {
		if err := s.validate(); err != nil {
			return fmt.Errorf("step %d: %s: %w", i+1, s.Type, err)
		}
	}
	return nil
}

func (s Step) validate() error {
	for _, a := range s.Args {
		if len(a) > maxText || strings.ContainsRune(a, 0) {
			return invalid("an argument of %d bytes, or with a zero byte", len(a))
		}
	}
	n := len(s.Args)
	switch s.Type {
	case Run:
		if n < 1 || n > 2 || s.Args[0] == "" {
			return invalid("want a command, and who runs it")
		}
	case Copy:
		if n < 2 || n > 4 || s.Args[0] == "" || s.Args[1] == "" {
			return invalid("want a source, a destination, an owner and a mode")
		}
		if !filesHash().MatchString(s.FilesHash) {
			return invalid("files %.80q: want 64 hexadecimal digits", s.FilesHash)
		}
		if src := path.Clean(s.Args[0]); path.IsAbs(src) || src == ".." || strings.HasPrefix(src, "../") {
			return invalid("source %.200q is outside of what was sent", s.Args[0])
		}
		if m := s.arg(3); m != "" && !octal().MatchString(m) {
			return invalid("mode %.20q: want octal digits such as 0755", m)
		}
	case Env:
		if n == 0 || n%2 != 0 {
			return invalid("want names and values")
		}
		for i := 0; i < n; i += 2 {
			if k := s.Args[i]; k == "" || strings.ContainsAny(k, "= \t\n") {
				return invalid("name %.80q", k)
			}
		}
	case Workdir, User:
		if n != 1 || s.Args[0] == "" {
			return invalid("want one argument")
		}
	default:
		return invalid("no such step; there are RUN, COPY, ENV, WORKDIR and USER")
	}
	return nil
}

// arg is an argument, or "" if there are fewer.
func (s Step) arg(i int) string {
	if i < len(s.Args) {
		return s.Args[i]
	}
	return ""
}

// String is the step as people write it.
func (s Step) String() string { return fmt.Sprintf("%s %.200s", s.Type, strings.Join(s.Args, " ")) }
