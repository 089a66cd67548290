use super::*;
use crate::rank;

const SECOND: Time = Time::from_secs(1);
const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));

/// The names `n1` to `n3` by their rank for [`VIP`].
fn ranked() -> [Name; 3] {
    let mut names: Vec<Name> = ["n1", "n2", "n3"].map(Name::from).to_vec();
    names.sort_by_key(|name| std::cmp::Reverse(rank::of_node(VIP, name)));
    names.try_into().unwrap()
}

fn cluster(candidates: Candidates) -> Cluster {
    let nodes = ranked().into_iter().map(|name| (name, false)).collect();
    Cluster { nodes, addresses: BTreeMap::from([(VIP, candidates)]) }
}

fn owning(standing: Standing, owns: bool) -> Said {
    let owned = if owns { BTreeSet::from([VIP]) } else { BTreeSet::new() };
    Said { standing, owned: Arc::new(owned), macs: Vec::new() }
}

/// A member that starts at no time, of that rank.
fn node(rank: usize, inherited: bool) -> Members {
    let inherited = inherited.then_some(VIP).into_iter().collect();
    let mut node = Members::new(ranked()[rank].clone(), Vec::new(), Timing::default(), inherited, Time::ZERO);
    node.set_cluster(cluster(Candidates::All));
    node
}

/// The others say that they are members, and which of them owns the address.
fn hear_others(node: &mut Members, owner: Option<usize>, now: Time) {
    for (rank, name) in ranked().iter().enumerate() {
        node.hear(name, owning(Standing::Member, owner == Some(rank)), true, now);
    }
}

fn owns(node: &Members) -> bool {
    node.owned().contains(&VIP)
}

#[test]
fn a_node_that_heard_nobody_listens_a_second_and_then_needs_the_api_server() {
    for (api, owns_it) in [(None, false), (Some(false), false), (Some(true), true)] {
        let mut node = node(0, false);
        node.set_api(api);
        assert_eq!(node.turn(SECOND - Time::from_millis(1)), Settled::default());
        assert_eq!(node.standing(), Standing::Joining);
        assert_eq!(!node.turn(SECOND).gained.is_empty(), owns_it, "{api:?}");
    }
}

#[test]
fn a_node_that_heard_everybody_claims_what_ranks_it_first_at_once_and_the_rest_in_turn() {
    for (rank, wait) in [(0, 0), (1, 600), (2, 1200)] {
        let mut node = node(rank, false);
        hear_others(&mut node, None, SECOND);
        let wait = Time::from_millis(wait);
        if let Some(before) = wait.checked_sub(Time::from_millis(1)) {
            node.turn(SECOND);
            hear_others(&mut node, None, SECOND + before);
            assert!(node.turn(SECOND + before).gained.is_empty());
        }
        assert_eq!(node.turn(SECOND + wait).gained, [VIP], "rank {rank}");
    }
}

#[test]
fn an_address_stays_with_its_owner_whatever_ranks_higher() {
    let mut owner = node(2, true);
    hear_others(&mut owner, None, SECOND);
    assert_eq!(owner.turn(SECOND), Settled::default());
    assert!(owns(&owner));
    let mut first = node(0, false);
    for turn in 1..100 {
        let now = SECOND * turn;
        hear_others(&mut first, Some(2), now);
        assert_eq!(first.turn(now), Settled::default());
    }
}

#[test]
fn what_a_peer_had_that_says_goodbye_is_taken_at_once_and_what_one_had_that_falls_silent_when_it_is_dead() {
    let mut next = node(0, false);
    hear_others(&mut next, Some(2), SECOND);
    assert!(next.turn(SECOND).gained.is_empty());
    let mut other = node(0, false);
    hear_others(&mut other, Some(2), SECOND);
    other.turn(SECOND);
    next.hear(&ranked()[2], owning(Standing::Leaving, true), true, SECOND);
    assert_eq!(next.turn(SECOND).gained, [VIP]);
    let dead = SECOND + Timing::default().dead;
    other.hear(&ranked()[1], owning(Standing::Member, false), true, dead);
    assert!(other.turn(dead - Time::from_millis(1)).gained.is_empty());
    assert_eq!(other.turn(dead).gained, [VIP]);
    // Whose successor is to go on has more time.
    let mut waits = node(0, false);
    hear_others(&mut waits, None, SECOND);
    waits.hear(&ranked()[2], owning(Standing::HandingOver, true), true, SECOND);
    waits.turn(SECOND);
    waits.hear(&ranked()[1], owning(Standing::Member, false), true, SECOND * 6);
    assert!(waits.turn(SECOND * 6 - Time::from_millis(1)).gained.is_empty());
    assert_eq!(waits.turn(SECOND * 6).gained, [VIP]);
}

