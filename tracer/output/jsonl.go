package output

import (
	"encoding/json"
	"io"
)

// JSONL writes rows as JSON, one a line.
type JSONL struct{ enc *json.Encoder }

// NewJSONL gives a writer to w.
func NewJSONL(w io.Writer) *JSONL {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return &JSONL{e}
}

// Write writes one row.
func (j *JSONL) Write(r *Row) error { return j.enc.Encode(r) }
