//! What a node of a cluster has beside a gateway box: an API server to follow, and other nodes to settle with.

use std::sync::{Arc, mpsc};

use super::{RunError, Signals};
use crate::announce::Announcer;
use crate::config::Config;
use crate::control::Event;
use crate::kubernetes::{self, Access, Cluster};
use crate::owners::Owners;

/// How the API server is reached, where there is one.
pub fn access(config: &Config) -> Option<Access> {
    config.kubernetes.as_ref().map(|settings| Access::new(settings, config.serve.cluster_ip))
}

/// Follows the API server, where objects come from one.
///
/// # Errors
/// If the client's configuration cannot be had.
pub fn cluster(
    config: &Config,
    access: Option<&Access>,
    events: &mpsc::Sender<Event>,
) -> Result<Option<Cluster>, RunError> {
    let (Some(settings), Some(access)) = (&config.kubernetes, access) else { return Ok(None) };
    if settings.heartbeat.is_none() {
        tracing::warn!(
            "every node with these pools serves all their addresses: a routing daemon says which gets a packet"
        );
    }
    let changed = events.clone();
    let cluster = Cluster::start(access, &config.state, move || drop(changed.send(Event::Objects)));
    let refused =
        |why| RunError::Refused(format!("{}:{}: kubernetes: {why}", config.path.display(), config.line("kubernetes")));
    cluster.map(Some).map_err(refused)
}

/// Waits for the cluster's first objects; `false`: this instance is to end before that.
pub async fn await_first(cluster: Option<&Cluster>, signals: &mut Signals) -> bool {
    let Some(cluster) = cluster else { return true };
    tokio::select! {
        () = cluster.await_first() => true,
        _ = signals.terminate.recv() => false,
        _ = signals.interrupt.recv() => false,
    }
}

/// Who settles with other nodes what this one announces, where they tell each other that they live.
///
/// # Errors
/// If the key of heartbeats cannot be used.
pub fn owners(
    config: &Config,
    access: Option<&Access>,
    announcer: &Arc<Announcer>,
    events: &mpsc::Sender<Event>,
) -> Result<Option<Owners>, RunError> {
    let (Some(settings), Some(access)) = (&config.kubernetes, access) else { return Ok(None) };
    let name = kubernetes::this_node(&config.node, &[]).hostname;
    let refused =
        |why| RunError::Refused(format!("{}:{}: kubernetes: {why}", config.path.display(), config.line("kubernetes")));
    Owners::new(settings, access, name, announcer, events).map_err(refused)
}
