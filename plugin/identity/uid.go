package identity

import "encoding/hex"

// uid is a pod's UID in binary: a UUID, or the hash that the kubelet uses for a pod from a manifest on its node.
type uid [16]byte

// parseUID reads a UID as 36 characters with dashes (the API), with underscores (the kubelet's cgroups under systemd) or as 32 digits
// without (static pods). It does not allocate.
func parseUID(s string) (u uid, dashed, ok bool) {
	n := 0
	for i := 0; i < len(s); i++ {
		var d byte
		switch c := s[i]; {
		case '0' <= c && c <= '9':
			d = c - '0'
		case 'a' <= c && c <= 'f':
			d = c - 'a' + 10
		case 'A' <= c && c <= 'F':
			d = c - 'A' + 10
		case (c == '-' || c == '_') && len(s) == 36 && (i == 8 || i == 13 || i == 18 || i == 23):
			continue
		default:
			return uid{}, false, false
		}
		if n == 2*len(u) {
			return uid{}, false, false
		}
		u[n/2] = u[n/2]<<4 | d
		n++
	}
	if n != 2*len(u) {
		return uid{}, false, false
	}
	return u, len(s) == 36, true
}

// format writes the UID as the API does, or without dashes.
func (u uid) format(dashed bool) string {
	var b [36]byte
	if !dashed {
		hex.Encode(b[:32], u[:])
		return string(b[:32])
	}
	hex.Encode(b[0:8], u[0:4])
	hex.Encode(b[9:13], u[4:6])
	hex.Encode(b[14:18], u[6:8])
	hex.Encode(b[19:23], u[8:10])
	hex.Encode(b[24:36], u[10:16])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}
