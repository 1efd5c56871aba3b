// Package config is what an operator can set: in a file, in the environment and by
// flags. Each setting is a field of Config, named once; its name in the file, its
// environment variable, its flag and its line in docs/CONFIG.md come from there.
package config

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Config is all settings. A field's tags: toml is its name in the file, below that of
// the struct that it is in; env its environment variable, made of both names where
// there is no tag; flag its flag, where it has one; help what it is; default what the
// documents tell in the place of a default that depends on the host; secret keeps it
// from being shown.
type Config struct {
	StateDir string `toml:"state_dir" flag:"state-dir" default:"/var/lib/axo for root, else $XDG_STATE_HOME/axo or ~/.local/state/axo" help:"Directory for compiled modules, images, probes, the journal, sandboxes and keys"`

	Engine    Engine    `toml:"engine" help:"What runs programs"`
	Path      Path      `toml:"path" help:"Programs that axo uses, where they are not found by their names"`
	Client    Client    `toml:"client" help:"How commands reach the daemon"`
	Serve     Serve     `toml:"serve" help:"The daemon"`
	Session   Session   `toml:"session" help:"Sandboxes that stay"`
	Audit     Audit     `toml:"audit" help:"The record of who had what run, and what became of it"`
	Tenant    Tenant    `toml:"tenant" help:"What a tenant may have for whom axo key quota says nothing; 0 is no bound"`
	Build     Build     `toml:"build" help:"How templates are built"`
	Admission Admission `toml:"admission" help:"What the daemon takes on at once, from all tenants together"`
	Admin     Admin     `toml:"admin" help:"For who runs the daemon"`
	Metrics   Metrics   `toml:"metrics" help:"What is measured, for Prometheus"`
	Trace     Trace     `toml:"trace" help:"Where the time of requests goes, for OpenTelemetry"`
	Log       Log       `toml:"log" help:"The daemon's own log, on its standard error"`
}

// Engine is what runs programs.
type Engine struct {
	Allow        []string `toml:"allow" env:"AXO_ALLOW_ENGINES" flag:"allow-engines" default:"all" help:"Use no other engines than these, such as runsc,wazero"`
	Policy       string   `toml:"policy" env:"AXO_POLICY" flag:"policy" default:"none: what the engine allows by default" help:"File of rules that say who may run what (axo policy check)"`
	ProbeTimeout Duration `toml:"probe_timeout" env:"AXO_PROBE_TIMEOUT" help:"How long an engine may take to show that it works"`
}

// Path are programs.
type Path struct {
	Crun           string `toml:"crun" env:"AXO_CRUN_PATH" help:"OCI runtime crun"`
	Runc           string `toml:"runc" env:"AXO_RUNC_PATH" help:"OCI runtime runc"`
	Youki          string `toml:"youki" env:"AXO_YOUKI_PATH" help:"OCI runtime youki"`
	Runsc          string `toml:"runsc" env:"AXO_RUNSC_PATH" help:"OCI runtime runsc, which is gVisor"`
	WasmWorker     string `toml:"wasm_worker" env:"AXO_WASM_WORKER_PATH" default:"the one in axo" help:"axo-wasm, the WebAssembly worker"`
	WasmtimeWorker string `toml:"wasmtime_worker" env:"AXO_WASMTIME_WORKER_PATH" default:"beside axo" help:"axo-wasmtime, the faster one"`
	Guest          string `toml:"guest" env:"AXO_GUEST_PATH" default:"the one in axo" help:"axo-guest, the first process of a sandbox"`
	QEMU           string `toml:"qemu" env:"AXO_QEMU_PATH" help:"QEMU"`
	Firecracker    string `toml:"firecracker" env:"AXO_FIRECRACKER_PATH" help:"Firecracker"`
}

// Client is how commands reach the daemon.
type Client struct {
	Address string `toml:"address" env:"AXO_ADDRESS" default:"the socket in the state directory" help:"unix:///PATH, http://HOST:PORT or https://HOST"`
	APIKey  string `toml:"api_key" env:"AXO_API_KEY" secret:"true" default:"the one in the state directory" help:"Key that requests are made with"`
}

