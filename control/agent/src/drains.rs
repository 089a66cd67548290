//! When endpoints that were removed give up their flows (`millrace.dev/drain`).
//!
//! Kept over restarts by the clock on the wall: a drain ends when it would have ended. Ids mean the same endpoints as
//! long as the flow file is gone on with; a row whose endpoint is not in there any more is forgotten.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lb::BackendId;
use lb::tables::BackendState;
use serde::{Deserialize, Serialize};

/// The endpoints that have a `drain`, desired or removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Row>", into = "Vec<Row>")]
pub struct Drains(BTreeMap<BackendId, Drain>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Drain {
    endpoint: SocketAddr,
    period: Duration,
    /// Set when it is removed.
    until: Option<SystemTime>,
}

/// As it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    index: u32,
    generation: u16,
    endpoint: SocketAddr,
    drain_ms: u64,
    /// Since 1970.
    until_ms: Option<u64>,
}

impl Drains {
    /// An endpoint is desired, with or without a `drain`.
    pub fn desire(&mut self, id: BackendId, endpoint: SocketAddr, period: Option<Duration>) {
        match period {
            Some(period) => drop(self.0.insert(id, Drain { endpoint, period, until: None })),
            None => drop(self.0.remove(&id)),
        }
    }

    /// Forgets endpoints that the flow file does not have.
    pub fn adopt(&mut self, known: &HashMap<BackendId, SocketAddr>) {
        self.0.retain(|id, drain| known.get(id) == Some(&drain.endpoint));
    }

    /// Starts the clock of endpoints that were removed, and forgets those that are gone.
    /// `live` says in which state an endpoint is that has a row.
    pub fn note(&mut self, live: impl Fn(BackendId) -> Option<BackendState>, now: SystemTime) {
        self.0.retain(|id, _| live(*id).is_some());
        for (id, drain) in &mut self.0 {
            if live(*id) == Some(BackendState::Removed) {
                let latest = now + drain.period;
                // Not later than the whole of it from now: the clock may have been set back.
                drain.until = Some(drain.until.map_or(latest, |until| until.min(latest)));
            }
        }
    }

    /// Those whose time is over.
    #[must_use]
    pub fn expired(&self, now: SystemTime) -> HashSet<BackendId> {
        let over = self.0.iter().filter(|(_, drain)| drain.until.is_some_and(|until| until <= now));
        over.map(|(id, _)| *id).collect()
    }
}

impl From<Vec<Row>> for Drains {
    fn from(rows: Vec<Row>) -> Self {
        let sound = rows.into_iter().filter(|row| (row.index as usize) < BackendId::MAX && row.generation <= 0xfff);
        let drain = |row: Row| Drain {
            endpoint: row.endpoint,
            period: Duration::from_millis(row.drain_ms),
            until: row.until_ms.and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms))),
        };
        Self(sound.map(|row| (BackendId::new(row.index, row.generation), drain(row))).collect())
    }
}

impl From<Drains> for Vec<Row> {
    fn from(drains: Drains) -> Self {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let row = |(id, drain): (BackendId, Drain)| Row {
            index: id.index() as u32,
            generation: id.generation(),
            endpoint: drain.endpoint,
            drain_ms: millis(drain.period),
            until_ms: drain.until.map(|until| millis(until.duration_since(UNIX_EPOCH).unwrap_or_default())),
        };
        drains.0.into_iter().map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAIN: Duration = Duration::from_secs(30);

    fn endpoint() -> SocketAddr {
        "10.0.0.1:80".parse().unwrap()
    }

    /// What the next process has of it.
    fn restarted(drains: &Drains) -> Drains {
        serde_json::from_slice(&serde_json::to_vec(drains).unwrap()).unwrap()
    }

    #[test]
    fn a_drain_ends_when_it_would_have_ended_over_any_number_of_restarts() {
        let (id, begin) = (BackendId::new(3, 1), UNIX_EPOCH + Duration::from_secs(1_000_000));
        let (usable, removed) = (|_| Some(BackendState::Usable), |_| Some(BackendState::Removed));
        let mut drains = Drains::default();
        drains.desire(id, endpoint(), Some(DRAIN));
        drains.note(usable, begin);
        let mut drains = restarted(&drains);
        drains.adopt(&[(id, endpoint())].into());
        drains.note(removed, begin);
        for second in 1..30 {
            let now = begin + Duration::from_secs(second);
            drains = restarted(&drains);
            drains.adopt(&[(id, endpoint())].into());
            drains.note(removed, now);
            assert!(drains.expired(now).is_empty(), "second {second}");
        }
        assert_eq!(drains.expired(begin + DRAIN), [id].into());
        drains.desire(id, endpoint(), Some(DRAIN));
        assert!(drains.expired(begin + DRAIN * 2).is_empty(), "it is desired again");
    }

    #[test]
    fn another_endpoint_in_the_slot_and_one_that_is_gone_are_forgotten() {
        let (id, now) = (BackendId::new(3, 1), UNIX_EPOCH);
        let mut drains = Drains::default();
        drains.desire(id, endpoint(), Some(DRAIN));
        let mut other = drains.clone();
        other.adopt(&[(id, "10.0.0.2:80".parse().unwrap())].into());
        assert_eq!(other, Drains::default());
        drains.note(|_| None, now);
        assert_eq!(drains, Drains::default());
    }

    #[test]
    fn a_clock_that_was_set_back_makes_no_drain_longer_than_it_is() {
        let (id, begin) = (BackendId::new(3, 1), UNIX_EPOCH + Duration::from_secs(1_000_000));
        let removed = |_| Some(BackendState::Removed);
        let mut drains = Drains::default();
        drains.desire(id, endpoint(), Some(DRAIN));
        drains.note(removed, begin);
        let earlier = begin - Duration::from_secs(9999);
        drains.note(removed, earlier);
        assert_eq!(drains.expired(earlier + DRAIN), [id].into());
    }
}
