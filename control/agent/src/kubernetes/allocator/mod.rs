//! The allocator: one of all nodes, by a Lease, decides which addresses Services have (`translate::allocate`) and writes
//! that into their status, which is the record; there is no other. `steps` says what is to be written, `events` what told.
//!
//! Nobody gives from old knowledge: who begins waits until the store has what a list has that was asked for after the
//! Lease was taken, what was written is stored before it is decided again, every write names the version that it was
//! decided on, and none is begun after the Lease may be another's.

mod events;
pub(super) mod steps;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use tokio::sync::watch;
use translate::{Allocation, Allotment, Context, Located, Objects, Usage, allocate};

use super::Shared;
use super::access::Access;
use super::client::{connect, said};
use super::lease::{Claim, Standing};
use super::store::{Key, key};
use events::{News, Told};
use steps::{MANAGER, Step, steps};

/// The Lease's name.
const LEASE: &str = "millrace-allocator";
/// How long the Lease lasts.
const LASTS: Duration = Duration::from_secs(15);
/// How often it is renewed, and asked for by those who have it not.
const RENEW: Duration = Duration::from_secs(4);
/// How long an API server may take to answer a write: none arrives after others may give.
const ANSWER: Duration = Duration::from_secs(3);
/// How many writes are under way at once.
const AT_ONCE: usize = 16;
/// How long to gather changes before deciding.
const SETTLE: Duration = Duration::from_millis(5);
/// When to decide again on what changed while it was written, and on what failed.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// How long to wait before another connection is made after one failed.
const PAUSE: Duration = Duration::from_secs(2);

/// By what addresses are given.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Pools, modes, this node.
    pub context: Context,
    /// What each Service had when this node translated last.
    pub before: Arc<BTreeMap<String, Vec<IpAddr>>>,
}

impl Rules {
    /// Whether there is anything to give.
    fn gives(&self) -> bool {
        self.context.serve.load_balancer && self.context.pools.iter().any(|pool| !pool.addresses.is_empty())
    }
}

/// How it goes here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Whether this node gives the addresses.
    pub leads: bool,
    /// Of each pool, where it does.
    pub usage: Vec<Usage>,
    /// Services that lack an address that they ask for, where it does.
    pub lacking: usize,
}

/// This node's part.
#[derive(Default)]
pub(super) struct Allocator {
    claim: Option<Claim>,
    told: Told,
    /// Tells events apart.
    count: u64,
    /// What was decided on last, with nothing left to write.
    settled: Option<(Objects, Context)>,
}

/// What was decided for one Service and is to be written.
struct Work {
    key: Key,
    service: Arc<Located<Service>>,
    steps: Vec<Step>,
    news: Vec<News>,
}

/// What became of it.
enum Written {
    Done,
    /// The Service changed meanwhile, or the Lease is over.
    Stale,
    Failed(String),
}

