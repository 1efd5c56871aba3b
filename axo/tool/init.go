package tool

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/axocoatl/isolation"
)

// Kinds returns what Init makes tools of.
func Kinds() []string { return slices.Sorted(maps.Keys(templates)) }

// Init writes a tool that works into a directory, which is made, or is empty. It
// returns the names of the files.
func Init(dir, name, kind string) ([]string, error) {
	files, ok := templates[kind]
	if !ok {
		return nil, fmt.Errorf("kind %.40q: want one of %s: %w", kind, strings.Join(Kinds(), ", "), isolation.ErrInvalidArgument)
	}
	if !nameForm().MatchString(name) {
		return nil, fmt.Errorf("name %.80q: want 1 to 64 of a-z, 0-9, _ and -, a letter first: %w", name, isolation.ErrInvalidArgument)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if entries, err := os.ReadDir(dir); err != nil {
		return nil, err
	} else if len(entries) > 0 {
		return nil, fmt.Errorf("%s is not empty: %w", dir, isolation.ErrAlreadyExists)
	}
	var errs []error
	for file, text := range files {
		errs = append(errs, os.WriteFile(filepath.Join(dir, file), []byte(strings.ReplaceAll(text, "NAME", name)), 0o644))
	}
	return slices.Sorted(maps.Keys(files)), errors.Join(errs...)
}

const manifestHead = `name = "NAME"
version = "0.1.0"
description = "Counts the words of a text."
`

const manifestRest = `
[limits]
timeout = "10s"
memory = "256M"
output = "1M"

[annotations]
read_only = true
idempotent = true
open_world = false

[input]
type = "object"
required = ["text"]
additionalProperties = false
properties.text = { type = "string", description = "What is counted." }

[output]
type = "object"
required = ["words"]
properties.words = { type = "integer" }

[[tests]]
name = "three words"
input = { text = "one two three" }
output = { words = 3 }

[[tests]]
name = "no text"
input = {}
fails = "invalid_input"
`

var templates = map[string]map[string]string{
	"python": {
		ManifestFile: manifestHead + "\n[entrypoint]\nsource = \"main.py\"\nlanguage = \"python\"\n" + manifestRest,
		"main.py": `import json
import sys

given = json.load(sys.stdin)
json.dump({"words": len(given["text"].split())}, sys.stdout)
`,
	},
	"js": {
		ManifestFile: manifestHead + "\n[entrypoint]\nsource = \"main.js\"\nlanguage = \"js\"\n" + manifestRest,
		"main.js": `const given = JSON.parse(require("fs").readFileSync(0, "utf8"));
console.log(JSON.stringify({ words: given.text.split(/\s+/).filter(Boolean).length }));
`,
	},
	"sh": {
		ManifestFile: manifestHead + "convention = \"args\"\n\n[entrypoint]\nsource = \"main.sh\"\nlanguage = \"sh\"\nargs = [\"{text}\"]\n" + manifestRest,
		"main.sh": `# The text is the first argument: whatever is in it, no shell reads it.
printf '{"words": %d}\n' "$(printf '%s' "$1" | wc -w)"
`,
	},
	"go": {
		ManifestFile: manifestHead + "\n# Built by: GOOS=wasip1 GOARCH=wasm go build -o tool.wasm main.go\n[entrypoint]\nmodule = \"tool.wasm\"\n" + manifestRest,
		"main.go": `// Command NAME counts words: JSON on stdin, JSON on stdout.
package main

import (
	"encoding/json"
	"log"
	"os"
	"strings"
)

func main() {
	var given struct{ Text string }
	if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil {
		log.Fatal(err)
	}
	err := json.NewEncoder(os.Stdout).Encode(map[string]int{"words": len(strings.Fields(given.Text))})
	if err != nil {
		log.Fatal(err)
	}
}
`,
	},
}
