// Command csvsum reads every .csv file of a directory and prints, as JSON, the
// rows of each and the sum of every column that is a number throughout. With
// a second argument it writes that into the named file instead.
package main

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

type table struct {
	File string             `json:"file"`
	Rows int                `json:"rows"`
	Sums map[string]float64 `json:"sums"`
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: csvsum DIR [OUTFILE]")
		os.Exit(2)
	}
	tables, err := summarize(os.Args[1])
	if err == nil {
		var b []byte
		if b, err = json.Marshal(tables); err == nil {
			b = append(b, '\n')
			if len(os.Args) > 2 {
				err = os.WriteFile(os.Args[2], b, 0o644)
			} else {
				_, err = os.Stdout.Write(b)
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "csvsum:", err)
		os.Exit(1)
	}
}

func summarize(dir string) ([]table, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	tables := []table{}
	for _, e := range entries {
		if e.IsDir() || !strings.HasSuffix(e.Name(), ".csv") {
			continue
		}
		t, err := sum(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.Name(), err)
		}
		t.File = e.Name()
		tables = append(tables, t)
	}
	return tables, nil
}

func sum(name string) (table, error) {
	f, err := os.Open(name)
	if err != nil {
		return table{}, err
	}
	defer f.Close()
	r := csv.NewReader(f)
	r.ReuseRecord = true
	row, err := r.Read()
	if err != nil {
		return table{}, err
	}
	head := append([]string(nil), row...)
	sums, text := make([]float64, len(head)), make([]bool, len(head))
	t := table{Sums: map[string]float64{}}
	for {
		row, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return table{}, err
		}
		t.Rows++
		for i, cell := range row {
			v, err := strconv.ParseFloat(cell, 64)
			if err != nil {
				text[i] = true
				continue
			}
			sums[i] += v
		}
	}
	for i, name := range head {
		if !text[i] {
			t.Sums[name] = sums[i]
		}
	}
	return t, nil
}
