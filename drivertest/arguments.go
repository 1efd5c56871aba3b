package drivertest

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/axocoatl/isolation"
)

var argumentChecks = []check{
	{"bad spec", checkBadSpec},
	{"bad process", checkBadProcess},
	{"unsupported", checkUnsupported},
	{"args", checkArgs},
	{"many args", checkManyArgs},
	{"env", checkEnv},
	{"env is not inherited", checkEnvInherited},
	{"cwd", checkCwd},
	{"user", checkUser},
	{"hostname", checkHostname},
	{"caller keeps its slices", checkAliasing},
}

// refused fails unless spec can't be had, and checks that its id stays free.
func (s *suite) refused(t testing.TB, what string, spec isolation.Spec, class error) {
	t.Helper()
	id := s.id()
	sb, err := s.d.Create(s.ctx(t), id, spec)
	if err == nil {
		s.delete(t, sb)
	}
	if sb != nil && err != nil {
		t.Errorf("%s: Create returned a sandbox with its error", what)
	}
	is(t, what, err, class)
	good, _, _ := s.c.Command(Exit0)
	if sb, err = s.d.Create(s.ctx(t), id, good); err != nil {
		t.Errorf("%s: the id is not free after Create was refused: %v", what, err)
		return
	}
	s.delete(t, sb)
}

func checkBadSpec(t testing.TB, s *suite) {
	for what, change := range map[string]func(*isolation.Spec){
		"no requirement":  func(c *isolation.Spec) { c.Requirement = 0 },
		"two modules":     func(c *isolation.Spec) { c.Module = isolation.Module{Path: "/x", Data: []byte("x")} },
		"digest":          func(c *isolation.Spec) { c.Module.Digest = "sha256:1" },
		"two roots":       func(c *isolation.Spec) { c.Root = isolation.Root{Image: "x", Path: "/x"} },
		"profile":         func(c *isolation.Spec) { c.Profile = "lax" },
		"negative memory": func(c *isolation.Spec) { c.Resources.MemoryBytes = -1 },
		"negative io":     func(c *isolation.Spec) { c.Resources.IO.ReadOps = -1 },
		"negative cpus":   func(c *isolation.Spec) { c.Resources.CPUs = -1 },
		"mount":           func(c *isolation.Spec) { c.Mounts = []isolation.Mount{{Source: "/", Destination: "x"}} },
	} {
		spec, _ := s.command(t, job{program: Exit0, spec: change})
		s.refused(t, what, spec, isolation.ErrInvalidArgument)
	}
}

func checkBadProcess(t testing.TB, s *suite) {
	spec, _ := s.command(t, job{program: Exit0})
	sb := s.create(t, spec)
	for what, change := range map[string]func(*isolation.ProcessSpec){
		"no args":        func(p *isolation.ProcessSpec) { p.Args = nil },
		"NUL in args":    func(p *isolation.ProcessSpec) { p.Args = append(slices.Clone(p.Args), "a\x00b") },
		"exec id":        func(p *isolation.ProcessSpec) { p.ExecID = "../x" },
		"env without =":  func(p *isolation.ProcessSpec) { p.Env = []string{"A"} },
		"env without A":  func(p *isolation.ProcessSpec) { p.Env = []string{"=x"} },
		"too many bytes": func(p *isolation.ProcessSpec) { p.Env = []string{"A=" + strings.Repeat("x", 3<<20)} },
		"negative wall":  func(p *isolation.ProcessSpec) { p.Limits.Wall = -1 },
		"negative files": func(p *isolation.ProcessSpec) { p.Limits.OpenFiles = -1 },
	} {
		_, ps := s.command(t, job{program: Exit0, process: change})
		p, err := sb.Exec(s.ctx(t), ps, isolation.Stdio{})
		is(t, what, err, isolation.ErrInvalidArgument)
		notStarted(t, what, err)
		if p != nil {
			t.Errorf("%s: Exec returned a process with its error", what)
		}
	}
	s.state(t, sb, isolation.StatusCreated)
	r := s.startIn(t, sb, job{program: Exit0})
	succeeded(t, r.wait(t), r)
}