// Serve is the daemon.
type Serve struct {
	Listen     string   `toml:"listen" flag:"listen" help:"Also listen on this loopback address, such as 127.0.0.1:7330"`
	Socket     string   `toml:"socket" flag:"socket" default:"axo.sock in the state directory" help:"Path of the unix socket"`
	E2B        string   `toml:"e2b" flag:"e2b" help:"Also answer E2B's clients, on this loopback address, such as 127.0.0.1:7331"`
	E2BDomain  string   `toml:"e2b_domain" flag:"e2b-domain" help:"Domain below which E2B's clients find sandboxes, by names such as 3000-ID.DOMAIN, which lead here; a port may follow it"`
	E2BTLS     string   `toml:"e2b_tls" flag:"e2b-tls" help:"self: E2B's clients are answered over TLS, with a certificate of an authority that is made for this daemon alone, e2b-ca.pem in the state directory"`
	E2BTLSCert string   `toml:"e2b_tls_cert" flag:"e2b-tls-cert" help:"Or with the certificate in this file, PEM, with those of its issuers behind it; it is read anew when it changes"`
	E2BTLSKey  string   `toml:"e2b_tls_key" flag:"e2b-tls-key" help:"The file of its key"`
	Hosts      []string `toml:"hosts" flag:"host" help:"Names that requests may have in their Host header: those of a proxy before the daemon"`
	// AllowEgress is what engine.Policy has.
	AllowEgress []string `toml:"allow_egress" flag:"allow-egress" help:"Hosts that sandboxes may be given: HOST[:PORT], *.HOST, addresses or networks, * for every public one; empty: none"`
	Drain       Duration `toml:"drain" flag:"drain" help:"How long requests may take to end when the daemon does"`
	Warm        int      `toml:"warm" flag:"warm" help:"How many containers to keep ready of each kind that was asked for lately; 0: none"`
	WarmVMs     int      `toml:"warm_vms" flag:"warm-vms" help:"How many virtual machines to keep ready of each kind, paused; 0: none"`
	Sweep       Duration `toml:"sweep" help:"How often what killed processes left is looked for and removed"`
}

// Session are sandboxes that stay.
type Session struct {
	Idle     Duration `toml:"idle" flag:"idle" help:"Delete a sandbox in which nothing happens for so long, unless its maker says otherwise"`
	Life     Duration `toml:"life" flag:"life" help:"Delete a sandbox after this time, unless its maker says otherwise"`
	MaxIdle  Duration `toml:"max_idle" help:"The longest idle time that a maker may ask for"`
	MaxLife  Duration `toml:"max_life" help:"The longest life that a maker may ask for"`
	Keep     Size     `toml:"keep" help:"How much is kept of each output stream of a program, at least"`
	MaxEnded int      `toml:"max_ended" help:"How many ended programs of a sandbox are known"`
}

// Audit is the record of who had what run.
type Audit struct {
	Off  bool     `toml:"off" help:"Write nothing down"`
	Keep Duration `toml:"keep" help:"Remove entries that are older; 0: keep them for ever"`
}

// Tenant is what a tenant may have at once.
type Tenant struct {
	Sandboxes int     `toml:"sandboxes" flag:"tenant-sandboxes" help:"Sandboxes at once"`
	CPUs      float64 `toml:"cpus" flag:"tenant-cpus" help:"Cores that its sandboxes may have together"`
	Memory    Size    `toml:"memory" flag:"tenant-memory" help:"Memory that its sandboxes may have together, such as 4G"`
	Disk      Size    `toml:"disk" flag:"tenant-disk" help:"What its sandboxes may write together, such as 10G"`
	Rate      float64 `toml:"rate" flag:"tenant-rate" help:"Sandboxes and runs that it may begin in a second"`
	Burst     int     `toml:"burst" flag:"tenant-burst" help:"How many it may begin at once when it has begun none for a while; 0: as many as in a second, at least 1"`
}

// Build is how templates are built.
type Build struct {
	AllowHosts []string `toml:"allow_hosts" flag:"build-allow-host" help:"Hosts that the steps of a build may reach, as allow_egress has them, which has to grant them; empty: none"`
	Registries []string `toml:"registries" flag:"build-registry" help:"Registries that builds may fetch images from, such as docker.io; * is any; empty: none"`
	Concurrent int      `toml:"concurrent" help:"Builds at once; others wait"`
	Memory     Size     `toml:"memory" help:"Memory of a step, with what it writes"`
	Disk       Size     `toml:"disk" help:"What a step may write"`
	Step       Duration `toml:"step" help:"How long a step may take"`
	Upload     Size     `toml:"upload" help:"How large the files of one step may be"`
	Cached     int      `toml:"cached" help:"Layers that are kept, to be used again"`
	Tenant     Size     `toml:"tenant" help:"What a tenant's templates may have together, each counted with all that it is made of; beyond that none is begun"`
}

// Admission is what the daemon takes on.
type Admission struct {
	Sandboxes int      `toml:"sandboxes" flag:"max-sandboxes" help:"Sandboxes that stay, at once; 0: no bound"`
	Starts    int      `toml:"starts" help:"Sandboxes that are being made at once"`
	Runs      int      `toml:"runs" flag:"max-runs" help:"Runs under way at once"`
	Queue     int      `toml:"queue" help:"Requests that wait for each of the two; each tenant has its turn"`
	Wait      Duration `toml:"wait" help:"How long a request waits, at most"`
	Memory    Size     `toml:"memory" flag:"max-memory" help:"Memory that sandboxes that stay and runs may have together, by the limits that they were asked for with, such as 20G; what has none is not counted; 0: no bound"`
}

