// Package access says who may speak to what listens: how many and how long ([Listener], [Server]), from which web page
// ([Local]), with which credential ([Tokens], [Reviews], [TLS]), and for whom the holder of a credential may speak
// ([Caller]).
//
// A credential has a subject, which is written "node/NAME", "pod/NAMESPACE/NAME" or "any/NAME". Who holds that of a
// node may send spans of that node alone, of a pod of that pod alone; a collector, which sends what others gave it,
// needs "any". Who holds none is known by the address that it sends from.
package access
