//! What the source has, manifests or an API server's objects, judged and translated.

use std::sync::Arc;
use std::time::Instant;

use lb::model::EndpointState;
use translate::{Finding, Objects, Pool, Translation};

use super::Control;
use super::inputs::context;
use crate::config::Config;
use crate::{announce, kubernetes, manifests, owners};

/// What the source has, judged and translated.
pub(super) struct Taken {
    pub translation: Translation,
    pub findings: Vec<Finding>,
    /// Files of which an older text counts.
    pub kept: Vec<String>,
    /// How many files there are.
    pub files: usize,
    /// What an API server has.
    pub objects: Option<Objects>,
    /// Those of the configuration, and of the cluster.
    pub pools: Vec<Pool>,
}

impl Taken {
    /// Every endpoint keeps its flows and gets no new ones.
    pub fn wind_down(&mut self) {
        for port in self.translation.desired.service_ports.iter_mut() {
            for endpoint in &mut Arc::make_mut(port).endpoints {
                endpoint.state = EndpointState::Draining;
            }
        }
        for of_service in self.translation.backends.iter_mut() {
            for backend in Arc::make_mut(of_service).iter_mut().filter(|b| b.state == translate::BackendState::Usable) {
                backend.state = translate::BackendState::Draining;
                backend.reason = Some("it is to stop".to_owned());
            }
        }
    }
}

impl Control {
    /// Takes in what the source has. `seen` becomes when that changed, where it is known.
    pub(super) fn translate(&mut self, config: &Config, seen: &mut Instant) -> Taken {
        let instance = Arc::clone(&self.instance);
        let mut context = context(config, &self.host, &self.kept.drained, &instance);
        let Some(cluster) = &instance.cluster else {
            let gathered = instance.manifests.gathered();
            let former = self.former.take();
            let rules = (&context, &self.kept.given);
            let judged = manifests::judge_after(former.as_ref(), &gathered, &self.kept.last_good, rules);
            self.kept.last_good = judged.last_good;
            self.former = Some(judged.former);
            let (translation, findings, kept) = (judged.translation, judged.findings, judged.kept);
            let (files, pools) = (gathered.texts.len(), config.pools.clone());
            return Taken { translation, findings, kept, files, objects: None, pools };
        };
        let snapshot = cluster.take();
        *seen = snapshot.since.unwrap_or(*seen);
        context.node = kubernetes::this_node(&context.node, &snapshot.objects.nodes);
        let (pools, mut findings) = kubernetes::merged(config, &snapshot.pools);
        if let (true, Some(port)) = (config.serve.node_port, &config.kernel_port) {
            let (name, nodes) = (context.node.hostname.as_deref(), &snapshot.objects.nodes);
            let own = kubernetes::node_port_addresses(name, nodes, &self.host);
            findings.extend(own.is_empty().then(|| kubernetes::no_node_ports(name.unwrap_or_default())));
            context.node_port_addresses = Some(port.with_way_to(own));
        }
        (context.pools, context.reserved) = (pools.clone(), snapshot.reserved);
        context.reserved.extend(config.reserved.iter().cloned());
        let whole = if config.serve.cluster_ip { &snapshot.service_ranges[..] } else { &[] };
        let (ranges, told) = kubernetes::routable(whole, &snapshot.objects.nodes, &self.host);
        self.reach.ranges = ranges;
        findings.extend(told);
        let former = self.translated.take();
        let (translation, former) =
            translate::translate_after(former.as_ref(), &snapshot.objects, &context, &self.kept.given);
        self.translated = Some(former);
        // Who serves takes part in giving, too, for a predecessor and its successor have one name; not by old pools.
        let gives = snapshot.listed && instance.registry().is_some();
        let before = Arc::clone(&translation.given.addresses);
        cluster.allot(gives.then_some(kubernetes::Rules { context, before }));
        findings.extend(snapshot.findings.iter().chain(&translation.findings).cloned());
        Taken { translation, findings, kept: Vec::new(), files: 0, objects: Some(snapshot.objects), pools }
    }

    /// Tells what is to be settled with other nodes, once this one serves it.
    pub(super) fn tell_owners(&self, config: &Config, objects: Option<&Objects>) {
        if let (Some(owners), Some(objects)) = (&self.instance.owners, objects) {
            let view = self.instance.view();
            let is_announced = |address| announce::is_announced(config, &view.pools, address);
            owners.tell(owners::situation(objects, &view.translation, is_announced));
        }
    }
}
