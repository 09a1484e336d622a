// Package model checks the tracer's model of lookups against worlds whose truth is known. Its tests make up worlds
// at random, of clients, networks, servers and
// faults, let them run, show the hops that some agent would see to the assembler and the judge, and compare what
// these say with what was.
//
// It holds no code of the program: what it knows of kernels and resolvers is written down once more here, so that a
// mistake is not shared.
package model
