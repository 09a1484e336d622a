package hop

import (
	"bufio"
	"bytes"
	"os"
	"strconv"
	"sync"
)

// functions caches what FunctionAt has found: a kernel drops packets in a few places.
var functions struct {
	sync.Mutex
	names map[uint64]string
}

const maxFunctions = 1024

// FunctionAt gives the name of the kernel function that holds an address, such as [Hop.Location]: where a kernel gives
// no reason for a drop, the place says more. It reads /proc/kallsyms, once for each address (some 50 ms); "" where the
// kernel hides it (kernel.kptr_restrict) or has none there.
func FunctionAt(address uint64) string {
	functions.Lock()
	defer functions.Unlock()
	name, known := functions.names[address]
	if known {
		return name
	}
	if f, err := os.Open("/proc/kallsyms"); err == nil {
		name = functionIn(bufio.NewScanner(f), address)
		_ = f.Close() // was only read
	}
	if functions.names == nil || len(functions.names) >= maxFunctions {
		functions.names = make(map[uint64]string)
	}
	functions.names[address] = name
	return name
}

// functionIn finds the last symbol of the kernel's text at or before an address. A line is "address type name [module]"
// (proc(5)).
func functionIn(lines *bufio.Scanner, address uint64) string {
	var at uint64
	var name string
	for lines.Scan() {
		hex, rest, _ := bytes.Cut(lines.Bytes(), []byte{' '})
		if len(rest) < 3 || rest[0]|0x20 != 't' && rest[0]|0x20 != 'w' {
			continue
		}
		a, err := strconv.ParseUint(string(hex), 16, 64)
		if err != nil || a == 0 || a > address || a < at {
			continue
		}
		symbol, _, _ := bytes.Cut(rest[2:], []byte{'\t'})
		at, name = a, string(symbol)
	}
	return name
}

// AddressOf gives the address of a kernel function, for tests and for building hops; 0 if the kernel has none of that
// name or hides it.
func AddressOf(function string) uint64 {
	text, err := os.ReadFile("/proc/kallsyms")
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(text) {
		if f := bytes.Fields(line); len(f) >= 3 && string(f[2]) == function {
			a, err := strconv.ParseUint(string(f[0]), 16, 64)
			if err != nil {
				return 0
			}
			return a
		}
	}
	return 0
}
