use super::*;

const KEY: &[u8] = b"a key that is long enough";

fn said(owned: u32) -> Said {
    let owned = (0..owned).map(|n| IpAddr::from((0xfd00_u128 << 112 | u128::from(n)).to_be_bytes())).collect();
    Said { standing: Standing::Member, owned: Arc::new(owned), macs: vec![[2, 0, 0, 0, 0, 1]] }
}

struct Pair {
    keys: Keys,
    a: Session,
    b: Session,
    now: Time,
}

fn pair(owned: u32) -> Pair {
    let (a, b) = (Session::new("a".into(), 1, &said(owned)), Session::new("b".into(), 2, &said(0)));
    Pair { keys: Keys::parse(KEY).unwrap(), a, b, now: Time::from_secs(100) }
}

impl Pair {
    /// A heartbeat later.
    fn pass(&mut self) {
        self.now += Duration::from_millis(100);
        self.a.mark(self.now);
        self.b.mark(self.now);
    }

    fn a_to_b(&mut self) -> Vec<Vec<u8>> {
        self.a.datagrams(&"b".into(), &self.keys)
    }

    fn b_hears(&mut self, octets: &[u8]) -> Result<Heard, Reject> {
        self.b.hear(octets, &self.keys, self.now)
    }

    /// Both sides send once, `a` first, and who waits for an answer gets it.
    fn exchange(&mut self) {
        self.pass();
        for octets in self.a_to_b() {
            if self.b_hears(&octets).is_ok_and(|heard| heard.answer) {
                for octets in self.b.answer(&"a".into(), &self.keys) {
                    let _ = self.a.hear(&octets, &self.keys, self.now);
                }
            }
        }
        for octets in self.b.datagrams(&"a".into(), &self.keys) {
            let _ = self.a.hear(&octets, &self.keys, self.now);
        }
    }
}

#[test]
fn a_process_is_known_three_datagrams_after_it_is_heard() {
    let mut pair = pair(3);
    pair.pass();
    let first = pair.a_to_b().remove(0);
    let heard = pair.b_hears(&first).unwrap();
    assert_eq!((heard.said, heard.answer), (None, true));
    let answer = pair.b.answer(&"a".into(), &pair.keys).remove(0);
    let heard = pair.a.hear(&answer, &pair.keys, pair.now).unwrap();
    assert!(heard.said.is_some() && heard.hears_us && heard.answer, "{heard:?}");
    let third = pair.a.answer(&"b".into(), &pair.keys).remove(0);
    let heard = pair.b_hears(&third).unwrap();
    assert_eq!((heard.said, heard.hears_us), (Some(said(3)), true));
}

#[test]
fn many_addresses_come_in_parts_that_are_sent_until_they_are_there() {
    let mut pair = pair(1000);
    pair.pass();
    let parts = pair.a_to_b();
    assert!(parts.len() > 10 && parts.iter().all(|octets| octets.len() <= datagram::LONGEST), "{}", parts.len());
    // Those are lost.
    let changed = Said { owned: Arc::new(BTreeSet::from(["192.0.2.1".parse().unwrap()])), ..said(0) };
    pair.exchange();
    pair.exchange();
    assert_eq!(pair.a_to_b().len(), 1, "a peer that has them all is not sent them again");
    pair.a.say(&changed);
    pair.pass();
    drop(pair.a_to_b());
    pair.pass();
    let again = pair.a_to_b().remove(0);
    assert_eq!(pair.b_hears(&again).unwrap().said, Some(changed));
}

#[test]
fn parts_in_any_order_make_the_whole_and_until_then_what_was_before_counts() {
    let mut pair = pair(2);
    pair.exchange();
    pair.exchange();
    pair.a.say(&said(300));
    pair.pass();
    let mut parts = pair.a_to_b();
    parts.reverse();
    let last = parts.pop().unwrap();
    for octets in &parts {
        assert_eq!(pair.b_hears(octets).unwrap().said, Some(said(2)));
    }
    assert_eq!(pair.b_hears(&last).unwrap().said, Some(said(300)));
}

#[test]
fn what_was_heard_once_does_not_count_again() {
    let mut pair = pair(1);
    pair.exchange();
    pair.exchange();
    pair.pass();
    let (one, two) = (pair.a_to_b().remove(0), pair.a_to_b().remove(0));
    assert!(pair.b_hears(&two).is_ok() && pair.b_hears(&one).is_ok());
    assert_eq!(pair.b_hears(&one), Err(Reject::Replayed));
    assert_eq!(pair.b_hears(&two), Err(Reject::Replayed));
    for _ in 0..70 {
        pair.exchange();
    }
    let late = pair.a_to_b().remove(0);
    for _ in 0..70 {
        pair.exchange();
    }
    assert_eq!(pair.b_hears(&late), Err(Reject::Replayed), "it is older than the window");
}

#[test]
fn a_recording_of_a_process_that_is_gone_does_not_count() {
    let mut pair = pair(1);
    let mut recorded = Vec::new();
    for _ in 0..5 {
        recorded.extend(pair.a_to_b());
        pair.exchange();
    }
    pair.a = Session::new("a".into(), 3, &said(2));
    pair.exchange();
    pair.exchange();
    let now = pair.a_to_b().remove(0);
    assert_eq!(pair.b_hears(&now).unwrap().said, Some(said(2)), "its successor is known");
    for octets in &recorded {
        assert!(pair.b_hears(octets).is_err());
    }
    // Nor to a process that never heard it.
    pair.b = Session::new("b".into(), 4, &said(0));
    for octets in &recorded {
        assert!(pair.b_hears(octets).is_ok_and(|heard| heard.said.is_none()));
    }
    let now = pair.a_to_b().remove(0);
    assert!(pair.b_hears(&now).is_ok_and(|heard| heard.said.is_none()));
}

#[test]
fn a_peer_hears_this_node_while_it_says_so_of_something_recent() {
    let mut pair = pair(1);
    pair.exchange();
    pair.exchange();
    for n in 1..=20 {
        pair.pass();
        drop(pair.b.datagrams(&"a".into(), &pair.keys));
        let octets = pair.a_to_b().remove(0);
        assert_eq!(pair.b_hears(&octets).unwrap().hears_us, n <= 12, "heartbeat {n} that `a` did not hear");
    }
}

#[test]
fn what_a_node_sends_itself_is_told_apart() {
    let mut pair = pair(1);
    let own = pair.a_to_b().remove(0);
    assert_eq!(pair.a.hear(&own, &pair.keys, pair.now), Err(Reject::Own));
}
