//! What packets that may open flows will need, seen to before they are decided: most of what opening costs is waiting for
//! memory, and the waits of a burst can pass together.
//!
//! First the lines that the packet's own key leads to are asked for (owner directory, source, frontend), then the endpoint
//! is chosen where its hash alone says which, a SNAT port is drawn, and the line is asked for that the reply's key leads to.
//! Asking is done in loops of its own: what it costs is walks of the page tables, and only neighbours pass together.
//! A plan is a suggestion: nothing is taken, and whoever opens the flow looks at everything as if there were none. Its
//! hashes and its frontend are what they are, for it is of the very packet, and by the same tables.

use wire::Protocol;

use super::open::opening;
use super::{BURST, Look, key, transport_of};
use crate::flow::FlowHash;
use crate::id::BackendId;
use crate::model::Mode;
use crate::select::{Opening, by_hash_alone};
use crate::snat_pool::SupplyPort;
use crate::sources::SourceHash;
use crate::standing;
use crate::state::WorkerState;
use crate::tables::{FrontendRow, Tables};
use crate::time::Tick;
use crate::verdict::Frame;

/// The plans of a burst, in its order; has room for all from the start.
pub(crate) struct Plans {
    plans: Vec<Plan>,
    next: usize,
}

/// What may be chosen for a flow that may open.
struct Plan {
    /// Which packet of the burst.
    at: u8,
    hash: FlowHash,
    opening: Opening,
    /// The hash of the key of replies, as far as that is known.
    replies: FlowHash,
    suggestion: Suggestion,
}

/// What a plan comes to.
#[derive(Clone, Copy)]
pub(crate) struct Suggestion {
    /// The hash that the flow's source is counted by.
    pub source: SourceHash,
    /// The frontend at the packet's destination; `None`: there is none.
    pub frontend: Option<FrontendRow>,
    /// The endpoint that the flow's hash gives.
    pub backend: Option<BackendId>,
    /// A SNAT port that may be free towards it, of the endpoint's supply, and the hash of the key of replies to it.
    pub snat: Option<(SupplyPort, FlowHash)>,
}

impl Plans {
    pub fn new() -> Self {
        Self { plans: Vec::with_capacity(BURST), next: 0 }
    }

    /// Forgets all of them.
    #[inline]
    pub fn forget(&mut self) {
        self.plans.clear();
        self.next = 0;
    }

    /// What was planned for the packet in this place of the burst. Asked for in the burst's order, so that none is looked at
    /// twice.
    pub fn take(&mut self, at: u8) -> Option<Suggestion> {
        self.next += self.plans[self.next..].iter().take_while(|plan| plan.at < at).count();
        let plan = self.plans.get(self.next).filter(|plan| plan.at == at)?;
        self.next += 1;
        Some(plan.suggestion)
    }
}

/// Plans for the frames for which no flow was found at first sight.
#[cold]
pub(super) fn plan(frames: &[Frame<'_>], looks: &[Look], now: Tick, tables: &Tables, state: &mut WorkerState) {
    let mut plans = core::mem::replace(&mut state.plans, Plans { plans: Vec::new(), next: 0 });
    for look in looks.iter().filter(|look| look.guess.is_none()) {
        plans.plans.extend(first_look(&frames[usize::from(look.at)], look, state));
    }
    for Plan { hash, opening, suggestion, .. } in &plans.plans {
        state.shared.directory.prefetch(hash.0);
        state.shared.sources.prefetch(suggestion.source);
        tables.frontends.prefetch(&opening.destination, opening.destination_port, opening.protocol);
    }
    for plan in &mut plans.plans {
        second_look(plan, now, tables, state);
    }
    for Plan { opening, replies, .. } in &plans.plans {
        state.flows.prefetch_bucket(*replies);
        if opening.protocol == Protocol::TCP {
            state.time_waits.prefetch(*replies);
        }
    }
    state.plans = plans;
}

#[inline]
fn first_look(frame: &Frame<'_>, look: &Look, state: &WorkerState) -> Option<Plan> {
    let (plain, hash) = (look.plain?, look.hash);
    if plain.kind.protocol() == Protocol::TCP && !plain.tcp_flags.opens() {
        // Another worker's most likely.
        if state.shared.workers() > 1 && !frame.handed {
            state.shared.directory.prefetch(hash.0);
        }
        return None;
    }
    let t = transport_of(frame, &plain)?;
    let source = state.shared.sources.hash(&t.src);
    let suggestion = Suggestion { source, frontend: None, backend: None, snat: None };
    Some(Plan { at: look.at, hash, opening: opening(&key(&t)), replies: hash, suggestion })
}

#[inline]
fn second_look(plan: &mut Plan, now: Tick, tables: &Tables, state: &mut WorkerState) {
    let Plan { opening, suggestion, replies, .. } = plan;
    suggestion.frontend = tables.frontends.get(&opening.destination, opening.destination_port, opening.protocol);
    let Some(service) = suggestion.frontend.and_then(|frontend| tables.service(frontend.service)) else { return };
    suggestion.backend = by_hash_alone(service, &tables.selection, opening);
    let Some(row) = suggestion.backend.and_then(|id| tables.backend(id)) else { return };
    let (backend, client) = ((row.address, row.port), (opening.source, opening.source_port));
    let supply = tables.snat.supply(row.address.is_v4(), tables.is_by_kernel(&row.hop));
    let port = match service.mode {
        Mode::Nat => state.snat.suggest(supply, &state.flows, backend, opening.protocol, now),
        _ => None,
    };
    let direct = (opening.destination, opening.destination_port);
    let from = if service.mode.is_direct() { direct } else { backend };
    let to = port.map_or(client, |port| supply.end(port));
    *replies = state.flows.hash(&standing::replies(from, to, opening.protocol));
    suggestion.snat = port.map(|port| (port, *replies));
}
