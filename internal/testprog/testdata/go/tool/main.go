// Command tool is a tool as an agent calls it: one JSON object in on stdin,
// one out on stdout. It sums an order.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"sort"
)

type item struct {
	Name  string  `json:"name"`
	Price float64 `json:"price"`
	Count int     `json:"count"`
}

type order struct {
	Customer string `json:"customer"`
	Items    []item `json:"items"`
}

type summary struct {
	Customer string   `json:"customer"`
	Lines    int      `json:"lines"`
	Units    int      `json:"units"`
	Total    float64  `json:"total"`
	Dearest  string   `json:"dearest,omitempty"`
	Names    []string `json:"names"`
}

func main() {
	var in order
	dec := json.NewDecoder(os.Stdin)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		fmt.Fprintln(os.Stderr, "tool: bad input:", err)
		os.Exit(2)
	}
	out := summary{Customer: in.Customer, Lines: len(in.Items), Names: []string{}}
	dearest := -1.0
	cents := 0.0
	for _, it := range in.Items {
		out.Units += it.Count
		cents += it.Price * 100 * float64(it.Count)
		out.Names = append(out.Names, it.Name)
		if it.Price > dearest {
			dearest, out.Dearest = it.Price, it.Name
		}
	}
	out.Total = float64(int64(cents+0.5)) / 100
	sort.Strings(out.Names)
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		fmt.Fprintln(os.Stderr, "tool:", err)
		os.Exit(1)
	}
}
