use std::collections::{HashMap, HashSet};
use std::time::Instant;

use super::*;
use crate::model::TABLE_SIZES;

const SEED: SelectionSeed = SelectionSeed(0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210);

fn endpoint(n: u32) -> (Addr, Port, u16) {
    (Addr::from_v4((0x0a00_0000 + n).to_be_bytes()), Port::new(8080), 1)
}

fn endpoints(count: u32) -> Vec<(Addr, Port, u16)> {
    (0..count).map(endpoint).collect()
}

fn weighted(weights: &[u16]) -> Vec<(Addr, Port, u16)> {
    weights.iter().zip(0..).map(|(&weight, n)| (endpoint(n).0, endpoint(n).1, weight)).collect()
}

fn shares(table: &Maglev, count: usize) -> Vec<usize> {
    let mut shares = vec![0; count];
    table.slots().iter().for_each(|&index| shares[index as usize] += 1);
    shares
}

fn by_address(table: &Maglev, endpoints: &[(Addr, Port, u16)]) -> Vec<Addr> {
    table.slots().iter().map(|&index| endpoints[index as usize].0).collect()
}

/// The table in figure 3 and table 1 of the paper.
#[test]
fn the_worked_example_of_the_paper() {
    let orders = [(3, 4), (0, 2), (3, 1)].map(|(offset, skip)| (Permutation::new(offset, skip, 7), 1));
    assert_eq!(Maglev::build(&orders, 7).slots(), [1, 0, 1, 0, 2, 2, 0]);
    let without_b1 = Maglev::build(&[orders[0], (orders[1].0, 0), orders[2]], 7);
    assert_eq!(without_b1.slots(), [0, 0, 0, 0, 2, 2, 2], "and after B1 went");
}

#[test]
fn without_an_endpoint_there_is_no_table_and_one_has_all_of_it() {
    assert_eq!(Maglev::of_endpoints(&[], 1021, SEED).lookup(7), None);
    assert_eq!(Maglev::of_endpoints(&weighted(&[0, 0]), 1021, SEED).lookup(7), None);
    let one = Maglev::of_endpoints(&endpoints(1), 1021, SEED);
    assert_eq!((one.size(), shares(&one, 1)), (1021, vec![1021]));
    assert_eq!((one.lookup(0), one.lookup(u64::MAX)), (Some(0), Some(0)));
}

#[test]
fn shares_of_equal_weights_differ_by_one_at_most_and_no_slot_is_a_hole() {
    for size in TABLE_SIZES {
        for count in [2, 3, 10, 100, 1000] {
            let table = Maglev::of_endpoints(&endpoints(count), size, SEED);
            let shares = shares(&table, count as usize);
            assert_eq!(shares.iter().sum::<usize>(), size);
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(most - least <= 1, "{count} endpoints in {size}: {least} to {most}");
        }
    }
}

#[test]
fn more_endpoints_than_slots_fill_the_table_one_each() {
    let shares = shares(&Maglev::of_endpoints(&endpoints(2000), 1021, SEED), 2000);
    assert_eq!((shares.iter().sum::<usize>(), shares.iter().max()), (1021, Some(&1)));
}

#[test]
fn shares_follow_the_weights_even_where_their_sum_exceeds_the_table() {
    for weights in [&[1u16, 2, 3, 4][..], &[50_000, 25_000, 12_500, 12_500], &[65535, 65535, 1, 32767], &[3, 0, 1]] {
        let table = Maglev::of_endpoints(&weighted(weights), 16381, SEED);
        let total: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
        for (share, &weight) in shares(&table, weights.len()).into_iter().zip(weights) {
            let wanted = f64::from(weight) / total * 16381.0;
            assert!((share as f64 - wanted).abs() <= 2.0, "weight {weight} of {weights:?}: {share}, not {wanted}");
        }
    }
}

#[test]
fn the_order_of_endpoints_changes_nothing() {
    let forward = endpoints(100);
    let backward: Vec<_> = forward.iter().rev().copied().collect();
    let tables = [&forward, &backward].map(|list| by_address(&Maglev::of_endpoints(list, 16381, SEED), list));
    assert_eq!(tables[0], tables[1]);
}

#[test]
fn few_flows_of_the_others_move_when_one_endpoint_goes() {
    for (count, size, most) in [(10, 1021, 0.05), (10, 16381, 0.02), (100, 16381, 0.04), (100, 65537, 0.02)] {
        let before = endpoints(count);
        let mut after = before.clone();
        let gone = after.remove(count as usize / 2).0;
        let tables = [&before, &after].map(|list| by_address(&Maglev::of_endpoints(list, size, SEED), list));
        let stayed = tables[0].iter().zip(&tables[1]).filter(|(old, _)| **old != gone);
        let (moved, all) = stayed.fold((0, 0), |(moved, all), (old, new)| (moved + usize::from(old != new), all + 1));
        assert!((moved as f64) < most * f64::from(all), "1 of {count} in {size}: {moved} of {all} moved");
    }
}

