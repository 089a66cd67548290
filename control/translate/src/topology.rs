//! Topology, policy Cluster only: hints first, else the legacy `topologyKeys`.

use crate::annotations::TopologyKey;
use crate::context::Node;
use crate::endpoints::Candidate;

/// The endpoints that topology leaves, or `None` where legacy keys match nothing and the packet is dropped.
/// `distribution` is `spec.trafficDistribution`: where nobody wrote hints, they are what the API server's controller
/// would write, the endpoint's own zone or node.
pub(crate) fn restrict<'c>(
    usable: Vec<&'c Candidate>,
    keys: Option<&[TopologyKey]>,
    distribution: Option<&str>,
    node: &Node,
) -> Option<Vec<&'c Candidate>> {
    if let Some(near) = by_hints(&usable, distribution, node) {
        return Some(near);
    }
    let Some(keys) = keys.filter(|keys| !keys.is_empty()) else { return Some(usable) };
    for key in keys {
        let near: Vec<&Candidate> = usable.iter().copied().filter(|candidate| matches(*key, candidate, node)).collect();
        if !near.is_empty() {
            return Some(near);
        }
    }
    // Where there was nothing to choose from, it is not topology that refuses.
    usable.is_empty().then_some(usable)
}

/// An unset value never matches.
fn matches(key: TopologyKey, candidate: &Candidate, node: &Node) -> bool {
    let (ours, theirs) = match key {
        TopologyKey::Any => return true,
        TopologyKey::Hostname => (&node.hostname, &candidate.node),
        TopologyKey::Zone => (&node.zone, &candidate.zone),
        TopologyKey::Region => (&node.region, &candidate.region),
    };
    ours.is_some() && ours == theirs
}

/// Every ready endpoint has a hint and one matches: node, then zone.
fn by_hints<'c>(usable: &[&'c Candidate], distribution: Option<&str>, node: &Node) -> Option<Vec<&'c Candidate>> {
    if usable.is_empty() || usable.iter().any(|candidate| !candidate.ready) {
        return None;
    }
    let hinted = |hints: &[String], own: &Option<String>, implied: bool| {
        if hints.is_empty() && implied { own.iter().cloned().collect() } else { hints.to_vec() }
    };
    let by_node = distribution == Some("PreferSameNode");
    let nodes = |candidate: &Candidate| hinted(&candidate.hint_nodes, &candidate.node, by_node);
    let zones = |candidate: &Candidate| hinted(&candidate.hint_zones, &candidate.zone, distribution.is_some());
    nearest(usable, nodes, node.hostname.as_ref()).or_else(|| nearest(usable, zones, node.zone.as_ref()))
}

fn nearest<'c>(
    usable: &[&'c Candidate],
    hints: impl Fn(&Candidate) -> Vec<String>,
    here: Option<&String>,
) -> Option<Vec<&'c Candidate>> {
    let here = here?;
    if usable.iter().any(|candidate| hints(candidate).is_empty()) {
        return None;
    }
    let near: Vec<&Candidate> = usable.iter().copied().filter(|candidate| hints(candidate).contains(here)).collect();
    (!near.is_empty()).then_some(near)
}
