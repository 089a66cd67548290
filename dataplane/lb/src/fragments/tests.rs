use proptest::prelude::*;
use wire::{Ip, MacAddr, Port};

use super::*;

const BOUND: Bound =
    Bound { ports: Ports::new(Port::new(1), Port::new(2)), protocol: Protocol::UDP, owner: None, id: 9 };

fn part(source: u32, id: u32, offset: u16, more: bool) -> Fragment {
    let [_, a, b, c] = source.to_be_bytes();
    let ip = Ip {
        src: Addr::from_v4([10, a, b, c]),
        dst: Addr::from_v4([192, 0, 2, 1]),
        l3: 14,
        l4: 34,
        end: 34 + 8,
        ipv6: false,
        protocol: Protocol::UDP,
        ttl: 64,
        src_mac: MacAddr([2; 6]),
    };
    Fragment { ip, id, offset, more }
}

fn table() -> Fragments {
    Fragments::new(WorkerId(0), 1, [1, 2], 3)
}

fn hash(key: &FlowKey) -> FlowHash {
    crate::flow::FlowHasher::new([3, 4]).hash(key)
}

impl Fragments {
    fn get(&mut self, part: &Fragment, now: u32) -> Result<DatagramRef, DropReason> {
        let (key, source) = (key_of(part), source_key(&part.ip.src));
        self.meet(hash(&key), &key, hash(&source), part, Tick(now))
    }

    fn known(&mut self, part: &Fragment) -> bool {
        let key = key_of(part);
        self.find(hash(&key), &key, Tick(0)).is_some()
    }

    /// Every row is in one line and one bucket or free, and what is counted is what there is.
    fn assert_consistent(&self) {
        let mut shares = vec![(0, 0); PLACES];
        let mut kept = self.pieces.len();
        let mut standing = 0;
        for (number, line) in self.lines.iter().enumerate() {
            let (mut next, mut before, mut len) = (line.oldest, None, 0);
            while let Some(at) = next {
                let row = &self.rows[usize::from(at)];
                assert_eq!((usize::from(row.line), row.older), (number, before));
                assert!(row.kept.is_empty() != (row.line == READY) || row.line == WAITING);
                shares[usize::from(row.source)].0 += 1;
                shares[usize::from(row.source)].1 += row.kept.len() as u16;
                kept += row.kept.len();
                (before, next, len) = (next, row.newer, len + 1);
            }
            assert_eq!((line.newest, line.len), (before, len));
            standing += len;
        }
        let mut free = 0;
        let mut next = self.free;
        while let Some(at) = next {
            (free, next) = (free + 1, self.rows[usize::from(at)].chained);
        }
        let mut chained = 0;
        for (bucket, head) in self.heads.iter().enumerate() {
            let mut next = head.checked_sub(1);
            while let Some(at) = next {
                assert_eq!(self.rows[usize::from(at)].bucket as usize, bucket);
                (chained, next) = (chained + 1, self.rows[usize::from(at)].chained);
            }
        }
        assert_eq!((standing + free, chained, self.kept.used()), (self.rows.len(), standing, kept));
        let counted = self.row_shares.iter().copied().zip(self.kept_shares.iter().copied());
        assert!(counted.eq(shares.into_iter()));
    }
}

#[test]
fn those_that_lead_nowhere_push_out_one_another_and_never_those_that_go_on() {
    let mut table = table();
    let going: Vec<Fragment> = (0..2000).map(|n| part(n, 1, 0, true)).collect();
    for part in &going {
        let at = table.get(part, 0).unwrap();
        table.bind(at, BOUND);
    }
    for n in 0..10_000 {
        table.get(&part(10_000 + n, 2, 8, false), 0).unwrap();
    }
    table.assert_consistent();
    assert!(going.iter().all(|part| table.known(part)));
    assert_eq!(table.lines.map(|line| line.len), [WAITING_ROWS, 2000, 0]);
    assert!(table.known(&part(19_999, 2, 8, false)) && !table.known(&part(10_000, 2, 8, false)));
}

