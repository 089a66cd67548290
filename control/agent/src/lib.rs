//! The agent: what stands between people, the kernel and the dataplane.
//!
//! A control thread turns manifests or what an API server has, the kernel's network state and health into tables
//! ([`control`]); everything that waits for I/O is a task of one tokio runtime on the main thread. The packet path does not
//! depend on either.

pub mod admin;
pub mod announce;
pub mod check;
pub mod claim;
pub mod cli;
pub mod config;
pub mod control;
pub mod drains;
pub mod explain;
#[cfg(test)]
mod fixture;
pub mod flood;
pub mod health;
pub mod host;
pub mod instance;
pub mod kernel_port;
pub mod kubernetes;
pub mod linger;
pub mod manifests;
pub mod metrics;
pub mod netlink;
pub mod node_health;
pub mod occupied;
pub mod owners;
pub mod report;
pub mod run;
pub mod show;
pub mod state;
pub mod steering;
pub mod stop;
pub mod view;
pub mod vlan_tags;
