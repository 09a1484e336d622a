package main

import "testing"

// TestFoldKeepsIndentedLines: prose is folded, and what is indented stands as it was written.
func TestFoldKeepsIndentedLines(t *testing.T) {
	const text = "one two\nthree four\n\n  TOKEN  node/NAME\n  TOKEN  any/NAME\n\nfive"
	const want = "one two three\nfour\n\n  TOKEN  node/NAME\n  TOKEN  any/NAME\n\nfive"
	if got := fold(text, 13); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
