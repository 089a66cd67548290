//! Sockets and steering on a real kernel, over veth in network namespaces of their own. Needs root, and fails without.

mod lab;
mod sockets;
mod steering;
