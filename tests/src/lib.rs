//! The lab: hosts as network namespaces, wires as veth, real servers, and the real `millrace` binary.
//!
//! A [`Lab`](lab::Lab) names its namespaces after the process and a counter, so labs can run beside each other, and its
//! `Drop` ends the processes it started (by id), unmounts what the instance mounted and removes its namespaces, also
//! when a test fails. Nothing here sleeps blindly: [`eventually`](wait::eventually) waits for a condition with a deadline.

pub mod container;
pub mod datagrams;
pub mod decapsulator;
pub mod flood;
pub mod greeter;
pub mod helm;
pub mod kubelab;
pub mod lab;
pub mod load;
pub mod millrace;
pub mod pulse;
pub mod sctp;
pub mod servers;
pub mod tagger;
pub mod topology;
pub mod transfers;
pub mod unruly;
pub mod wait;
pub mod witness;
