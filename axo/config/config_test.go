package config

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func flags(t *testing.T, args ...string) *pflag.FlagSet {
	t.Helper()
	fs := pflag.NewFlagSet("axo", pflag.ContinueOnError)
	Register(fs, "", "engine", "serve", "session", "tenant", "admission")
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return fs
}

// Each source overrides those before it, and what none names is as it was.
func TestPrecedence(t *testing.T) {
	file := write(t, `
state_dir = "/file"
[serve]
listen = "127.0.0.1:1"
drain = "1s"
hosts = ["file"]
[session]
idle = "1m"
[tenant]
cpus = 2
memory = 1048576
disk = "1.5G"
[client]
api_key = "e2b_secret"
`)
	l, err := Load(Source{
		File: file, Env: []string{"AXO_SERVE_LISTEN=127.0.0.1:2", "AXO_SERVE_DRAIN=2s", "AXO_ALLOW_ENGINES=a,b", "AXO_SESSION_MAX_ENDED=", "OTHER=x"},
		Flags: flags(t, "--drain", "3s", "--host", "one", "--host", "two,three"),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		key       string
		got, want any
		origin    string
	}{
		{"state_dir", l.StateDir, "/file", file},
		{"serve.listen", l.Serve.Listen, "127.0.0.1:2", "$AXO_SERVE_LISTEN"},
		{"serve.drain", l.Serve.Drain, Duration(3 * time.Second), "--drain"},
		{"serve.hosts", strings.Join(l.Serve.Hosts, " "), "one two three", "--host"},
		{"engine.allow", strings.Join(l.Engine.Allow, " "), "a b", "$AXO_ALLOW_ENGINES"},
		{"session.idle", l.Session.Idle, Duration(time.Minute), file},
		{"session.life", l.Session.Life, Default().Session.Life, "default"},
		{"tenant.cpus", l.Tenant.CPUs, 2.0, file},
		{"tenant.memory", l.Tenant.Memory, Size(1 << 20), file},
		{"tenant.disk", l.Tenant.Disk, Size(3 << 29), file},
		{"session.max_ended", l.Session.MaxEnded, 32, "default"},
	} {
		if c.got != c.want || l.Origin(c.key) != c.origin {
			t.Errorf("%s is %v by %s, want %v by %s", c.key, c.got, l.Origin(c.key), c.want, c.origin)
		}
	}
	if i := slices.IndexFunc(l.Values(), func(v Value) bool { return v.Key == "client.api_key" }); i < 0 || l.Values()[i].Value != redacted {
		t.Error("a secret is told")
	}
	// What is shown can be read again, and is the same.
	l.Client.APIKey = ""
	var b bytes.Buffer
	if err := l.WriteTOML(&b, true); err != nil {
		t.Fatal(err)
	}
	again, err := Load(Source{File: write(t, b.String())})
	if err != nil {
		t.Fatalf("%v in\n%s", err, b.String())
	}
	for i, v := range again.Values() {
		if literal(v.Value) != literal(l.Values()[i].Value) {
			t.Errorf("%s is %v after it was %v", v.Key, v.Value, l.Values()[i].Value)
		}
	}
}

func TestWhatIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		env  string
		want []string
	}{
		"unknown key":   {text: "\n[serve]\nlistne = \"x\"\nsocket = \"y\"\n[serv]\ndrain = \"1s\"", want: []string{".toml:3: there is no setting serve.listne; did you mean serve.listen?", ".toml:5: there is no setting serv", "serve"}},
		"in no table":   {text: "idle = \"1m\"", want: []string{":1:", "did you mean session.idle?"}},
		"nothing alike": {text: "colour = 1", want: []string{":1: there is no setting colour"}},
		"syntax":        {text: "[serve\n", want: []string{".toml:1:"}},
		"twice":         {text: "state_dir = \"a\"\nstate_dir = \"b\"", want: []string{"state_dir is already defined"}},
		"no time":       {text: "\n[serve]\ndrain = 10", want: []string{".toml:3:", "serve.drain", `"10s" or "1h30m"`}},
		"no size":       {text: "[tenant]\nmemory = \"lots\"", want: []string{".toml:2:", "such as 64M"}},
		"no text":       {text: "state_dir = 7", want: []string{".toml:1:", "state_dir"}},
		"negative":      {text: "[tenant]\nsandboxes = -1", want: []string{".toml:2:", "tenant.sandboxes", "not negative"}},
		"not a number":  {text: "[tenant]\ncpus = nan", want: []string{"tenant.cpus", "not negative"}},
		"too much":      {text: "[session]\nidle = \"48h\"", want: []string{"session.idle is 48h", "session.max_idle"}},
		"zero":          {text: "[serve]\ndrain = \"0s\"", want: []string{"serve.drain", "above zero"}},
		"log format":    {text: "[log]\nformat = \"xml\"", want: []string{"log.format", "text or json"}},
		"log level":     {env: "AXO_LOG_LEVEL=loud", want: []string{"log.level", "debug, info, warn or error"}},
		"tenant rate":   {text: "[log]\ntenant_rate = -1.0", want: []string{"log.tenant_rate", "not negative"}},
		"below 0":       {text: "[trace]\nsample = -0.5", want: []string{"trace.sample", "not negative"}},
		"no number":     {text: "[trace]\nsample = nan", want: []string{"trace.sample", "not negative"}},
		"sample":        {text: "[trace]\nsample = 1.5", want: []string{"trace.sample is 1.5", "0 to 1"}},
		"no queue":      {text: "[admission]\nqueue = 0", want: []string{"admission.queue is 0", "at least 1"}},
		"environment":   {env: "AXO_TENANT_SANDBOXES=many", want: []string{"AXO_TENANT_SANDBOXES", "whole number"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(Source{File: write(t, c.text), Env: []string{c.env}})
			if err == nil {
				t.Fatal("it was taken")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not tell %q", err, w)
				}
			}
		})
	}
	if _, err := Load(Source{Env: []string{"AXO_CONFIG=/no/such/file"}}); err == nil {
		t.Error("a file that was asked for and is not there")
	}
	for _, args := range [][]string{{"--idle", "soon"}, {"--tenant-memory", "-1"}, {"--tenant-cpus", "-1"}} {
		fs := pflag.NewFlagSet("axo", pflag.ContinueOnError)
		Register(fs, "session", "tenant")
		if err := fs.Parse(args); err == nil {
			t.Errorf("%v was taken", args)
		}
	}
}

