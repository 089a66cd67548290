//! Next hops that stay resolved: neighbours that the kernel is told to manage (`NTF_EXT_MANAGED`, Linux 5.16).
//!
//! Invariant: `kept` holds exactly what may have been asked of the kernel and was not yet taken back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::RwLock;
use std::time::Duration;

use rtnetlink::packet_route::neighbour::{NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourState};
use rtnetlink::{Handle, NeighbourAddRequest};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::NetworkError;
use super::connections::Requests;
use super::view::{NeighbourKey, View};

/// How soon the kernel is asked again for a neighbour that it does not manage (any more).
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// What is kept resolved.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// When the kernel was last asked.
    kept: BTreeMap<NeighbourKey, Instant>,
}

impl Kept {
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Asks for what is wanted and not managed, takes back what is no longer wanted. Returns whether something is to be
    /// tried again after [`RETRY`].
    pub async fn reconcile(&mut self, requests: &mut Requests, view: &RwLock<View>, wanted: &BTreeSet<IpAddr>) -> bool {
        let (needed, unmanaged) = {
            let view = view.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            let needed = view.towards(wanted);
            let managed = |key: &NeighbourKey| view.neighbour(key).is_some_and(|known| known.managed);
            let unmanaged: Vec<_> = needed.iter().copied().filter(|key| !managed(key)).collect();
            (needed, unmanaged)
        };
        let gone: Vec<_> = self.kept.keys().copied().filter(|key| !needed.contains(key)).collect();
        let again = !unmanaged.is_empty();
        let brought = match self.let_go(requests, gone).await {
            Ok(()) => self.ask(requests, unmanaged).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &brought {
            warn!(%error, "neighbours cannot be kept resolved, or let go of; trying again");
        }
        again || brought.is_err()
    }

    /// Takes back. An error leaves the rest for the next time.
    async fn let_go(&mut self, requests: &mut Requests, gone: Vec<NeighbourKey>) -> Result<(), NetworkError> {
        for key in gone {
            // Naming the neighbour without the flag clears it, and leaves what is known of the neighbour: others may be
            // using it, a successor of this process above all.
            let let_go = |handle: &Handle| request(handle, key).flags(NeighbourFlags::Use).execute();
            if let Err(error) = requests.ask(let_go).await? {
                debug!(neighbour = %key.1, %error, "a neighbour cannot be let go of: gone already?");
            }
            self.kept.remove(&key);
        }
        Ok(())
    }

    /// Asks where that was not just done. An error leaves the rest for the next time.
    async fn ask(&mut self, requests: &mut Requests, unmanaged: Vec<NeighbourKey>) -> Result<(), NetworkError> {
        for key in unmanaged {
            let now = Instant::now();
            let due = self.kept.get(&key).is_none_or(|asked| now.duration_since(*asked) >= RETRY);
            if due {
                // Before it is answered: it may be done though nobody says so.
                self.kept.insert(key, now);
                ask(requests, key).await?;
            }
        }
        Ok(())
    }
}

/// About a neighbour, whatever is known of it.
fn request(handle: &Handle, (ifindex, address): NeighbourKey) -> NeighbourAddRequest {
    handle.neighbours().add(ifindex, address).state(NeighbourState::None).replace()
}

/// Has the kernel resolve a neighbour and, where it can, keep it so.
async fn ask(requests: &mut Requests, key: NeighbourKey) -> Result<(), NetworkError> {
    let address = key.1;
    let manage = |handle: &Handle| {
        let mut managed = request(handle, key);
        managed.message_mut().attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        managed.execute()
    };
    let Err(error) = requests.ask(manage).await? else { return Ok(()) };
    debug!(neighbour = %address, %error, "the kernel does not manage this neighbour; asking it to resolve it once");
    if let Err(error) = requests.ask(|handle| request(handle, key).flags(NeighbourFlags::Use).execute()).await? {
        debug!(neighbour = %address, %error, "the kernel cannot resolve this neighbour now");
    }
    Ok(())
}
