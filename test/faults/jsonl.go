package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/dnstrail/dnstrail/test/kernels/job"
)

// records gives what came of each fault.
func records(rows []*row) []job.Row {
	var all []job.Row
	for _, r := range rows {
		out := job.Row{
			Fault: r.fault.name, Setting: r.setting.String(), Family: r.family.String(),
			Expected: r.expected(), Judged: r.judged, Observed: r.says(observed),
			Traced: r.says(traced), Explained: r.says(explained), Text: r.text, Right: r.right(), Seconds: r.after.Seconds(),
		}
		if !r.right() {
			out.Problem = r.problems()
		}
		all = append(all, out)
	}
	return all
}

// writeRows writes them to a file, a line each.
func writeRows(file string, rows []job.Row) error {
	f, err := os.Create(file) // #nosec G304 -- of the command line
	if err != nil {
		return err
	}
	e := json.NewEncoder(f)
	for i := range rows {
		if err := e.Encode(&rows[i]); err != nil {
			return fmt.Errorf("writing %s: %w", file, err)
		}
	}
	return f.Close()
}

// readRows reads what writeRows wrote.
func readRows(file string) ([]job.Row, error) {
	f, err := os.Open(file) // #nosec G304 -- of the command line
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []job.Row
	for d := json.NewDecoder(f); ; {
		var r job.Row
		switch err := d.Decode(&r); {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil:
			return nil, fmt.Errorf("reading %s: %w", file, err)
		}
		all = append(all, r)
	}
}
