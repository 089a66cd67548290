//! What XDP program an interface runs and what its link-layer address is, asked over route netlink (`IFLA_XDP` and
//! `IFLA_ADDRESS` of `linux/if_link.h`).

use std::{ffi::CString, io};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::{AttachMode, XskError};

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttachedProgram {
    pub(crate) id: u32,
    pub(crate) mode: AttachMode,
}

/// The index of `interface` in the calling thread's network namespace.
///
/// # Errors
///
/// [`XskError::NoInterface`].
pub(crate) fn index(interface: &str) -> Result<u32, XskError> {
    let none = || XskError::NoInterface(interface.into());
    let name = CString::new(interface).map_err(|_| none())?;
    // SAFETY: the name is NUL-terminated and outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(none()),
        index => Ok(index),
    }
}

/// The program that `interface` runs, if any. Of several (native and generic at once) the native one.
///
/// # Errors
///
/// [`XskError::NoInterface`], or [`XskError::Netlink`] when the kernel does not answer as expected.
pub(crate) fn attached(interface: &str) -> Result<Option<AttachedProgram>, XskError> {
    let xdp = describe(interface)?.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(xdp) => Some(xdp),
        _ => None,
    });
    Ok(program(&xdp.unwrap_or_default()))
}

/// The link-layer address of `interface`; `None` if it has none of six octets.
///
/// # Errors
///
/// As [`attached`].
pub(crate) fn mac(interface: &str) -> Result<Option<[u8; 6]>, XskError> {
    let address = describe(interface)?.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(octets) => octets.try_into().ok(),
        _ => None,
    });
    Ok(address)
}

fn describe(interface: &str) -> Result<LinkMessage, XskError> {
    ask(index(interface)?).map_err(|source| match source.raw_os_error() {
        Some(libc::ENODEV) => XskError::NoInterface(interface.into()),
        _ => XskError::Netlink { interface: interface.into(), source },
    })
}

fn program(attributes: &[LinkXdp]) -> Option<AttachedProgram> {
    let find = |wanted: fn(&LinkXdp) -> Option<u32>| attributes.iter().find_map(wanted).filter(|id| *id != 0);
    let native = find(|attribute| if let LinkXdp::DrvProgId(id) = attribute { Some(*id) } else { None })
        .or_else(|| find(|attribute| if let LinkXdp::HwProgId(id) = attribute { Some(*id) } else { None }));
    let generic = find(|attribute| if let LinkXdp::SkbProgId(id) = attribute { Some(*id) } else { None });
    if let Some(id) = native {
        return Some(AttachedProgram { id, mode: AttachMode::Native });
    }
    if let Some(id) = generic {
        return Some(AttachedProgram { id, mode: AttachMode::Generic });
    }
    // Some drivers' kernels only give the one id and its mode.
    let id = find(|attribute| if let LinkXdp::ProgId(id) = attribute { Some(*id) } else { None })?;
    let generic = attributes.contains(&LinkXdp::Attached(XdpAttached::SocketBuffer));
    Some(AttachedProgram { id, mode: if generic { AttachMode::Generic } else { AttachMode::Native } })
}

fn ask(index: u32) -> io::Result<LinkMessage> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut link = LinkMessage::default();
    link.header.index = index;
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetLink(link));
    request.header.flags = NLM_F_REQUEST;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(link),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        other => Err(io::Error::other(format!("an unexpected answer: {other:?}"))),
    }
}
