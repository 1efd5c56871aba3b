// Command axo-wasm is the process that WebAssembly modules run in. The engine
// starts it; see driver/wasm.
package main

import (
	"os"

	"github.com/axocoatl/isolation/driver/wasm/worker"
)

func main() { os.Exit(worker.Main(os.Args[1:])) }
