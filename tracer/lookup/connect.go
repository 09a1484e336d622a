package lookup

import "github.com/dnstrail/dnstrail/tracer/hop"

func (a *Assembler) handshake(c *conn, p *hop.Packet, toServer bool) {}
