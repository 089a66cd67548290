//! What a worker counts while it decides: plain numbers of its own, read by nobody else while it runs.
//!
//! Verdicts are counted by who carries them out (packets and octets sent, drops by reason); here stands what a verdict
//! does not tell. The worker publishes these after a burst.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a worker did beside forwarding.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Counters { $($(#[$doc])* pub $name: u64,)* }

        impl Counters {
            /// How many there are.
            pub const LEN: usize = [$(stringify!($name)),*].len();
            /// Their names, in the order of [`Counters::values`].
            pub const NAMES: [&'static str; Self::LEN] = [$(stringify!($name)),*];

            /// Their values.
            #[must_use]
            pub const fn values(&self) -> [u64; Self::LEN] {
                [$(self.$name),*]
            }
        }
    };
}

counters! {
    /// Flows that opened here.
    flows_opened,
    /// Flows that ended here, for whatever reason.
    flows_closed,
    /// Flows that were put out of a full table.
    flows_evicted,
    /// UDP flows that left a removed endpoint for another one.
    flows_moved,
    /// TCP resets that we sent.
    resets_sent,
    /// SCTP ABORTs and SHUTDOWN COMPLETEs that we sent.
    aborts_sent,
    /// ICMP port unreachables that we sent.
    unreachables_sent,
    /// ICMP time exceededs that we sent.
    time_exceededs_sent,
    /// ICMP errors that we sent to who was refused a flow for want of room for it, or its source's share.
    prohibiteds_sent,
    /// Openings refused, answered or not, because no SNAT port was left.
    refused_snat_exhausted,
    /// Openings refused, answered or not, because the source has its share of flows.
    refused_source_limit,
    /// Openings refused, answered or not, because there are as many flows as may be.
    refused_flow_table_full,
    /// Openings refused, answered or not, because a bucket of the owner directory is full.
    refused_directory_full,
    /// ICMP fragmentation neededs and packet too bigs that we sent.
    too_bigs_sent,
    /// ICMP errors about packets of flows that went on to who sent those.
    icmp_errors_translated,
    /// Packets without a flow that went where it would go: endpoints that answer past us need none here.
    stateless_forwarded,
    /// Pings that we answered.
    echo_replies_sent,
    /// ARP requests and neighbour solicitations that we answered.
    neighbor_replies_sent,
    /// ARP and neighbour discovery messages in which another machine says that it has an address of ours.
    address_conflicts,
    /// Client hops that changed under a flow.
    client_hops_changed,
    /// SYNs that went on to another endpoint, for one had refused them or was silent; and INITs that clients sent again.
    connects_retried,
    /// Connections that another endpoint than the first one answered.
    connects_rescued,
    /// SYNs that did not go on to another endpoint, for too many had lately.
    retries_over_budget,
    /// SYNs that no other endpoint was there for, or that had been to as many as they may.
    retries_exhausted,
    /// SYNs that were not kept, for as many were as there is room for: an endpoint's silence goes unnoticed. Whether they
    /// would have been kept otherwise is not looked at then.
    syns_not_kept,
    /// Endpoints' answers to something else than the SYN: reset, and the SYN sent again.
    challenges_reset,
    /// Endpoints' answers to SYNs that had gone on to another one: reset.
    late_answers_reset,
    /// TCP resets, and SCTP packets that end an association, that whom they were for would not accept: delivered, and nothing
    /// else.
    resets_not_believed,
    /// Times that an endpoint was set aside for its failures.
    endpoints_set_aside,
    /// Fragments that came before the first one of their datagram, and were kept until that came.
    fragments_kept,
    /// Kept fragments that were dropped: the first one never came or did not go on, or others needed the room.
    fragments_given_up,
    /// IPv4 packets that were cut for their next hop's MTU.
    packets_cut,
    /// Frames from another worker that were decided here.
    handed_decided,
}

#[cfg(test)]
mod tests {
    use super::Counters;

    #[test]
    fn names_and_values_are_in_the_same_order() {
        let counters = Counters { flows_opened: 7, handed_decided: 9, ..Counters::default() };
        let values = counters.values();
        assert_eq!(values[Counters::NAMES.iter().position(|n| *n == "flows_opened").unwrap()], 7);
        assert_eq!(values[Counters::NAMES.iter().position(|n| *n == "handed_decided").unwrap()], 9);
        assert_eq!(values.iter().sum::<u64>(), 16);
    }
}
