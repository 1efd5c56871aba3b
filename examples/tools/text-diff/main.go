// Command text-diff compares two texts: JSON on stdin, JSON on stdout. Compiled to
// WebAssembly it is a tool that runs in tier WASM.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"
)

// context is how many lines that are alike are shown around a change.
const context = 3

// maxLines bounds each text: the table of the comparison is their product.
const maxLines = 3000

type input struct{ Old, New, Name string }

type output struct {
	Diff    string `json:"diff"`
	Added   int    `json:"added"`
	Removed int    `json:"removed"`
}

func main() {
	log.SetFlags(0)
	var in input
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		log.Fatal(err)
	}
	a, b := lines(in.Old), lines(in.New)
	if len(a) > maxLines || len(b) > maxLines {
		log.Fatalf("texts of %d and %d lines; at most %d are compared", len(a), len(b), maxLines)
	}
	if in.Name == "" {
		in.Name = "text"
	}
	if err := json.NewEncoder(os.Stdout).Encode(diff(in.Name, a, b)); err != nil {
		log.Fatal(err)
	}
}

func lines(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(s, "\n"), "\n")
}

// edit is a line with what became of it: ' ', '-' or '+'.
type edit struct {
	what byte
	text string
	a, b int // how many lines of each came before it
}

// edits is a shortest way from a to b, by the longest subsequence that both have.
func edits(a, b []string) (out []edit) {
	common := make([][]int32, len(a)+1) // of a[i:] and b[j:]
	for i := range common {
		common[i] = make([]int32, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	for i, j := 0, 0; i < len(a) || j < len(b); {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			out = append(out, edit{' ', a[i], i, j})
			i, j = i+1, j+1
		case i < len(a) && (j == len(b) || common[i+1][j] >= common[i][j+1]):
			out = append(out, edit{'-', a[i], i, j})
			i++
		default:
			out = append(out, edit{'+', b[j], i, j})
			j++
		}
	}
	return out
}

// diff puts edits that are near each other together, as diff -u does.
func diff(name string, a, b []string) (out output) {
	all := edits(a, b)
	var text strings.Builder
	for i := 0; i < len(all); {
		if all[i].what == ' ' {
			i++
			continue
		}
		from, last := max(0, i-context), i
		for j := i; j < len(all) && j <= last+2*context; j++ {
			if all[j].what != ' ' {
				last = j
			}
		}
		to := min(len(all), last+context+1)
		hunk(&text, &out, all[from:to])
		i = to
	}
	if text.Len() > 0 {
		out.Diff = "--- " + name + "\n+++ " + name + "\n" + text.String()
	}
	return out
}

func hunk(w *strings.Builder, out *output, list []edit) {
	var old, new int
	for _, e := range list {
		switch e.what {
		case '-':
			old++
			out.Removed++
		case '+':
			new++
			out.Added++
		default:
			old, new = old+1, new+1
		}
	}
	fmt.Fprintf(w, "@@ -%s +%s @@\n", span(list[0].a, old), span(list[0].b, new))
	for _, e := range list {
		fmt.Fprintf(w, "%c%s\n", e.what, e.text)
	}
}

// span is where a hunk is: its first line, and how many; of none the line before.
func span(before, n int) string {
	switch n {
	case 0:
		return fmt.Sprintf("%d,0", before)
	case 1:
		return fmt.Sprint(before + 1)
	}
	return fmt.Sprintf("%d,%d", before+1, n)
}