#[test]
fn when_all_rows_go_on_the_oldest_is_forgotten() {
    let mut table = table();
    for n in 0..2 * ROWS as u32 {
        let at = table.get(&part(n, 1, 0, true), 0).unwrap();
        table.bind(at, BOUND);
    }
    table.assert_consistent();
    assert_eq!((table.rows.len(), table.lines[usize::from(GOING)].len), (ROWS, ROWS));
    assert!(table.known(&part(2 * ROWS as u32 - 1, 1, 0, true)) && !table.known(&part(0, 1, 0, true)));
}

#[test]
fn a_source_has_no_more_datagrams_than_its_share_until_some_are_over() {
    let mut table = table();
    let met = (0..2 * u32::from(ROWS_SHARE)).filter(|id| table.get(&part(1, *id, 0, true), 0).is_ok()).count();
    assert_eq!(met, usize::from(ROWS_SHARE));
    assert_eq!(table.get(&part(1, 9999, 0, true), 0), Err(DropReason::FragmentLimit));
    table.get(&part(2, 9999, 0, true), 0).unwrap();
    for _ in 0..ROWS {
        table.expire(Tick(LIFETIME + 1));
    }
    assert_eq!(table.lines.map(|line| line.len), [0; 3]);
    table.get(&part(1, 9999, 0, true), LIFETIME + 1).unwrap();
    table.assert_consistent();
}

#[test]
fn kept_parts_make_way_oldest_first_and_each_is_counted() {
    let mut table = table();
    for n in 0..3 * SLOTS as u32 {
        let part = part(n, 1, 8, false);
        let at = table.get(&part, 0).unwrap();
        table.keep(at, &n.to_le_bytes(), PortId(1)).unwrap();
    }
    table.assert_consistent();
    assert_eq!((table.kept.used(), table.given_up()), (WAITING_ROWS.min(SLOTS), 3 * SLOTS as u64 - 1024));
    // The newest is sent when its first part comes.
    let newest = 3 * SLOTS as u32 - 1;
    let at = table.get(&part(newest, 1, 0, true), 0).unwrap();
    assert!(!table.has_pending());
    table.bind(at, BOUND);
    assert!(table.has_pending());
    assert!(matches!(table.pending(), Some(Pending::Part(bytes, PortId(1))) if bytes == newest.to_le_bytes()));
    assert_eq!(table.pending_bound(), Some(BOUND));
    table.settle_part(true);
    assert!(!table.has_pending() && !table.known(&part(newest, 1, 0, true)), "whole, and forgotten");
    table.assert_consistent();
}

#[test]
fn sources_of_one_64_share_a_share() {
    let address = |last: u8| Addr::from_v6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 5, last, 0, 0, 0, 0, 0, 0, last]);
    assert_eq!(source_key(&address(1)), source_key(&address(2)));
    assert_ne!(source_key(&Addr::from_v4([10, 0, 0, 1])), source_key(&Addr::from_v4([10, 0, 0, 2])));
}

proptest! {
    #[test]
    fn whatever_happens_all_is_accounted_for(
        ops in prop::collection::vec((0u8..7, 0u32..6, 0u32..4, 0u16..4, any::<bool>()), 1..300),
    ) {
        let mut table = table();
        let mut now = 0;
        for (op, source, id, unit, more) in ops {
            let part = part(source, id, unit * 8, more);
            match op {
                0..=3 => {
                    if let Ok(at) = table.get(&part, now) {
                        match table.fate(at) {
                            Fate::Waiting if part.offset == 0 && op == 0 => table.end(at, DropReason::FragmentUnmatched),
                            Fate::Waiting if part.offset == 0 => table.bind(at, BOUND),
                            Fate::Waiting => drop(table.keep(at, &[1, 2, 3], PortId(0))),
                            Fate::Going(_) | Fate::Ended(_) => {}
                        }
                        table.settle(at);
                    }
                }
                4 => match table.pending() {
                    Some(Pending::Part(..)) => table.settle_part(more),
                    Some(Pending::Piece(..)) => table.settle_piece(),
                    None => {}
                },
                5 => {
                    now += LIFETIME / 3;
                    table.expire(Tick(now));
                }
                _ => {
                    if table.has_room_for_pieces(3, 100) {
                        table.keep_piece(PortId(0), |room| { room[0] = 1; 1 });
                    }
                }
            }
            table.assert_consistent();
        }
    }
}
