//! The rows of endpoints: where their ids say, the former ones where nothing changed.

use std::collections::{HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use wire::{Addr, Port};

use super::service::Usable;
use super::{Ids, KeptBackend};
use crate::id::BackendId;
use crate::model::{EndpointState, Mode, ServicePort};
use crate::origin::Origin;
use crate::tables::{BackendRow, BackendState, Hop, Tables};

/// Memory of rows that were replaced, for those that come next: they are some megabytes where endpoints are many, and new
/// memory costs more than what is copied there.
#[derive(Debug, Default)]
pub struct Spare(VecDeque<Arc<Vec<BackendRow>>>);

impl Spare {
    /// How many are waited for: as long as somebody reads tables, their rows are not free.
    const MOST: usize = 2;

    fn keep(&mut self, rows: &Arc<Vec<BackendRow>>) {
        self.0.push_back(Arc::clone(rows));
        while self.0.len() > Self::MOST {
            self.0.pop_front();
        }
    }

    /// Memory that nobody reads any more.
    fn take(&mut self) -> Vec<BackendRow> {
        let free = self.0.iter_mut().position(|rows| Arc::get_mut(rows).is_some());
        let mut rows = free.and_then(|at| self.0.remove(at)).and_then(Arc::into_inner).unwrap_or_default();
        rows.clear();
        rows
    }
}

/// Endpoint rows while they are put together: the previous ones until the first differs.
pub(super) struct Rows<'a> {
    previous: &'a Tables,
    own: Option<Vec<BackendRow>>,
    spare: &'a mut Spare,
    /// Those that are desired and were looked at.
    taken: HashSet<BackendId>,
    /// Those that perhaps are desired no longer.
    leaving: Vec<BackendId>,
    hops: &'a dyn Fn(IpAddr) -> Hop,
}

impl<'a> Rows<'a> {
    pub(super) fn after(previous: &'a Tables, hops: &'a dyn Fn(IpAddr) -> Hop, spare: &'a mut Spare) -> Self {
        Self { previous, own: None, spare, taken: HashSet::new(), leaving: previous.leaving.clone(), hops }
    }

    /// Gives the endpoints of a Service port their rows. Those of weight above 0 that get new flows, ordered by address
    /// and port; and the ids of all in the Service port's order, `None` for one that found no room.
    pub(super) fn take_endpoints(
        &mut self,
        port: &ServicePort,
        ids: &mut dyn Ids,
        refused: &mut usize,
    ) -> (Vec<Usable>, Arc<[Option<BackendId>]>) {
        let mut usable: Vec<Usable> = Vec::with_capacity(port.endpoints.len());
        let mut given = Vec::with_capacity(port.endpoints.len());
        for endpoint in &port.endpoints {
            let (address, number) = (Addr::from(endpoint.address), Port::new(endpoint.port));
            let id = ids.backend_id(&port.key, address, number);
            given.push(id);
            let Some(id) = id else {
                *refused += 1;
                continue;
            };
            let takes_flows = endpoint.state == EndpointState::Usable && endpoint.weight > 0;
            let state = if takes_flows { BackendState::Usable } else { BackendState::Draining };
            self.put(id, (address, number), state, port.mode == Mode::DsrL2);
            self.taken.insert(id);
            if takes_flows {
                usable.push((address, number, endpoint.weight, id));
            }
        }
        usable.sort_unstable();
        usable.dedup_by_key(|&mut (.., id)| id);
        (usable, given.into())
    }

    /// Of these some may be desired no longer.
    pub(super) fn leave(&mut self, origin: Option<&Origin>) {
        self.leaving.extend(origin.into_iter().flat_map(Origin::ids));
    }

    /// Rows of endpoints that are no longer desired: kept while they have connections, then released.
    pub(super) fn keep_removed(&mut self, ids: &mut dyn Ids, expired: &HashSet<BackendId>) {
        let mut candidates = std::mem::take(&mut self.leaving);
        candidates.sort_unstable();
        candidates.dedup();
        candidates.retain(|id| !self.taken.contains(id));
        for id in candidates {
            let Some(&old) = self.previous.backends.get(id.index()).filter(|row| row.id == id) else { continue };
            let was_removed = matches!(old.state, BackendState::Removed | BackendState::Free);
            if was_removed && ids.connections(id) == 0 {
                self.set(id.index(), BackendRow::FREE);
                ids.release_backend(id);
            } else {
                // The row of one whose drain is over still says whose the slot is, so that it is released when the last
                // flow is gone.
                let state = if expired.contains(&id) { BackendState::Free } else { BackendState::Removed };
                self.put(id, (old.address, old.port), state, old.near);
                self.leaving.push(id);
            }
        }
    }

    /// Rows of endpoints that only adopted flows know; the slots of others that nothing desires are free again.
    pub(super) fn keep_adopted(&mut self, kept: &[KeptBackend], ids: &mut dyn Ids) {
        for kept in kept {
            if self.rows().get(kept.id.index()).is_some_and(|row| row.address != Addr::UNSPECIFIED) {
                continue;
            }
            if ids.connections(kept.id) > 0 {
                self.put(kept.id, (kept.address, kept.port), BackendState::Removed, false);
                self.leaving.push(kept.id);
            } else {
                ids.release_backend(kept.id);
            }
        }
    }

    fn rows(&self) -> &[BackendRow] {
        self.own.as_ref().unwrap_or(&self.previous.backends)
    }

    fn put(&mut self, id: BackendId, (address, port): (Addr, Port), state: BackendState, near: bool) {
        let row = BackendRow { id, address, port, state, near, ..BackendRow::FREE };
        self.set(id.index(), row.by((self.hops)(address.into())));
    }

    fn set(&mut self, at: usize, row: BackendRow) {
        if self.rows().get(at) == Some(&row) {
            return;
        }
        let rows = self.own.get_or_insert_with(|| {
            let former = &self.previous.backends;
            let mut rows = self.spare.take();
            rows.reserve_exact(former.len().max(at + 1));
            rows.extend_from_slice(former);
            rows
        });
        if rows.len() <= at {
            rows.resize(at + 1, BackendRow::FREE);
        }
        rows[at] = row;
    }

    /// Asks for the next hop of every row: a neighbour may have been found since it was made, whatever else stayed.
    pub(super) fn ask_again(&mut self) {
        for at in 0..self.rows().len() {
            let row = self.rows()[at];
            if row.address != Addr::UNSPECIFIED {
                self.set(at, row.by((self.hops)(row.address.into())));
            }
        }
    }

    /// The rows, and which they are of endpoints that are not desired, and of those that were looked at.
    pub(super) fn done(self) -> (Arc<Vec<BackendRow>>, Vec<BackendId>, HashSet<BackendId>) {
        let former = &self.previous.backends;
        let Some(mut rows) = self.own else { return (Arc::clone(former), self.leaving, self.taken) };
        self.spare.keep(former);
        let used = rows.iter().rposition(|row| row.address != Addr::UNSPECIFIED).map_or(0, |last| last + 1);
        rows.truncate(used);
        (Arc::new(rows), self.leaving, self.taken)
    }
}