/// Walks slot by slot, as the paper has it.
fn walked(endpoints: &[(Permutation, u16)], size: usize) -> Vec<u32> {
    let (mut next, skip): (Vec<_>, Vec<_>) = endpoints.iter().map(|(o, _)| (o.offset, o.skip)).unzip();
    let price = endpoints.iter().map(|(_, weight)| u32::from(*weight)).max().unwrap();
    let (mut slots, mut credit, mut free) = (vec![u32::MAX; size], vec![0; endpoints.len()], size);
    while free > 0 {
        for at in 0..endpoints.len() {
            credit[at] += u32::from(endpoints[at].1);
            if free == 0 || credit[at] < price {
                continue;
            }
            credit[at] -= price;
            while slots[next[at] as usize] != u32::MAX {
                next[at] = (next[at] + skip[at]) % size as u32;
            }
            slots[next[at] as usize] = at as u32;
            free -= 1;
        }
    }
    slots
}

#[test]
fn slots_go_where_walking_from_one_to_the_next_puts_them() {
    for (count, size) in [
        (1, 2),
        (1, 3),
        (2, 5),
        (3, 7),
        (7, 101),
        (10, 1021),
        (300, 1021),
        (999, 16381),
        (1, 16381),
        (1, 65537),
        (70, 65537),
    ] {
        let order = |n: usize| Permutation::of(&endpoint(n as u32).0, Port::new(80), size, SEED);
        let list: Vec<(Permutation, u16)> = (0..count).map(|n| (order(n), (n % 5 + 1) as u16 * 7)).collect();
        assert_eq!(Maglev::build(&list, size).slots(), walked(&list, size), "{count} in {size}");
    }
}

/// Along walks of all slots places are in the arcs of their slots, which are each slot's own.
fn assert_walks<const BITS: u32>(size: usize) {
    let circle = Circle::<BITS>::of(size);
    let arcs: HashSet<usize> = (0..size as u32).map(|slot| Circle::<BITS>::arc(circle.place(slot))).collect();
    assert_eq!(arcs.len(), size);
    for skip in [1, 2, size as u32 / 2, size as u32 - 1] {
        let (mut place, mut slot) = (circle.place(0), 0);
        for _ in 0..size {
            let at = (circle.slot(place), Circle::<BITS>::arc(place));
            assert_eq!(at, (slot, Circle::<BITS>::arc(circle.place(slot))), "{skip} in {size}");
            place = place.wrapping_add(circle.distance(skip));
            slot = (slot + skip) % size as u32;
        }
    }
}

#[test]
fn places_of_any_walk_are_where_their_slots_are() {
    let [small, middle, large] = TABLE_SIZES;
    assert_walks::<10>(small);
    assert_walks::<14>(middle);
    assert_walks::<LARGEST>(large);
}

#[test]
#[should_panic(expected = "can't be walked")]
fn a_size_whose_multiples_miss_the_circle_by_too_much_is_refused() {
    let _ = Maglev::build(&[(Permutation::new(0, 1, 131_071), 1)], 131_071);
}

/// The same on every machine and in every process: the table's FNV-1a hash is written down here.
#[test]
fn a_table_is_the_same_everywhere() {
    let mut list = weighted(&[1, 2, 3, 5, 8]);
    list.push((Addr::from_v6(*b"\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01"), Port::new(53), 7));
    let table = Maglev::of_endpoints(&list, 1021, SEED);
    let hash = table
        .slots()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, &index| (hash ^ u64::from(index)).wrapping_mul(0x0000_0100_0000_01b3));
    assert_eq!(hash, 0xfb50_4154_fcbe_eaf6, "{hash:#x}");
    assert_ne!(table, Maglev::of_endpoints(&list, 1021, SelectionSeed(1, 2)), "another seed, another table");
}

#[test]
fn lookups_of_even_hashes_reach_endpoints_evenly() {
    let table = Maglev::of_endpoints(&endpoints(3), 1021, SEED);
    let mut seen = HashMap::new();
    for n in 0..30_000u64 {
        *seen.entry(table.lookup(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).unwrap()).or_insert(0) += 1;
    }
    assert!(seen.values().all(|&count| (9_700..=10_300).contains(&count)), "{seen:?}");
}

#[test]
fn an_inverse_times_its_number_is_one() {
    for prime in [2, 3, 5, 101, 65537, 2_097_143u32] {
        for n in (1..prime).step_by(prime as usize / 1000 + 1).chain([prime - 1]) {
            assert_eq!(u64::from(inverse(n, prime)) * u64::from(n) % u64::from(prime), 1, "{n} modulo {prime}");
        }
    }
}

#[test]
fn a_thousand_endpoints_in_the_largest_table_take_milliseconds() {
    let list = endpoints(1000);
    let best = (0..5).map(|_| {
        let start = Instant::now();
        assert_eq!(Maglev::of_endpoints(&list, 65537, SEED).size(), 65537);
        start.elapsed()
    });
    let best = best.min().unwrap();
    println!("65537 slots, 1000 endpoints: {best:?}");
    assert!(best.as_millis() < 100, "{best:?}");
}
