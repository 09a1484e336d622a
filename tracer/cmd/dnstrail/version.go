package main

import "runtime/debug"

// version gives the version that the program was built from, "devel" where the build does not know.
func version() string {
	if i, ok := debug.ReadBuildInfo(); ok && i.Main.Version != "" && i.Main.Version != "(devel)" {
		return i.Main.Version
	}
	return "devel"
}
