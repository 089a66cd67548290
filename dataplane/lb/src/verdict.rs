//! What becomes of a frame.

use wire::{Head, ParseError};

use crate::id::{PortId, WorkerId};

/// A frame of a burst, rewritten in place.
#[derive(Debug)]
pub struct Frame<'a> {
    /// From the Ethernet header to the end of the room that the frame has; only `..len` is packet.
    pub room: &'a mut [u8],
    /// Octets of packet, Ethernet header included; changed where a reply of our own takes the frame.
    pub len: usize,
    /// The NIC that it came in on.
    pub port: PortId,
    /// Whether another worker handed it over: then it is decided here and never handed on, but for [`Verdict::HandOffPart`].
    pub handed: bool,
}

impl Frame<'_> {
    /// Where a plain frame's headers are; `None` where there is no room for them all.
    #[inline]
    pub(crate) fn head(&self) -> Option<&Head> {
        self.room.first_chunk()
    }
}

/// What becomes of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Transmit it on this NIC.
    Tx(PortId),
    /// Give it to the worker that owns its flow.
    HandOff(WorkerId),
    /// Give a part of a datagram to the worker that owns its flow, also if another worker handed it over: only the worker
    /// where a datagram's parts meet says so, and only of another, so it is the last time.
    HandOffPart(WorkerId),
    /// Take the frame back: what was of use was copied.
    Keep,
    /// Leave it to the kernel: transmit on the kernel port; without one the worker counts a drop.
    Pass,
    /// Drop it and count why.
    Drop(DropReason),
}

impl From<ParseError> for DropReason {
    fn from(error: ParseError) -> Self {
        match error {
            ParseError::Truncated => Self::Truncated,
            ParseError::BadHeader => Self::BadHeader,
            ParseError::BadChecksum => Self::BadChecksum,
            ParseError::ExtensionHeaders => Self::ExtensionHeaders,
            ParseError::SourceRoute => Self::SourceRoute,
            ParseError::UnknownEtherType => Self::UnknownProtocol,
        }
    }
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident => $label:literal,)*) => {
        /// Why a frame was dropped; each has a counter, `millrace_drops_total{reason}`.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum DropReason { $($(#[$doc])* $name,)* }

        impl DropReason {
            /// Every reason, in the order of its number.
            pub const ALL: &[DropReason] = &[$(DropReason::$name,)*];

            /// The label in metrics.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(DropReason::$name => $label,)* }
            }
        }
    };
}

drop_reasons! {
    /// Shorter than its headers say, or than they must be.
    Truncated => "truncated",
    /// A header that contradicts itself (version, header length, total length).
    BadHeader => "bad_header",
    /// An IPv4 header checksum, an ICMP error's, or that of a packet which would be rejected, that is wrong.
    BadChecksum => "bad_checksum",
    /// A source that cannot be one: multicast, loopback, unspecified, or an address of ours; or a packet without a flow that
    /// was sent to all stations of a link.
    Martian => "martian",
    /// An EtherType or protocol that is not handled.
    UnknownProtocol => "unknown_protocol",
    /// IPv6 extension headers that are too many or malformed.
    ExtensionHeaders => "extension_headers",
    /// An IPv4 packet that says what way it wants to take.
    SourceRoute => "source_route",
    /// A datagram to a Service from an endpoint's own port of UDP: each would answer the other's answers without end.
    ServiceLoop => "service_loop",
    /// A fragment that is none: empty, past the longest datagram, or not of whole units though more follow.
    FragmentMalformed => "fragment_malformed",
    /// A first fragment without all of the headers up to the transport's, or one that would write over a TCP header.
    FragmentTiny => "fragment_tiny",
    /// A fragment that overlaps another one or the end of its datagram, and all that come of that datagram then.
    FragmentOverlap => "fragment_overlap",
    /// A fragment that was there already.
    FragmentDuplicate => "fragment_duplicate",
    /// A fragment for which there is no room, beyond its source's share, or one of too many of its datagram.
    FragmentLimit => "fragment_limit",
    /// A later fragment of a datagram whose first one did not go on.
    FragmentUnmatched => "fragment_unmatched",
    /// The first fragment of an SCTP packet whose ports change: its CRC covers fragments that are still to come.
    FragmentCrc => "fragment_crc",
    /// An ICMP error that quotes no packet of a flow, or an ICMP message nobody asked for.
    Icmp => "icmp",
    /// An ARP or neighbour discovery message that needs no answer.
    NeighborDiscovery => "neighbor_discovery",
    /// Not to an address of ours, or to another machine on the link; or (mode `preserve`) from an endpoint's port, and no
    /// reply of a flow.
    NotOurs => "not_ours",
    /// No endpoint may serve it, and the Service says drop (policy Local, topology keys).
    NoEndpoint => "no_endpoint",
    /// Rejected, but the reply of ours was over its rate.
    RejectRateLimited => "reject_rate_limited",
    /// Outside `loadBalancerSourceRanges`.
    SourceRange => "source_range",
    /// The flow table is full and nothing in it may be evicted.
    FlowTableFull => "flow_table_full",
    /// The owner directory's bucket is full.
    DirectoryFull => "directory_full",
    /// Another worker claimed this flow and does not own it (it just ended, or is being opened).
    OwnerGone => "owner_gone",
    /// No SNAT port is left towards this endpoint.
    SnatExhausted => "snat_exhausted",
    /// A source that has more than its share of flows.
    SourceLimit => "source_limit",
    /// A source that opens flows faster than it may.
    SourceRate => "source_rate",
    /// A reply to a SNAT port that no flow has; or a packet of no connection that is not to be answered (a TCP reset; of SCTP
    /// an ABORT, a SHUTDOWN COMPLETE, a COOKIE ACK, what has no tag).
    NoFlow => "no_flow",
    /// A TCP reset that its receiver would not accept.
    UnacceptableReset => "unacceptable_reset",
    /// The next hop's link-layer address is not known.
    NextHopUnresolved => "next_hop_unresolved",
    /// There is no route to the endpoint.
    NoRoute => "no_route",
    /// In mode `dsr-l2`: the endpoint is behind a router, which would send the packet back to us.
    NotOnLink => "not_on_link",
    /// In a mode that tunnels: there is no source address of the endpoint's family for outer headers.
    NoTunnelSource => "no_tunnel_source",
    /// The frame has no room for an outer header or VLAN tags.
    NoRoom => "no_room",
    /// Longer than the next hop takes, and there is no error about it: over its rate, about an error or a later fragment, or
    /// (IPv4) there was no room for its pieces.
    TooBig => "too_big",
    /// TTL or hop limit ended, and the reply of ours was over its rate or must not be sent.
    TtlExceeded => "ttl_exceeded",
    /// It would have opened a flow while the worker got more than it could do.
    Overload => "overload",
    /// A SYN beyond the rate of its address; dropped by the steering program, before a worker.
    SynFlood => "syn_flood",
    /// For the kernel, and there is no kernel port.
    NoKernelPort => "no_kernel_port",
    /// The ring to the owning worker was full.
    HandOffFull => "hand_off_full",
    /// The out port's TX ring stayed full.
    TxFull => "tx_full",
    /// The port or queue has no socket to send by.
    NoTxQueue => "no_tx_queue",
}