// Admin is for who runs the daemon.
type Admin struct {
	Socket string `toml:"socket" flag:"admin-socket" default:"admin.sock in the state directory" help:"Path of the unix socket with metrics, profiles and readiness; none: there is no such socket"`
}

// Metrics are what is measured.
type Metrics struct {
	Listen  string `toml:"listen" flag:"metrics-listen" help:"Also serve the metrics, and nothing else, on this loopback address, such as 127.0.0.1:7332; nobody needs a key there"`
	Remote  bool   `toml:"remote" help:"That address may be one that other hosts reach"`
	Tenants int    `toml:"tenants" help:"How many tenants have series of their own, those that come first; 0: tenants are not told apart"`
}

// Trace is where spans go.
type Trace struct {
	Endpoint string  `toml:"endpoint" default:"what OTEL_EXPORTER_OTLP_ENDPOINT says, else none" help:"URL of a collector that takes OTLP over HTTP, such as http://127.0.0.1:4318"`
	Sample   float64 `toml:"sample" help:"The part of the traces that are kept, of those that begin here: 0 to 1"`
}

// Log is the daemon's own.
type Log struct {
	Format     string  `toml:"format" flag:"log-format" help:"text or json"`
	Level      string  `toml:"level" flag:"log-level" help:"Tell what is of this level or above: debug, info, warn or error"`
	TenantRate float64 `toml:"tenant_rate" help:"Lines in a second that are about one tenant, at most, and four times as many at once; 0: no bound"`
}

// Default is what holds where nothing is set.
func Default() Config {
	return Config{
		StateDir:  defaultStateDir(),
		Engine:    Engine{ProbeTimeout: Duration(3 * time.Second)},
		Serve:     Serve{Drain: Duration(10 * time.Second), Sweep: Duration(time.Minute), Warm: 2},
		Build:     Build{Concurrent: 2, Memory: 3 << 30, Disk: 2 << 30, Step: Duration(15 * time.Minute), Upload: 1 << 30, Cached: 500, Tenant: 100 << 30},
		Admission: Admission{Sandboxes: 1000, Starts: 64, Runs: 256, Queue: 1024, Wait: Duration(30 * time.Second)},
		Session:   Session{Idle: Duration(15 * time.Minute), Life: Duration(24 * time.Hour), MaxIdle: Duration(24 * time.Hour), MaxLife: Duration(30 * 24 * time.Hour), Keep: 16 << 20, MaxEnded: 32},
		Trace:     Trace{Sample: 1},
		Log:       Log{Format: "text", Level: "info", TenantRate: 50},
		Audit:     Audit{Keep: Duration(90 * 24 * time.Hour)},
	}
}

// defaultStateDir follows the XDG base directory specification; root's is the
// system's.
func defaultStateDir() string {
	if d := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "axo")
	}
	if os.Geteuid() == 0 {
		return "/var/lib/axo"
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return filepath.Join(os.TempDir(), fmt.Sprintf("axo-%d", os.Getuid()))
	}
	return filepath.Join(home, ".local", "state", "axo")
}

// Validate checks what one setting has to do with another.
func (c Config) Validate() error {
	for _, x := range []struct {
		name        string
		value, most Duration
	}{{"session.idle", c.Session.Idle, c.Session.MaxIdle}, {"session.life", c.Session.Life, c.Session.MaxLife}} {
		if x.value > x.most {
			return fmt.Errorf("%s is %v, which is more than the %v that session.max_%s allows", x.name, x.value, x.most, x.name[len("session."):])
		}
	}
	for _, x := range []struct {
		name  string
		value Duration
	}{
		{"engine.probe_timeout", c.Engine.ProbeTimeout}, {"serve.drain", c.Serve.Drain}, {"serve.sweep", c.Serve.Sweep},
		{"session.idle", c.Session.Idle}, {"session.life", c.Session.Life}, {"admission.wait", c.Admission.Wait}, {"build.step", c.Build.Step},
	} {
		if x.value <= 0 {
			return fmt.Errorf("%s is %v: want a time above zero, such as 10s", x.name, x.value)
		}
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		return fmt.Errorf("log.format is %q: want text or json", c.Log.Format)
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.Log.Level) {
		return fmt.Errorf("log.level is %q: want debug, info, warn or error", c.Log.Level)
	}
	if c.Trace.Sample > 1 {
		return fmt.Errorf("trace.sample is %v: want 0 to 1", c.Trace.Sample)
	}
	for name, n := range map[string]int{"admission.starts": c.Admission.Starts, "admission.runs": c.Admission.Runs, "admission.queue": c.Admission.Queue,
		"build.concurrent": c.Build.Concurrent, "build.memory": int(c.Build.Memory), "build.disk": int(c.Build.Disk), "build.upload": int(c.Build.Upload), "build.cached": c.Build.Cached, "build.tenant": int(c.Build.Tenant)} {
		if n <= 0 {
			return fmt.Errorf("%s is %d: want at least 1", name, n)
		}
	}
	return nil
}
