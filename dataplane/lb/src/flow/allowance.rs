//! A worker's part of the flows that may be: taken from all workers' common number a few at a time, so that a flow that
//! opens or ends touches nothing that others write.

use crate::shared::Shared;

/// The share of all flows that may be which is taken or given back at once; with few, one.
const LOAN_OF: u64 = 1 << 14;
/// And how many at most.
const LOAN_MOST: u64 = 64;

/// What a worker has of the flows that may be beyond those that it has open.
#[derive(Debug, Default)]
pub(super) struct Allowance {
    /// For flows that it will open.
    spare: u32,
    /// Adopted flows that are more than may be: no other comes after them.
    owed: u32,
}

impl Allowance {
    /// For one flow more; `false`: there are as many as may be, but for a few that other workers have to spare.
    #[inline]
    pub(super) fn take(&mut self, shared: &Shared) -> bool {
        if self.spare == 0 {
            self.spare = shared.take_flows(loan(shared));
        }
        let left = self.spare.checked_sub(1);
        self.spare = left.unwrap_or(0);
        left.is_some()
    }

    /// For one that is there already, however many may be.
    pub(super) fn take_adopted(&mut self, shared: &Shared) {
        self.owed += u32::from(!shared.adopt_flow());
    }

    /// A flow ended.
    #[inline]
    pub(super) fn give_back(&mut self, shared: &Shared) {
        if self.owed > 0 {
            self.owed -= 1;
            return shared.give_back_flows(1);
        }
        self.spare += 1;
        let loan = loan(shared);
        if self.spare >= 2 * loan - 1 {
            self.spare -= loan;
            shared.give_back_flows(loan);
        }
    }
}

/// How many are taken or given back at once: what a worker has to spare is no great part of them all.
#[inline]
fn loan(shared: &Shared) -> u32 {
    (shared.flow_limit() / LOAN_OF).clamp(1, LOAN_MOST) as u32
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::flow::{FlowFile, FlowFileConfig};

    fn shared(flows: usize) -> Arc<Shared> {
        let config = FlowFileConfig { workers: 2, flows, services: 1, backends: 1, ..FlowFileConfig::default() };
        FlowFile::in_memory(&config).unwrap().shared
    }

    #[test]
    fn no_more_than_may_be_and_nearly_all_of_them_whoever_asks() {
        for limit in [1, 100, 1 << 16, (1 << 20) + 7] {
            let shared = shared(limit as usize);
            let (mut one, mut two) = (Allowance::default(), Allowance::default());
            let open =
                (0..limit + 5).filter(|n| if n % 3 == 0 { two.take(&shared) } else { one.take(&shared) }).count();
            assert!(open as u64 <= limit && open as u64 + 2 * LOAN_MOST > limit, "{open} of {limit}");
            // What one gives back the other gets, but for a few.
            (0..limit / 2).for_each(|_| one.give_back(&shared));
            let again = (0..limit).filter(|_| two.take(&shared)).count() as u64;
            assert!(again <= limit / 2 + 2 * LOAN_MOST && again + 2 * LOAN_MOST > limit / 2, "{again} of {limit}");
        }
    }

    #[test]
    fn few_are_shared_out_to_the_last() {
        let shared = shared(3);
        let (mut one, mut two) = (Allowance::default(), Allowance::default());
        assert_eq!(
            [one.take(&shared), two.take(&shared), two.take(&shared), one.take(&shared)],
            [true, true, true, false]
        );
        two.give_back(&shared);
        assert_eq!([one.take(&shared), two.take(&shared)], [true, false]);
    }

    #[test]
    fn after_more_than_may_be_were_adopted_none_opens_until_as_many_ended() {
        let limit = 1 << 17;
        let shared = shared(limit);
        let mut allowance = Allowance::default();
        (0..limit + 40).for_each(|_| allowance.take_adopted(&shared));
        for _ in 0..40 {
            assert!(!allowance.take(&shared));
            allowance.give_back(&shared);
        }
        assert!(!allowance.take(&shared), "as many as may be");
        allowance.give_back(&shared);
        assert_eq!([allowance.take(&shared), allowance.take(&shared)], [true, false]);
    }
}
