"""Sends ICMP errors about a UDP datagram, as scapy makes them.

    errors.py INTERFACE GATEWAY_MAC ROUTER SOURCE SOURCE_PORT DESTINATION DESTINATION_PORT CASE...

The error quotes the datagram from SOURCE to DESTINATION, and goes to SOURCE; ROUTER says so.
"""

import sys

from scapy.arch import get_if_hwaddr
from scapy.config import conf
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw, raw


def main():
    interface, mac, router, source, source_port, destination, port, *cases = sys.argv[1:]
    six = ":" in source
    network = IPv6 if six else IP
    head = network(src=router, dst=source)

    def datagram(sport=int(source_port), dport=int(port)):
        layer = IPv6(src=source, dst=destination) if six else IP(src=source, dst=destination, flags="DF")
        return raw(layer / UDP(sport=sport, dport=dport) / Raw(b"question?"))

    unreachable = ICMPv6DestUnreach(code=4) if six else ICMP(type=3, code=3)
    too_big = ICMPv6PacketTooBig(mtu=1300) if six else ICMP(type=3, code=4, nexthopmtu=1300)
    wrong = ICMPv6DestUnreach(code=4, cksum=0x1234) if six else ICMP(type=3, code=3, chksum=0x1234)
    header = 40 if six else 20

    def lying(protocol):
        """A header alone, that says it is longer than it is, of a packet in a packet."""
        octets = bytearray(datagram()[:header])
        octets[6 if six else 9] = protocol
        if not six:
            octets[0] = 0x4F
        return bytes(octets)

    made = {
        "unreachable": lambda: [unreachable / Raw(datagram())],
        # As much as RFC 792 asks for.
        "unreachable-short": lambda: [unreachable / Raw(datagram()[: header + 8])],
        "too-big": lambda: [too_big / Raw(datagram())],
        "wrong-checksum": lambda: [wrong / Raw(datagram())],
        "of-nobody": lambda: [unreachable / Raw(datagram(sport=9)), unreachable / Raw(datagram(dport=9))],
        "truncated": lambda: [unreachable / Raw(datagram()[:length]) for length in range(header + 8)],
        "lying-header": lambda: [kind / Raw(lying(p)) for kind in (unreachable, too_big) for p in (4, 6, 17, 41, 132)],
    }
    wire = conf.L2socket(iface=interface)
    link = Ether(src=get_if_hwaddr(interface), dst=mac)
    for case in cases:
        for error in made[case]():
            wire.send(link / head / error)


main()
