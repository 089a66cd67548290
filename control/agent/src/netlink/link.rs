//! What a link message says about a NIC, and how many queues it really has.

use ethtool::{EthtoolAttr, EthtoolChannelAttr, EthtoolHandle};
use futures_util::StreamExt;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, VlanProtocol,
};
use wire::MacAddr;

use super::Link;

/// Receive and transmit queues in use. A message only says how many were allocated.
pub(super) type Queues = (u32, u32);

/// The link of a message; `None` for one without a name.
pub(super) fn parse(message: &LinkMessage, queues: Option<Queues>) -> Option<Link> {
    let up = LinkFlags::Up | LinkFlags::LowerUp;
    let mut link = Link {
        name: String::new(),
        ifindex: message.header.index,
        mac: MacAddr::UNKNOWN,
        mtu: 0,
        rx_queues: 1,
        tx_queues: 1,
        virtual_device: false,
        up: message.header.flags.contains(up),
        kind: String::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(octets) => {
                link.mac = octets.as_slice().try_into().map_or(MacAddr::UNKNOWN, MacAddr);
            }
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::NumRxQueues(count) => link.rx_queues = *count,
            LinkAttribute::NumTxQueues(count) => link.tx_queues = *count,
            LinkAttribute::ParentDevBusName(bus) if bus == "virtio" => link.virtual_device = true,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    let LinkInfo::Kind(kind) = info else { continue };
                    link.kind = kind.to_string();
                    link.virtual_device |= matches!(kind, InfoKind::Veth | InfoKind::Tun | InfoKind::Netkit);
                }
            }
            _ => {}
        }
    }
    if let Some((rx, tx)) = queues {
        (link.rx_queues, link.tx_queues) = (rx, tx);
    }
    (!link.name.is_empty()).then_some(link)
}

/// A VLAN subinterface (`ip link add … type vlan`), which its parent's NIC serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Vlan {
    /// Itself.
    pub link: Link,
    /// The index of the interface that it stands on.
    pub parent: u32,
    /// Its number.
    pub number: u16,
    /// Whether its tag is a provider's (802.1ad).
    pub provider: bool,
}

/// The VLAN of a message; `None` for any other link.
pub(super) fn parse_vlan(message: &LinkMessage) -> Option<Vlan> {
    let link = parse(message, None)?;
    let parent = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(parent) => Some(*parent),
        _ => None,
    });
    let infos = message.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let data = infos.flatten().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vlan(data)) => Some(data),
        _ => None,
    })?;
    let number = data.iter().find_map(|info| match info {
        InfoVlan::Id(number) => Some(*number),
        _ => None,
    });
    let provider = data.contains(&InfoVlan::Protocol(VlanProtocol::Ieee8021Ad));
    Some(Vlan { link, parent: parent?, number: number?, provider })
}

/// Asks the driver by ethtool(8)'s netlink for its channels; `None` where it does not say.
pub(super) async fn channels(ethtool: &mut EthtoolHandle, interface: &str) -> Option<Queues> {
    let replies = ethtool.channel().get(Some(interface)).execute().await.ok()?;
    let mut replies = std::pin::pin!(replies);
    let reply = replies.next().await?.ok()?;
    let (mut rx, mut tx, mut combined) = (0, 0, 0);
    for attribute in &reply.payload.nlas {
        match attribute {
            EthtoolAttr::Channel(EthtoolChannelAttr::RxCount(count)) => rx = *count,
            EthtoolAttr::Channel(EthtoolChannelAttr::TxCount(count)) => tx = *count,
            EthtoolAttr::Channel(EthtoolChannelAttr::CombinedCount(count)) => combined = *count,
            _ => {}
        }
    }
    let queues = (rx + combined, tx + combined);
    (queues.0 > 0 && queues.1 > 0).then_some(queues)
}