impl Allocator {
    /// Takes part until it is dropped.
    pub async fn run(&mut self, shared: &Shared, access: &Access) {
        let mut rules = shared.rules.subscribe();
        loop {
            if rules.wait_for(|rules| rules.as_ref().is_some_and(|rules| rules.gives())).await.is_err() {
                return;
            }
            let outcome = self.take_part(shared, access, &mut rules).await;
            shared.report(Report::default());
            self.leave().await;
            if let Err(why) = outcome {
                shared.hindered(Some(why));
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Lets another give at once.
    pub async fn leave(&mut self) {
        if let Some(mut claim) = self.claim.take()
            && let Err(why) = claim.release().await
        {
            tracing::debug!("the Lease {LEASE} is not released: {why}");
        }
    }

    /// As long as there are rules.
    async fn take_part(
        &mut self,
        shared: &Shared,
        access: &Access,
        rules: &mut watch::Receiver<Option<Arc<Rules>>>,
    ) -> Result<(), String> {
        let client = connect(access).await?;
        let node = |rules: &Option<Arc<Rules>>| rules.as_ref()?.context.node.hostname.clone();
        let node = node(&rules.borrow()).ok_or("this node has no name: set `node.hostname`")?;
        self.claim = Some(Claim::new(&client, client.default_namespace(), LEASE, &node, LASTS));
        let mut leads: Option<Instant> = None;
        while rules.borrow().as_ref().is_some_and(|rules| rules.gives()) {
            let Some(claim) = &mut self.claim else { return Ok(()) };
            match claim.renew().await {
                Ok(Standing::Held { until, taken }) => {
                    if taken || leads.is_none() {
                        catch_up(shared, &client).await?;
                        tracing::info!("this node gives Services their addresses from now on");
                        (self.told, self.settled) = (Told::default(), None);
                    }
                    leads = Some(until);
                }
                Ok(Standing::Of(_)) => {
                    if leads.take().is_some() {
                        tracing::warn!("another node gives Services their addresses from now on");
                    }
                    shared.report(Report::default());
                    shared.hindered(None);
                }
                Err(why) if leads.is_some_and(|until| until > Instant::now()) => shared.hindered(Some(why)),
                Err(why) => return Err(why),
            }
            let next = Instant::now() + RENEW;
            match leads {
                Some(until) => self.lead(shared, &client, rules, (until, next)).await,
                None => {
                    let _ = tokio::time::timeout(RENEW, rules.changed()).await;
                }
            }
        }
        Ok(())
    }

    /// Gives what is to be given until the Lease is to be renewed.
    async fn lead(
        &mut self,
        shared: &Shared,
        client: &Client,
        rules: &mut watch::Receiver<Option<Arc<Rules>>>,
        (until, next): (Instant, Instant),
    ) {
        while Instant::now() < next {
            let Some(now) = rules.borrow_and_update().clone().filter(|rules| rules.gives()) else { return };
            let again = self.round(shared, client, &now, (until, next)).await;
            let again = again.map_or(next, |after| next.min(Instant::now() + after));
            tokio::select! {
                () = tokio::time::sleep_until(again.into()) => {}
                () = shared.unallotted.notified() => {}
                changed = rules.changed() => if changed.is_err() { return },
            }
            tokio::time::sleep(SETTLE).await;
        }
    }

    /// Decides once and writes that. When to do so again, changes aside.
    async fn round(
        &mut self,
        shared: &Shared,
        client: &Client,
        rules: &Rules,
        (until, next): (Instant, Instant),
    ) -> Option<Duration> {
        let (objects, namespaces) = shared.allocatable();
        let context = Context { namespaces: Arc::new(namespaces), ..rules.context.clone() };
        if self.settled.as_ref().is_some_and(|(before, by)| same(before, &objects) && by.same_rules(&context)) {
            return None;
        }
        let (inputs, by, before) = (objects.clone(), context.clone(), Arc::clone(&rules.before));
        let decided = tokio::task::spawn_blocking(move || allocate(&inputs, &by, &before)).await;
        let Ok(allocation) = decided else { return Some(AGAIN.1) };
        let lacking = allocation.allotments.iter().filter(|one| !one.lacks.is_empty()).count();
        shared.report(Report { leads: true, usage: allocation.usage.clone(), lacking });
        let node = context.node.hostname.as_deref().unwrap_or_default();
        let work = plan(&objects, &allocation);
        let (mut stale, mut failed) = (false, None);
        for some in work.chunks(AT_ONCE) {
            if Instant::now() >= next {
                return Some(Duration::ZERO);
            }
            let written = join_all(some.iter().map(|work| write(shared, client, work, until))).await;
            for (work, written) in some.iter().zip(written) {
                match written {
                    Written::Done => self.tell(client, node, &work.service.object, &work.news).await,
                    Written::Stale => stale = true,
                    Written::Failed(why) => failed = Some(format!("{}/{}: {why}", work.key.0, work.key.1)),
                }
            }
        }
        if !self.tell_shortages(client, &objects, &allocation, next, node).await {
            return Some(Duration::ZERO);
        }
        shared.hindered(failed.clone());
        let again = if failed.is_some() { Some(AGAIN.1) } else { stale.then_some(AGAIN.0) };
        self.settled = again.is_none().then_some((objects, context));
        again
    }

    /// Tells of Services that lack what they ask for. Whether there was time for all.
    async fn tell_shortages(
        &mut self,
        client: &Client,
        objects: &Objects,
        allocation: &Allocation,
        next: Instant,
        node: &str,
    ) -> bool {
        let allotments = by_key(allocation);
        self.told.retain(|key| allotments.contains_key(key));
        for service in objects.services.iter() {
            let now = Instant::now();
            if now >= next {
                return false;
            }
            let Some(allotment) = allotments.get(&key(&service.object.metadata)) else { continue };
            let news = self.told.shortage(allotment, now);
            self.tell(client, node, &service.object, &news).await;
        }
        true
    }

    /// Tells it, if the API server takes it: nothing depends on it.
    async fn tell(&mut self, client: &Client, node: &str, service: &Service, news: &[News]) {
        let namespace = service.metadata.namespace.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        for one in news {
            self.count += 1;
            let name = service.metadata.name.as_deref().unwrap_or_default();
            tracing::info!(service = format!("{namespace}/{name}"), reason = one.reason, "{}", one.note);
            let event = events::event(service, one.clone(), node, Timestamp::now(), self.count);
            match tokio::time::timeout(ANSWER, api.create(&PostParams::default(), &event)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::debug!("an event is not told: {}", said(&error)),
                Err(_) => tracing::debug!("an event is not told: the API server does not answer"),
            }
        }
    }
}

fn by_key(allocation: &Allocation) -> HashMap<Key, &Allotment> {
    allocation.allotments.iter().map(|one| ((one.namespace.clone(), one.name.clone()), one)).collect()
}

/// What is to be written.
fn plan(objects: &Objects, allocation: &Allocation) -> Vec<Work> {
    let (allotments, now) = (by_key(allocation), Timestamp::now());
    let work = objects.services.iter().filter_map(|service| {
        let key = key(&service.object.metadata);
        let allotment = allotments.get(&key).copied();
        let steps = steps(&service.object, allotment, now);
        if steps.is_empty() {
            return None;
        }
        // Of what was never given nothing is released.
        let tells = allotment.is_some() || steps.contains(&Step::Finalizer(false));
        let news = if tells { events::news(&service.object, allotment) } else { Vec::new() };
        Some(Work { key, service: Arc::clone(service), steps, news })
    });
    work.collect()
}

/// Writes it step by step, each to the version that the one before it made.
async fn write(shared: &Shared, client: &Client, work: &Work, until: Instant) -> Written {
    let Some(version) = shared.version_of(&work.key, &work.service) else { return Written::Stale };
    let mut version = version.to_string();
    let (namespace, name) = &work.key;
    let api: Api<Service> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams::apply(MANAGER).force();
    for step in &work.steps {
        if Instant::now() >= until {
            return Written::Stale;
        }
        let patch = Patch::Apply(step.body(namespace, name, &version));
        let written = tokio::time::timeout(ANSWER, async {
            match step {
                Step::Finalizer(_) => api.patch(name, &params, &patch).await,
                Step::Status(_) => api.patch_status(name, &params, &patch).await,
            }
        });
        match written.await {
            Err(_) => return Written::Failed("the API server does not answer".to_owned()),
            Ok(Ok(service)) => {
                version = service.metadata.resource_version.clone().unwrap_or_default();
                shared.change(|stores| (stores.services.put_newer(service), ()));
            }
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => return Written::Stale,
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 401 | 403) => {
                return Written::Failed(format!(
                    "{}: expected the verb patch on services and services/status in a ClusterRole bound to it",
                    status.message
                ));
            }
            Ok(Err(kube::Error::Api(status))) => return Written::Failed(status.message.clone()),
            Ok(Err(other)) => return Written::Failed(said(&other)),
        }
    }
    Written::Done
}

/// Waits until the store has every Service that there is now as it is now, or newer.
async fn catch_up(shared: &Shared, client: &Client) -> Result<(), String> {
    let api: Api<Service> = Api::all(client.clone());
    loop {
        let all = ListParams::default();
        let list = tokio::time::timeout(ANSWER * 3, api.list_metadata(&all));
        let list =
            list.await.map_err(|_| "the API server does not answer".to_owned())?.map_err(|error| said(&error))?;
        let behind = |stores: &super::store::Stores| {
            list.items.iter().any(|item| {
                let version = item.metadata.resource_version.as_deref().and_then(|version| version.parse::<u64>().ok());
                stores.services.version(&key(&item.metadata)) < Some(version.unwrap_or_default())
            })
        };
        // What went meanwhile will not come: the next list does not have it.
        let ends = Instant::now() + Duration::from_secs(1);
        while Instant::now() < ends {
            if !shared.with_stores(behind) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Whether these are the same objects as far as addresses depend on them.
fn same(before: &Objects, now: &Objects) -> bool {
    fn all<T>(before: &[Arc<T>], now: &[Arc<T>]) -> bool {
        before.len() == now.len() && before.iter().zip(now).all(|(a, b)| Arc::ptr_eq(a, b))
    }
    all(&before.services, &now.services) && all(&before.nodes, &now.nodes)
}

/// What the tests of what is written and told have.
#[cfg(test)]
fn allotment(addresses: &[&str], lacks: &[translate::Reason]) -> Allotment {
    let lacks = lacks.iter().map(|&reason| translate::Lack { reason, message: "why".into() });
    Allotment {
        namespace: "default".into(),
        name: "web".into(),
        addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        proxied: true,
        ports: Vec::new(),
        lacks: lacks.collect(),
    }
}
