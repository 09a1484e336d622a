package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"
)

// helpWidth is how wide help is at most, in cells.
const helpWidth = 100

// terminal gives the width of a terminal; ok is false where f is none.
func terminal(f *os.File) (width int, ok bool) {
	if !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	width, _, err := term.GetSize(int(f.Fd()))
	return width, err == nil && width > 0
}

// foldHelp makes help fit the terminal.
func foldHelp(root *cobra.Command) {
	width := helpWidth
	if w, ok := terminal(os.Stdout); ok {
		width = min(width, w)
	}
	cobra.AddTemplateFunc("flags", func(fs *pflag.FlagSet) string { return fs.FlagUsagesWrapped(width) })
	cobra.AddTemplateFunc("fold", func(text string) string { return fold(text, width) })
	root.SetUsageTemplate(strings.NewReplacer(".LocalFlags.FlagUsages", "flags .LocalFlags", ".InheritedFlags.FlagUsages",
		"flags .InheritedFlags").Replace(root.UsageTemplate()))
	root.SetHelpTemplate(strings.Replace(root.HelpTemplate(), "trimTrailingWhitespaces}}",
		"trimTrailingWhitespaces | fold}}", 1))
}

// fold breaks paragraphs, which an empty line parts, into lines of at most width cells. A paragraph that is indented
// keeps its lines.
func fold(text string, width int) string {
	var out []string
	for paragraph := range strings.SplitSeq(text, "\n\n") {
		if strings.HasPrefix(paragraph, " ") {
			out = append(out, paragraph, "")
			continue
		}
		line := ""
		for word := range strings.FieldsSeq(paragraph) {
			if line != "" && len(line)+1+len(word) > width {
				out = append(out, line)
				line = ""
			}
			line = strings.TrimPrefix(line+" "+word, " ")
		}
		out = append(out, line, "")
	}
	return strings.Join(out[:len(out)-1], "\n")
}

// noArgs is cobra.NoArgs with words that fit a command that has no subcommands.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unexpected argument %q: %s takes flags only (%[2]s --help)", args[0], cmd.CommandPath())
	}
	return nil
}
