package main

import (
	"fmt"
	"net"
	"time"

	"github.com/spf13/cobra"
)

// newLookupCommand gives the command of the pod that "dnstrail install" looks a name up from. It watches nothing.
func newLookupCommand() *cobra.Command {
	times := 1
	c := &cobra.Command{
		Use: "lookup NAME", Short: "Look a name up as programs here do, and watch nothing", Hidden: true,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for i := range times {
				if i > 0 {
					time.Sleep(time.Second)
				}
				addresses, err := net.DefaultResolver.LookupHost(cmd.Context(), args[0])
				if err != nil && i == times-1 {
					return err
				}
				if err == nil {
					fmt.Fprintln(cmd.OutOrStdout(), addresses)
				}
			}
			return nil
		},
	}
	c.Flags().IntVar(&times, "times", 1, "how often, a second apart")
	return c
}
