package main

import "github.com/spf13/cobra"

// newRootCommand gives the command with all its subcommands: one file each, each with a new…Command function.
func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "dnstrail",
		Short: "Follow DNS lookups from the process that asks to the answer, and say where one was lost",
		Long: `dnstrail follows one DNS lookup from the process that asked, through every device, network namespace and
address translation, to the DNS server and back, and says in words where a lookup was lost and why.`,
		// main prints the error, once; usage after an error that is not about usage only hides it.
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version(),
	}
	foldHelp(root)
	root.AddCommand(newAgentCommand(), newObserveCommand())
	root.AddCommand(newReportCommand(), newTopCommand())
	root.AddCommand(newStoreCommand(), newExplainCommand(), newWalkCommand(), newDoctorCommand(), newVersionCommand())
	root.AddCommand(newInstallCommand(), newUpgradeCommand(), newUninstallCommand(), newStatusCommand(),
		newLookupCommand())
	return root
}
