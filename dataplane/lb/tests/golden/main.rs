//! Packets in, verdicts and packets out, without a NIC: the whole journey of `lb::process`, checked against etherparse.

extern crate millrace_lb as lb;

mod allocation;
mod answers;
mod association;
mod direct;
mod drops;
mod errors;
mod flows;
mod forwarding;
mod fragments;
mod hostile;
mod judge;
mod kernel;
mod limits;
mod model;
mod overload;
mod packet;
mod parts;
mod properties;
mod retry;
mod rig;
mod sctp;
mod tcp;
mod tunnels;
mod vlan;
mod workers;
