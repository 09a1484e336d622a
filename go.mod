module github.com/dnstrail/dnstrail

go 1.26.0

require (
	github.com/miekg/dns v1.1.73
	github.com/zeebo/xxh3 v1.1.0
)

require (
	github.com/klauspost/cpuid/v2 v2.2.10 // indirect
	golang.org/x/net v0.57.0 // indirect
	golang.org/x/sys v0.47.0 // indirect
)
