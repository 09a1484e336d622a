package identity

import "encoding/hex"

// uid is a pod's UID in binary: a UUID, or the hash that the kubelet uses for a pod from a manifest on its node.
type uid [16]byte

// notHex stands in nibble for what is no hexadecimal digit.
const notHex = 0xff

var nibble = func() (t [256]byte) {
	for c := range t {
		switch {
		case '0' <= c && c <= '9':
			t[c] = byte(c - '0')
		case 'a' <= c && c <= 'f':
			t[c] = byte(c - 'a' + 10)
		case 'A' <= c && c <= 'F':
			t[c] = byte(c - 'A' + 10)
		default:
			t[c] = notHex
		}
	}
	return t
}()

// parseUID reads a UID as 36 characters with dashes (the API), with underscores (the kubelet's cgroups under systemd)
// or as 32 digits without (static pods). It does not allocate.
func parseUID(s string) (u uid, dashed, ok bool) {
	switch len(s) {
	case 32:
	case 36:
		dashed = true
		for _, i := range [...]int{8, 13, 18, 23} {
			if s[i] != '-' && s[i] != '_' {
				return uid{}, false, false
			}
		}
	default:
		return uid{}, false, false
	}
	i := 0
	for n := range u {
		if dashed && (n == 4 || n == 6 || n == 8 || n == 10) {
			i++
		}
		hi, lo := nibble[s[i]], nibble[s[i+1]]
		if hi|lo > 0xf {
			return uid{}, false, false
		}
		u[n] = hi<<4 | lo
		i += 2
	}
	return u, dashed, true
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
