package network

import (
	"encoding/binary"
	"net/netip"
)

// proxySignature begins a header of the PROXY protocol, version 2
// (https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt, section 2.2).
const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

// Fields of the header.
const (
	proxyVersion2  = 0x20 // with the command in the lower half
	proxyCommand   = 0x01 // PROXY: for somebody else's connection
	proxyTCP4      = 0x11
	proxyTCP6      = 0x21
	proxyAddresses = 2*16 + 2*2 // the longest
)

// proxyHeader tells a server who its client is: where the connection comes from
// and what it was made to. Both addresses are of one family.
func proxyHeader(src, dst netip.AddrPort) []byte {
	b := append(make([]byte, 0, len(proxySignature)+4+proxyAddresses), proxySignature...)
	b = append(b, proxyVersion2|proxyCommand)
	if src.Addr().Is4() && dst.Addr().Is4() {
		b = append(b, proxyTCP4)
	} else {
		b = append(b, proxyTCP6)
		src = netip.AddrPortFrom(netip.AddrFrom16(src.Addr().As16()), src.Port())
		dst = netip.AddrPortFrom(netip.AddrFrom16(dst.Addr().As16()), dst.Port())
	}
	addrs := append(src.Addr().AsSlice(), dst.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(addrs)+4))
	b = append(b, addrs...)
	b = binary.BigEndian.AppendUint16(b, src.Port())
	return binary.BigEndian.AppendUint16(b, dst.Port())
}
