package output

import (
	"bytes"
	"encoding/json"
	"io"

	"github.com/dnstrail/dnstrail/tracer/printable"
)

// JSONL writes rows as JSON, one a line. What a terminal would act on is escaped in the strings: see [printable.JSON].
type JSONL struct {
	w   io.Writer
	doc bytes.Buffer
	enc *json.Encoder
}

// NewJSONL gives a writer to w.
func NewJSONL(w io.Writer) *JSONL {
	j := &JSONL{w: w}
	j.enc = json.NewEncoder(&j.doc)
	j.enc.SetEscapeHTML(false)
	return j
}

// Write writes one row.
func (j *JSONL) Write(r *Row) error {
	j.doc.Reset()
	if err := j.enc.Encode(r); err != nil {
		return err
	}
	_, err := j.w.Write(printable.JSON(j.doc.Bytes()))
	return err
}