// checkUnsupported asks for everything that Features does not tell: it must be
// refused, never ignored.
func checkUnsupported(t testing.TB, s *suite) {
	for _, r := range isolation.Requirements() {
		if s.features.CanRun(r) {
			continue
		}
		spec, _ := s.command(t, job{program: Exit0, spec: func(c *isolation.Spec) { c.Requirement = r }})
		s.refused(t, r.String(), spec, isolation.ErrUnsupported)
	}
	// A driver may refuse where it is asked or, for what the process adds,
	// when it is started.
	refused := func(what string, j job) {
		t.Helper()
		spec, ps := s.command(t, j)
		sb, err := s.d.Create(s.ctx(t), s.id(), spec)
		if err == nil {
			defer s.delete(t, sb)
			if _, err = sb.Exec(s.ctx(t), ps, isolation.Stdio{}); err != nil {
				notStarted(t, what, err)
			}
		}
		if err == nil {
			t.Errorf("%s: Features does not tell it, and it is not refused", what)
			return
		}
		is(t, what, err, isolation.ErrUnsupported)
	}
	for o, j := range map[isolation.Option]job{
		isolation.OptionMounts: {spec: func(c *isolation.Spec) {
			c.Mounts = append(slices.Clone(c.Mounts), isolation.Mount{Source: "/", Destination: "/dt-mount", ReadOnly: true})
		}},
		isolation.OptionWritable: {spec: func(c *isolation.Spec) {
			c.Mounts = append(slices.Clone(c.Mounts), isolation.Mount{Source: "/var/empty", Destination: "/dt-mount"})
		}},
		isolation.OptionCwd:      {process: func(p *isolation.ProcessSpec) { p.Cwd = "/" }},
		isolation.OptionUser:     {process: func(p *isolation.ProcessSpec) { p.User = "1234" }},
		isolation.OptionTerminal: {process: func(p *isolation.ProcessSpec) { p.Terminal = true }},
		isolation.OptionHostname: {spec: func(c *isolation.Spec) { c.Hostname = "dt" }},
		isolation.OptionImage:    {spec: func(c *isolation.Spec) { c.Root = isolation.Root{Image: "dt"} }},
		isolation.OptionRootPath: {spec: func(c *isolation.Spec) { c.Root = isolation.Root{Path: "/"} }},
		isolation.OptionTemplate: {spec: func(c *isolation.Spec) { c.Root = isolation.Root{Template: "dt"} }},
		isolation.OptionSession:  {spec: func(c *isolation.Spec) { c.Profile = "session" }},
		isolation.OptionDetached: {spec: detached},
	} {
		if !s.features.Has(o) {
			j.program = Exit0
			refused(string(o), j)
		}
	}
	for l, j := range limitJobs() {
		if !s.features.Enforcement(l).Enforced {
			j.program = Exit0
			refused(string(l)+" limit", j)
		}
	}
}

// limitJobs ask for one limit each, a generous one.
func limitJobs() map[isolation.Limit]job {
	return map[isolation.Limit]job{
		isolation.LimitWall:    {process: func(p *isolation.ProcessSpec) { p.Limits.Wall = 1e12 }},
		isolation.LimitCPUTime: {process: func(p *isolation.ProcessSpec) { p.Limits.CPU = 1e12 }},
		isolation.LimitFuel:    {process: func(p *isolation.ProcessSpec) { p.Limits.Fuel = 1 << 40 }},
		isolation.LimitOutput:  {process: func(p *isolation.ProcessSpec) { p.Limits.OutputBytes = 1 << 30 }},
		isolation.LimitFiles:   {process: func(p *isolation.ProcessSpec) { p.Limits.OpenFiles = 256 }},
		isolation.LimitMemory:  {spec: func(c *isolation.Spec) { c.Resources.MemoryBytes = 512 << 20 }},
		isolation.LimitCPUs:    {spec: func(c *isolation.Spec) { c.Resources.CPUs = 1 }},
		isolation.LimitPids:    {spec: func(c *isolation.Spec) { c.Resources.Pids = 512 }},
		isolation.LimitIO:      {spec: func(c *isolation.Spec) { c.Resources.IO = isolation.IO{ReadBytes: 1 << 40, WriteOps: 1 << 20} }},
		isolation.LimitDisk:    {spec: func(c *isolation.Spec) { c.Resources.DiskBytes = 512 << 20 }},
	}
}

// list runs a program that writes strings with a NUL after each.
func (s *suite) list(t testing.TB, j job) []string {
	t.Helper()
	e, r := s.run(t, j)
	succeeded(t, e, r)
	out := r.out.bytes()
	if len(out) == 0 {
		return nil
	}
	if out[len(out)-1] != 0 {
		t.Fatalf("output %.80q does not end in NUL", out)
	}
	return strings.Split(string(out[:len(out)-1]), "\x00")
}

