package dnswire

import "github.com/dnstrail/dnstrail/link/semconv"

// TypeString gives a type in words: see [semconv.TypeName].
func TypeString(t uint16) string { return semconv.TypeName(t) }

// ClassString gives a class in words: see [semconv.ClassName].
func ClassString(c uint16) string { return semconv.ClassName(c) }

// RcodeString gives a response code in words: see [semconv.RcodeName].
func RcodeString(r uint16) string { return semconv.RcodeName(int(r)) }

// OpcodeString gives an opcode in words: see [semconv.OpcodeName].
func OpcodeString(o uint8) string { return semconv.OpcodeName(int(o)) }
