package lookup

import "github.com/dnstrail/dnstrail/tracer/hop"

type streams struct{}

func (a *Assembler) addTCP(*hop.Packet) {}
