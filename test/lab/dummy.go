package lab

import "net/netip"

// AddDummy gives the namespace a device that leads nowhere and holds an address, as NodeLocal DNSCache makes one for
// the address it listens on. It is a bridge without a port: not every kernel has dummy devices.
func (n *Namespace) AddDummy(name string, addr netip.Addr) error {
	return n.addBridge(name, netip.PrefixFrom(addr, addr.BitLen()))
}
