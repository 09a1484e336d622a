package bpf

// One object serves every little-endian machine, amd64 and arm64 among them: the program reads no registers, only types
// that CO-RE relocates.
//go:generate go tool bpf2go -go-package bpf -tags linux -target bpfel -cc clang -strip llvm-strip -cflags "-O2 -Wall -Werror -mcpu=v3" object src/dnstrail.bpf.c
