package doctor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

var states = []State{Pass, Warn, Fail, Skip}

// MarshalText gives the state's word, for JSON.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText gives; the error is that of a word that is none.
func (s *State) UnmarshalText(word []byte) error {
	i := slices.IndexFunc(states, func(known State) bool { return known.String() == string(word) })
	if i < 0 {
		return fmt.Errorf("%q is no state of a finding", word)
	}
	*s = states[i]
	return nil
}

// WriteJSON writes a finding as a line of JSON. The error is w's.
func (f Finding) WriteJSON(w io.Writer) error { return json.NewEncoder(w).Encode(f) }

// ReadJSON gives each finding of what WriteJSON wrote, one after another. The error is r's, or tells what is no
// finding.
func ReadJSON(r io.Reader, found func(Finding)) error {
	for dec := json.NewDecoder(r); ; {
		var f Finding
		err := dec.Decode(&f)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("a finding: %w", err)
		}
		found(f)
	}
}
