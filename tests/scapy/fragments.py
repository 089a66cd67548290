"""Sends a UDP datagram in parts that scapy makes, and says whether the echo of it came back.

    fragments.py INTERFACE GATEWAY_MAC OUR_ADDRESS TARGET PORT CASE

Prints "answered", "silent", or "other" (an answer with another content). The answer is put together by the kernel.
"""

import random
import socket
import sys

from scapy.arch import get_if_hwaddr
from scapy.config import conf
from scapy.layers.inet import IP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, fragment6
from scapy.layers.l2 import Ether
from scapy.packet import Raw, raw

SIZE = 1200
LENGTH = 6000


def whole(ours, target, port, own_port, payload):
    six = ":" in target
    network = IPv6(src=ours, dst=target) if six else IP(src=ours, dst=target, id=random.randrange(65536))
    return network / UDP(sport=own_port, dport=port) / Raw(payload)


def part(packet, number, offset, octets, more):
    """A part by hand: `octets` of the payload at `offset`."""
    if IPv6 in packet:
        header = IPv6(src=packet.src, dst=packet.dst)
        return header / IPv6ExtHdrFragment(nh=17, offset=offset // 8, m=int(more), id=number) / Raw(octets)
    flags = "MF" if more else 0
    return IP(src=packet.src, dst=packet.dst, proto=17, id=number & 0xFFFF, flags=flags, frag=offset // 8) / Raw(octets)


def parts(packet):
    """All parts, as scapy itself cuts."""
    if IPv6 in packet:
        number = random.randrange(1 << 32)
        body = packet[UDP]
        return fragment6(IPv6(src=packet.src, dst=packet.dst) / IPv6ExtHdrFragment(id=number) / body, SIZE + 48)
    return fragment(packet, fragsize=SIZE)


def by_hand(packet, overlap):
    """Parts of which one overlaps its neighbour by so many octets, with other octets in them."""
    header = 40 if IPv6 in packet else 20
    octets = raw(packet)[header:]
    number = random.randrange(1 << 32)
    cuts = range(0, len(octets), SIZE)
    made = [part(packet, number, at, octets[at : at + SIZE], at + SIZE < len(octets)) for at in cuts]
    wrong = part(packet, number, SIZE - overlap, b"\xee" * 2 * overlap, True)
    return made[:1] + [wrong] + made[1:]


CASES = {
    "in-order": lambda p: parts(p),
    "reversed": lambda p: parts(p)[::-1],
    "shuffled": lambda p: random.sample(made := parts(p), len(made)),
    "duplicated": lambda p: [one for two in parts(p) for one in (two, two)],
    "first-last": lambda p: (made := parts(p))[1:] + made[:1],
    "overlapping": lambda p: by_hand(p, 8),
    "missing": lambda p: parts(p)[:-1],
    "without-first": lambda p: parts(p)[1:],
    "behind-options": lambda p: [
        IPv6(src=p.src, dst=p.dst, nh=60) / IPv6ExtHdrDestOpt(nh=44) / one[IPv6ExtHdrFragment] for one in parts(p)
    ],
    "atomic": lambda p: [IPv6(src=p.src, dst=p.dst) / IPv6ExtHdrFragment(nh=17, id=7) / p[UDP]],
}


def main():
    interface, mac, ours, target, port, case = sys.argv[1:]
    family = socket.AF_INET6 if ":" in ours else socket.AF_INET
    answers = socket.socket(family, socket.SOCK_DGRAM)
    answers.bind((ours, 0))
    answers.settimeout(2)
    payload = random.randbytes(800 if case == "atomic" else LENGTH)
    packet = whole(ours, target, int(port), answers.getsockname()[1], payload)
    wire = conf.L2socket(iface=interface)
    link = Ether(src=get_if_hwaddr(interface), dst=mac)
    for one in CASES[case](packet):
        wire.send(link / one)
    try:
        answer = answers.recv(65535)
        print("answered" if answer == payload else "other")
    except socket.timeout:
        print("silent")


main()
