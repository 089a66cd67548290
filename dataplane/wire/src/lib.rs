//! Header views, in-place rewrite and checksum arithmetic of Ethernet, ARP, IPv4, IPv6, ICMP, TCP, UDP and SCTP.
//!
//! Everything here is a function of its arguments: no I/O, no clock, no `unsafe`, no allocation. A view is made
//! by a checked constructor ([`parse`]); what that proved is never checked again, so a view must be used with the
//! frame that it was made from.
#![forbid(unsafe_code)]

pub mod addr;
pub mod arp;
pub mod checksum;
mod crc;
mod ethernet;
mod field;
pub mod fragment;
#[cfg(test)]
mod frames;
mod icmp;
mod ipv4;
mod ipv6;
mod mss;
pub mod nat;
pub mod ndp;
mod packet;
mod parse;
mod plain;
pub mod quote;
pub mod reply;
mod sctp;
mod tcp;
pub mod tunnel;
mod udp;
mod vlan;

pub use addr::{Addr, MacAddr, Port, Ports, Protocol};
pub use arp::{ArpOp, ArpPacket};
pub use checksum::{Delta, Sum};
pub use fragment::{Cutting, first_part, is_echo_request, rewrite_part, set_part_id, set_whole_id};
pub use mss::clamp_mss;
pub use nat::{ChecksumMode, Rewrite, destination, forward, rewrite, set_ethernet, set_source};
pub use ndp::{NeighborAdvertisement, NeighborSolicitation};
pub use packet::{Fragment, Ip, Packet, ParseError, Transport};
pub use parse::parse;
pub use plain::{Head, Kind, Plain};
pub use quote::{Quote, rewrite_error};
pub use reply::IcmpErrorKind;
pub use sctp::Chunks;
pub use tcp::TcpFlags;
pub use vlan::{Priorities, Tags};