#[test]
fn of_two_owners_the_higher_stays_and_announces_again() {
    let mut high = node(0, true);
    let mut low = node(1, true);
    for node in [&mut high, &mut low] {
        hear_others(node, None, SECOND);
        node.turn(SECOND);
    }
    low.hear(&ranked()[0], owning(Standing::Member, true), true, SECOND);
    assert_eq!(low.turn(SECOND).lost, [(VIP, Why::Peer(ranked()[0].clone()))]);
    high.hear(&ranked()[1], owning(Standing::Member, true), true, SECOND);
    assert_eq!(high.turn(SECOND), Settled::default());
    high.hear(&ranked()[1], owning(Standing::Member, false), true, SECOND);
    assert_eq!(high.turn(SECOND).again, [VIP]);
    assert_eq!(high.turn(SECOND), Settled::default());
}

#[test]
fn who_only_begins_or_is_to_end_gives_up_to_whom_stays_whatever_its_rank() {
    let mut joining = node(0, true);
    joining.hear(&ranked()[2], owning(Standing::Member, true), true, Time::ZERO);
    assert_eq!(joining.turn(Time::ZERO).lost, [(VIP, Why::Peer(ranked()[2].clone()))]);
    let mut draining = node(0, true);
    hear_others(&mut draining, None, SECOND);
    draining.turn(SECOND);
    draining.drain();
    assert_eq!(draining.turn(SECOND).lost, [(VIP, Why::Draining)]);
    let mut last = node(0, true);
    last.hear(&ranked()[1], owning(Standing::Draining, false), true, SECOND);
    last.hear(&ranked()[2], owning(Standing::Aside, false), true, SECOND);
    last.drain();
    assert_eq!(last.turn(SECOND), Settled::default(), "nobody else can have it");
}

#[test]
fn to_a_peer_that_does_not_hear_it_a_node_gives_up() {
    let mut node = node(0, true);
    hear_others(&mut node, None, SECOND);
    node.turn(SECOND);
    let deaf = |node: &mut Members, now| node.hear(&ranked()[1], owning(Standing::Member, true), false, now);
    deaf(&mut node, SECOND);
    assert_eq!(node.turn(SECOND), Settled::default(), "it may only not have heard it yet");
    let later = SECOND + Timing::default().step;
    deaf(&mut node, later);
    assert_eq!(node.turn(later).lost, [(VIP, Why::Peer(ranked()[1].clone()))]);
}

#[test]
fn without_a_peer_and_the_api_server_it_gives_up_unless_nobody_else_may_own_it() {
    let alone = |candidates: Candidates, nodes: &[(usize, bool)], api| {
        let mut node = node(0, true);
        let nodes = nodes.iter().map(|(rank, excluded)| (ranked()[*rank].clone(), *excluded)).collect();
        node.set_cluster(Cluster { nodes, ..cluster(candidates) });
        node.turn(SECOND);
        node.set_api(api);
        node.turn(SECOND * 2).lost
    };
    let own = Candidates::These(Arc::new(BTreeSet::from([ranked()[0].clone()])));
    let given_up = [(VIP, Why::Isolated)];
    assert_eq!(alone(Candidates::All, &[(0, false), (1, false)], Some(false)), given_up);
    assert_eq!(alone(Candidates::All, &[(0, false), (1, false)], Some(true)), []);
    assert_eq!(alone(Candidates::All, &[(0, false), (1, false)], None), []);
    assert_eq!(alone(Candidates::All, &[(0, false), (1, true)], Some(false)), []);
    assert_eq!(alone(Candidates::All, &[(0, false)], Some(false)), []);
    assert_eq!(alone(own, &[(0, false), (1, false)], Some(false)), []);
    let mut node = node(0, true);
    hear_others(&mut node, None, SECOND);
    node.turn(SECOND);
    node.set_api(Some(false));
    assert_eq!(node.turn(SECOND), Settled::default(), "one with a peer goes on");
}