func checkArgs(t testing.TB, s *suite) {
	for _, want := range [][]string{
		{"one"},
		{""},
		{"", "", "a", ""},
		{" ", "a b", "\ta\t", "line\nline\n", "\r\n"},
		{`"`, "'", `\`, "$HOME", "`id`", "*", "~", "-n", "--", "%s", ";", "|"},
		{"é", "日本", "🙂"},
	} {
		if got := s.list(t, job{program: Args, args: want}); !slices.Equal(got, want) {
			t.Errorf("args %q arrive as %q", want, got)
		}
	}
	// What is no UTF-8 arrives as it is or is refused, where it has to pass
	// through JSON; it is never changed.
	j := job{program: Args, args: []string{"a\xff\xfeb"}}
	spec, ps := s.command(t, j)
	if p, err := s.create(t, spec).Exec(s.ctx(t), ps, isolation.Stdio{}); err != nil {
		is(t, "Exec with an argument that is no UTF-8", err, isolation.ErrInvalidArgument)
	} else if _, err := p.Wait(s.ctx(t)); err != nil {
		t.Errorf("Wait: %v", err)
	} else if got := s.list(t, j); !slices.Equal(got, j.args) {
		t.Errorf("args %q arrive as %q", j.args, got)
	}
}

func checkManyArgs(t testing.TB, s *suite) {
	want := make([]string, 1000)
	for i := range want {
		want[i] = strings.Repeat("x", i%50) + fmt.Sprint(i)
	}
	if got := s.list(t, job{program: Args, args: want}); !slices.Equal(got, want) {
		t.Errorf("%d arguments arrive as %d others: %.200q", len(want), len(got), got)
	}
	// One that is as long as Linux takes, 128 KiB with its NUL.
	long := []string{strings.Repeat("y", 128<<10-1)}
	if got := s.list(t, job{program: Args, args: long}); !slices.Equal(got, long) {
		t.Errorf("one long argument does not arrive")
	}
}

// checkEnv compares what it asked for: a driver may add nothing but what the
// program itself makes.
func checkEnv(t testing.TB, s *suite) {
	_, base := s.command(t, job{program: Env})
	for _, add := range [][]string{
		nil,
		{"A=1"},
		{"EMPTY=", "B=a=b", "SPACE= a b ", "LINE=a\nb", "U=é日🙂", "lower=1", "DT_LONG=" + strings.Repeat("z", 60000)},
	} {
		want := append(slices.Clone(base.Env), add...)
		got := s.list(t, job{program: Env, process: func(p *isolation.ProcessSpec) { p.Env = want }})
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("environment %.300q arrives as %.300q", want, got)
		}
	}
}

func checkEnvInherited(t testing.TB, s *suite) {
	for _, e := range s.list(t, job{program: Env}) {
		if strings.HasPrefix(e, canary+"=") {
			t.Errorf("the caller's environment was inherited: %q", e)
		}
	}
}

func (s *suite) option(t testing.TB, o isolation.Option) {
	t.Helper()
	if !s.features.Has(o) {
		s.skip(t, "the driver has no option %s; that it is refused is checked", o)
	}
}

func checkCwd(t testing.TB, s *suite) {
	s.option(t, isolation.OptionCwd)
	e, r := s.run(t, job{program: Cwd, process: func(p *isolation.ProcessSpec) { p.Cwd = "/" }})
	succeeded(t, e, r)
	if got := r.out.String(); got != "/" {
		t.Errorf("cwd is %q, want /", got)
	}
}

func checkUser(t testing.TB, s *suite) {
	s.option(t, isolation.OptionUser)
	e, r := s.run(t, job{program: User, process: func(p *isolation.ProcessSpec) { p.User = "1234" }})
	succeeded(t, e, r)
	if got := r.out.String(); got != "1234" {
		t.Errorf("user is %q, want 1234", got)
	}
}

func checkHostname(t testing.TB, s *suite) {
	s.option(t, isolation.OptionHostname)
	e, r := s.run(t, job{program: Hostname, spec: func(c *isolation.Spec) { c.Hostname = "dt-host" }})
	succeeded(t, e, r)
	if got := r.out.String(); got != "dt-host" {
		t.Errorf("host name is %q, want dt-host", got)
	}
}

// checkAliasing changes what it passed once the call has returned.
func checkAliasing(t testing.TB, s *suite) {
	spec, ps := s.command(t, job{program: Echo})
	spec.Annotations = map[string]string{"a": "b"}
	sb := s.create(t, spec)
	spec.Annotations["a"] = "c"
	ps.Args = slices.Clone(ps.Args)
	hold := newGate(strings.NewReader("x"))
	out := newCapture()
	p, err := sb.Exec(s.ctx(t), ps, isolation.Stdio{Stdin: hold, Stdout: out})
	if err != nil {
		t.Fatalf("Exec: %v", err)
	}
	for i := range ps.Args {
		ps.Args[i] = "changed"
	}
	hold.open()
	if e, err := p.Wait(s.ctx(t)); err != nil || !e.Success() || !bytes.Equal(out.bytes(), []byte("x")) {
		t.Errorf("%v %v, output %q", e, err, out)
	}
}
