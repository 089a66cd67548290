//! What the Lease of this node says, for people: how it stands, whom it hears, what it announces.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Shared, Standing};
use crate::kubernetes::{Access, NodeLease, RENEW};

/// How long a node that starts waits before it says how it stands.
const FIRST: Duration = Duration::from_secs(2);
/// Most addresses that are written: annotations have an end.
const MOST: usize = 2000;

/// Renews it until this is dropped.
pub(super) async fn record(access: Access, node: String, shared: Arc<Shared>) {
    let mut lease = NodeLease::new(&access, &node);
    tokio::time::sleep(FIRST).await;
    loop {
        let said = annotations(&node, &shared.standing().clone());
        lease.renew(said).await;
        tokio::time::sleep(RENEW).await;
    }
}

fn annotations(node: &str, standing: &Standing) -> BTreeMap<String, String> {
    let own = standing.members.first().map_or("joining", |own| own.standing);
    let members: Vec<&str> = standing.members.iter().map(|member| member.name.as_str()).collect();
    let owned = standing.owners.iter().filter(|(_, owner)| owner.as_deref() == Some(node));
    let owned: Vec<String> = owned.map(|(address, _)| address.to_string()).collect();
    let more = owned.len().saturating_sub(MOST);
    let mut listed = owned[..owned.len() - more].join(",");
    if more > 0 {
        listed = format!("{listed} and {more} more");
    }
    [("standing", own.to_owned()), ("hears", members.join(",")), ("announces", listed)]
        .into_iter()
        .map(|(key, value)| (format!("millrace.dev/{key}"), value))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::Member;
    use super::*;

    #[test]
    fn the_lease_says_who_is_heard_and_what_is_announced() {
        let member = |name: &str| Member { name: name.into(), standing: "member", owned: 1, silent_ms: None };
        let owners =
            [("192.0.2.1", Some("n1")), ("192.0.2.2", Some("n2")), ("192.0.2.3", None), ("192.0.2.4", Some("n1"))];
        let standing = Standing {
            members: vec![member("n1"), member("n2")],
            owners: owners.map(|(address, owner)| (address.parse().unwrap(), owner.map(str::to_owned))).into(),
            ..Standing::default()
        };
        let said = annotations("n1", &standing);
        assert_eq!(said["millrace.dev/hears"], "n1,n2");
        assert_eq!(said["millrace.dev/announces"], "192.0.2.1,192.0.2.4");
        assert_eq!(said["millrace.dev/standing"], "member");
        let many = (0..MOST as u32 + 3).map(|n| (std::net::Ipv4Addr::from(n).into(), Some("n1".to_owned()))).collect();
        let said = annotations("n1", &Standing { owners: many, ..standing });
        assert!(said["millrace.dev/announces"].ends_with(" and 3 more"));
    }
}
