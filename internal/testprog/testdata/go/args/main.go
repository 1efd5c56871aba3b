// Command args prints its arguments as a JSON list, the name first.
package main

import (
	"encoding/json"
	"os"
)

func main() {
	json.NewEncoder(os.Stdout).Encode(os.Args)
}