// A file that others can change says what they want, and a secret that they can
// read is none.
func TestFilesOfOthers(t *testing.T) {
	plain, secret := write(t, "state_dir = \"/x\""), write(t, "[client]\napi_key = \"e2b_x\"")
	for _, c := range []struct {
		file string
		mode os.FileMode
		ok   bool
	}{{plain, 0o644, true}, {plain, 0o664, false}, {plain, 0o646, false}, {secret, 0o600, true}, {secret, 0o640, false}, {secret, 0o604, false}} {
		if err := os.Chmod(c.file, c.mode); err != nil {
			t.Fatal(err)
		}
		_, err := Load(Source{File: c.file})
		if c.ok != (err == nil) || err != nil && !strings.Contains(err.Error(), "chmod") {
			t.Errorf("mode %v: %v", c.mode, err)
		}
	}
}

func TestStrays(t *testing.T) {
	got := Strays([]string{"AXO_SERVE_LISTNE=x", "AXO_SERVE_LISTEN=x", "AXO_CONFIG=x", "AXO_OTHER=x", "PATH=/"}, "AXO_OTHER")
	if len(got) != 1 || got[0] != "AXO_SERVE_LISTNE" {
		t.Error(got)
	}
}

// Every setting can be told apart from every other, in every source, and is
// explained.
func TestSettings(t *testing.T) {
	seen := map[string]string{}
	for _, s := range Settings() {
		for _, name := range []string{"key " + s.Key, "env " + s.Env, "flag " + s.Flag} {
			if other := seen[name]; other != "" && name != "flag " {
				t.Errorf("%s is of %s and of %s", name, other, s.Key)
			}
			seen[name] = s.Key
		}
		if s.Help == "" || strings.HasSuffix(s.Help, ".") || strings.Contains(s.Help, "|") {
			t.Errorf("%s: %q", s.Key, s.Help)
		}
		c := Default()
		if s.in(&c).IsZero() && s.about == "" && s.in(&c).Kind() == 0 {
			t.Errorf("%s cannot be set", s.Key)
		}
	}
	// The example says what holds without it.
	var text strings.Builder
	for line := range strings.Lines(Example()) {
		if rest, ok := strings.CutPrefix(line, "#"); ok && !strings.HasPrefix(rest, " ") {
			line = rest
		}
		text.WriteString(line)
	}
	l, err := Load(Source{File: write(t, text.String())})
	if err != nil {
		t.Fatalf("%v in\n%s", err, text.String())
	}
	def := &Loaded{Config: Default()}
	for i, v := range l.Values() {
		if literal(v.Value) != literal(def.Values()[i].Value) && v.Key != "state_dir" {
			t.Errorf("the example has %s = %v, and the default is %v", v.Key, v.Value, def.Values()[i].Value)
		}
		if v.Origin == "default" {
			t.Errorf("the example has no %s", v.Key)
		}
	}
}

// The documents in the tree are those of the settings: AXO_UPDATE=1 writes them anew.
func TestDocuments(t *testing.T) {
	t.Setenv("HOME", "/root")
	for file, want := range map[string]string{"../../docs/CONFIG.md": Markdown(), "../../packaging/config.toml": Example()} {
		if os.Getenv("AXO_UPDATE") != "" {
			if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		have, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if string(have) != want {
			t.Errorf("%s is not what the settings are: AXO_UPDATE=1 go test ./config", file)
		}
	}
}