#[test]
fn an_excluded_node_and_one_without_an_endpoint_of_a_local_service_own_nothing() {
    let others =
        |ranks: &[usize]| Candidates::These(Arc::new(ranks.iter().map(|rank| ranked()[*rank].clone()).collect()));
    let mut node = node(0, true);
    hear_others(&mut node, None, SECOND);
    node.turn(SECOND);
    node.set_cluster(cluster(others(&[])));
    assert_eq!(node.turn(SECOND), Settled::default(), "nobody has one: it stays where it is");
    node.set_cluster(cluster(others(&[1, 2])));
    assert_eq!(node.turn(SECOND).lost, [(VIP, Why::NoEndpoint)]);
    node.set_cluster(cluster(others(&[])));
    assert!(node.turn(SECOND).gained.is_empty(), "nobody has one: nobody takes it");
    node.set_cluster(cluster(others(&[0])));
    assert_eq!(node.turn(SECOND).gained, [VIP]);
    let mut excluded = cluster(Candidates::All);
    excluded.nodes.insert(ranked()[0].clone(), true);
    node.set_cluster(excluded);
    assert_eq!(node.turn(SECOND).lost, [(VIP, Why::Excluded)]);
    assert_eq!(node.standing(), Standing::Aside);
    node.set_cluster(Cluster::default());
    assert_eq!(node.turn(SECOND), Settled::default());
}

#[test]
fn who_ranks_higher_and_may_not_own_it_is_not_waited_for() {
    let mut node = node(1, false);
    hear_others(&mut node, None, SECOND);
    node.hear(&ranked()[0], owning(Standing::Aside, false), true, SECOND);
    assert_eq!(node.turn(SECOND).gained, [VIP]);
}

#[test]
fn an_address_that_nobody_is_to_own_any_more_is_given_up() {
    let mut node = node(0, true);
    hear_others(&mut node, None, SECOND);
    node.turn(SECOND);
    node.set_cluster(Cluster { addresses: BTreeMap::new(), ..cluster(Candidates::All) });
    assert_eq!(node.turn(SECOND).lost, [(VIP, Why::Gone)]);
}

#[test]
fn of_two_that_do_not_hear_each_other_one_gives_up_by_its_link_layer_address_while_the_other_answers() {
    let (mut high, mut low): (Mac, Mac) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    if rank::of_mac(VIP, high) < rank::of_mac(VIP, low) {
        std::mem::swap(&mut high, &mut low);
    }
    let owner = || {
        let mut node = node(0, true);
        node.set_api(Some(true));
        node.turn(SECOND);
        node
    };
    let mut stays = owner();
    assert!(!stays.contest(VIP, low, high, SECOND));
    assert_eq!(stays.turn(SECOND), Settled::default());
    let mut yields = owner();
    assert!(yields.contest(VIP, high, low, SECOND));
    assert_eq!(yields.turn(SECOND).lost, [(VIP, Why::Machine(high))]);
    assert_eq!(yields.watched(), BTreeSet::from([VIP]));
    assert!(!yields.contest(VIP, high, low, SECOND * 3), "it still answers");
    let mut other = node(0, false);
    other.set_api(Some(true));
    other.contest(VIP, low, high, SECOND);
    assert!(other.turn(SECOND).gained.is_empty(), "who does not own it leaves it where it is");
    let mut hears = owner();
    hears.contest(VIP, high, low, SECOND);
    hears.hear(&ranked()[1], Said { macs: vec![high], ..owning(Standing::Member, true) }, true, SECOND);
    assert!(hears.watched().is_empty(), "it is a peer");
    let over = SECOND * 3 + Timing::default().hold;
    assert_eq!(yields.turn(over - Time::from_millis(1)), Settled::default());
    assert_eq!(yields.turn(over).gained, [VIP], "it answers no more");
}

#[test]
fn what_peers_claim_by_arp_is_settled_by_heartbeats_alone() {
    let mac = [2, 0, 0, 0, 0, 9];
    for last in [Standing::Member, Standing::Leaving] {
        let mut node = node(0, true);
        hear_others(&mut node, None, SECOND);
        for standing in [Standing::Member, last] {
            node.hear(&ranked()[1], Said { macs: vec![mac], ..owning(standing, false) }, true, SECOND);
        }
        for own in 0..50 {
            assert!(!node.contest(VIP, mac, [2, 0, 0, 0, 1, own], SECOND), "{last:?}");
        }
        assert!(owns(&node));
    }
}

#[test]
fn who_leaves_tells_what_it_had_and_sees_when_others_have_it() {
    let mut node = node(0, true);
    hear_others(&mut node, None, SECOND);
    node.turn(SECOND);
    let had = node.leave();
    assert_eq!((had.len(), node.standing(), owns(&node)), (1, Standing::Leaving, false));
    assert_eq!(node.turn(SECOND).lost, [(VIP, Why::Leaving)]);
    assert!(!node.have_taken(&had));
    hear_others(&mut node, Some(1), SECOND);
    assert!(node.have_taken(&had));
    assert_eq!(node.turn(SECOND * 9), Settled::default());
}
