package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/tool"
	"github.com/axocoatl/isolation/internal/testprog"
)

// median is of milliseconds.
func median(list []float64) float64 {
	slices.Sort(list)
	return list[len(list)/2]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// benchTool writes a tool's directory and adds it.
func benchTool(b *testing.B, env []string, manifest string, files map[string][]byte) {
	b.Helper()
	dir := b.TempDir()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, tool.ManifestFile), []byte(manifest), 0o600); err != nil {
		b.Fatal(err)
	}
	mustRun(b, axoCommand(b, env, "tool", "add", dir))
}

func read(b *testing.B, name string) []byte {
	b.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	return data
}

const benchManifest = "name = 'bench'\nversion = '1'\ndescription = 'd'\nlimits.timeout = '1m'\n[entrypoint]\n"

// BenchmarkMCPCall calls a tool over stdio, with the official client, and tells what of
// each call was the engine's own: the phases of its run.
func BenchmarkMCPCall(b *testing.B) {
	for name, c := range map[string]struct {
		entry string
		files map[string][]byte
		pause time.Duration // in which the next container is made ready
	}{
		"wasm":   {"module = 'cat.wasm'\n", map[string][]byte{"cat.wasm": read(b, testprog.Go(b, "cat"))}, 10 * time.Millisecond},
		"python": {"source = 'x.py'\nlanguage = 'python'\n", map[string][]byte{"x.py": []byte("import json, sys\njson.dump(json.load(sys.stdin), sys.stdout)\n")}, 200 * time.Millisecond},
	} {
		b.Run(name, func(b *testing.B) {
			env := mcpEnv(b)
			benchTool(b, env, benchManifest+c.entry, c.files)
			s := mcpSession(b, axoCommand(b, env, "mcp", "serve"), nil)
			var all, own, rest []float64
			call := func() {
				began := time.Now()
				r, err := s.CallTool(context.Background(), &sdk.CallToolParams{Name: "bench", Arguments: map[string]any{"a": 1}})
				took := ms(time.Since(began))
				if err != nil || r.IsError {
					b.Fatalf("%v %s", err, text(r))
				}
				var m struct {
					Usage isolation.Usage `json:"usage"`
				}
				j, _ := json.Marshal(r.Meta["axo/run"])
				if err := json.Unmarshal(j, &m); err != nil {
					b.Fatal(err)
				}
				p := m.Usage.Phases
				engine := ms(p.Select + p.Create + p.Start + p.Run + p.Teardown)
				all, own, rest = append(all, took), append(own, engine), append(rest, took-engine)
			}
			for range 5 {
				call()
				time.Sleep(c.pause)
			}
			all, own, rest = nil, nil, nil
			for b.Loop() {
				call()
				b.StopTimer()
				time.Sleep(c.pause)
				b.StartTimer()
			}
			b.ReportMetric(median(all), "ms/call")
			b.ReportMetric(median(own), "ms-engine/call")
			b.ReportMetric(median(rest), "ms-rest/call")
		})
	}
}

// BenchmarkMCPThousand starts a server with 1,000 registered tools, and lists them.
func BenchmarkMCPThousand(b *testing.B) {
	env := mcpEnv(b)
	state := ""
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "AXO_STATE_DIR="); ok {
			state = v
		}
	}
	reg, err := tool.Open(filepath.Join(state, toolsDir))
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "m.wasm"), []byte("m"), 0o600); err != nil {
		b.Fatal(err)
	}
	for i := range 1000 {
		m := strings.Replace(benchManifest, "'bench'", fmt.Sprintf("'bench-%d'", i), 1) + "module = 'm.wasm'\n[input]\ntype = 'object'\nrequired = ['text']\nproperties.text = {type = 'string', description = 'what is read'}\n"
		if err := os.WriteFile(filepath.Join(dir, tool.ManifestFile), []byte(m), 0o600); err != nil {
			b.Fatal(err)
		}
		if _, err := reg.Add(context.Background(), dir, tool.AddOptions{}); err != nil {
			b.Fatal(err)
		}
	}
	var starts, lists []float64
	for b.Loop() {
		began := time.Now()
		s, err := sdk.NewClient(&sdk.Implementation{Name: "test", Version: "1"}, nil).Connect(context.Background(), &sdk.CommandTransport{Command: axoCommand(b, env, "mcp", "serve", "--tools-only")}, nil)
		if err != nil {
			b.Fatal(err)
		}
		starts = append(starts, ms(time.Since(began)))
		began = time.Now()
		l, err := s.ListTools(context.Background(), nil)
		if err != nil || len(l.Tools) != 1000 {
			b.Fatal(err, len(l.Tools))
		}
		lists = append(lists, ms(time.Since(began)))
		_ = s.Close()
	}
	b.ReportMetric(median(starts), "ms-start/op")
	b.ReportMetric(median(lists), "ms-list/op")
}
