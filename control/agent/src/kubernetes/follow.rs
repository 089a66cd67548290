//! Following one kind: a list, then watches from its version on.
//!
//! A watch ends as often as the API server likes, and the next one goes on where it ended. A version that the API server
//! no longer has (410 Gone), or one that it has not reached, for it was restored from a backup, makes a new list: from
//! such a version no event would come until the API server gets there.

use std::convert::Infallible;
use std::fmt::Debug;
use std::pin::pin;
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt;
use kube::api::{Api, ListParams, WatchParams};
use kube::core::WatchEvent;
use serde::de::DeserializeOwned;

use super::Shared;
use super::access::Access;
use super::client::{connect, said};
use super::kinds::Kind;
use super::store::Seen;

/// Objects in one answer to a list.
const PAGE: u32 = 500;
/// How long an API server may take to answer.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a watch is to last at least: its end is the sign of life of an API server that has nothing to say, for
/// bookmarks come once a minute, or not at all.
const WATCH: Duration = Duration::from_secs(18);
/// How many seconds longer it may be to last, so that the kinds of all nodes do not keep asking at once.
const LONGER: u32 = 4;
/// How long a watch may be silent until the API server is taken for dead: six seconds more than the longest one lasts.
const SILENCE: Duration = Duration::from_secs(28);
/// How long a list that takes something away waits for the next one, which is to confirm it.
const CONFIRM: Duration = Duration::from_millis(500);
/// How long until a kind that the cluster does not have is looked for again.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Pauses after failures: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Follows until it is dropped.
pub(super) async fn follow<K: Kind>(shared: &Shared, access: &Access) {
    let mut follower = Follower::<K> { shared, version: None, pause: PAUSES.0, kind: std::marker::PhantomData };
    loop {
        let Err(Trouble { why, status }) = follower.run(access).await;
        match status {
            404 if K::OPTIONAL => {
                tokio::time::sleep(follower.missing()).await;
                continue;
            }
            403 if K::OPTIONAL => {
                shared.change(|stores| (false, K::store(stores).do_without()));
                shared.listed();
            }
            _ => {}
        }
        let hint = if status == 0 { access.hint() } else { None };
        shared.fails(K::PLURAL, hint.map_or(why.clone(), |hint| format!("{why}; {hint}")));
        tokio::time::sleep(follower.pause + jitter(follower.pause)).await;
        follower.pause = (follower.pause * 2).min(PAUSES.1);
    }
}

/// Up to half a pause, so that nodes that lost an API server at once do not come back at once.
fn jitter(pause: Duration) -> Duration {
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
    pause * (nanos % 1000) / 2000
}

/// How long the next watch is to last, in whole seconds, which is what an API server is asked for.
fn lasting() -> Duration {
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
    // Of the microseconds: a clock may know no less.
    WATCH + Duration::from_secs(u64::from(nanos / 1000 % (LONGER + 1)))
}

struct Follower<'s, K> {
    shared: &'s Shared,
    /// Where the next watch goes on.
    version: Option<u64>,
    pause: Duration,
    kind: std::marker::PhantomData<K>,
}

/// Why a kind cannot be followed.
struct Trouble {
    why: String,
    /// The API server's answer; 0: there is none.
    status: u16,
}

impl From<String> for Trouble {
    fn from(why: String) -> Self {
        Self { why, status: 0 }
    }
}

/// How a watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The API server said no more.
    Over,
    /// It lasted as long as it was to.
    InTime,
    /// Its version is not the API server's.
    Lost,
}

impl<K: Kind> Follower<'_, K>
where
    K: Clone + Debug + DeserializeOwned,
{
    /// Until something fails.
    async fn run(&mut self, access: &Access) -> Result<Infallible, Trouble> {
        let api: Api<K> = Api::all(connect(access).await?);
        let mut checked = false;
        loop {
            let version = match self.version {
                Some(version) if checked || !self.is_ahead(&api, version).await? => version,
                _ => self.list(&api).await?,
            };
            self.version = Some(version);
            let began = Instant::now();
            let ended = self.watch(&api, version).await?;
            if ended == Ended::Lost {
                self.version = None;
            }
            checked = ended == Ended::InTime;
            if began.elapsed() < PAUSES.0 {
                // An API server that ends watches at once is not to be asked without a pause.
                tokio::time::sleep(PAUSES.0 + jitter(PAUSES.0)).await;
            }
        }
    }

    /// The cluster does not have the kind, and has none of it once that was said twice. When to look again.
    fn missing(&mut self) -> Duration {
        self.version = None;
        let doubted = self.shared.change(|stores| K::store(stores).take_list(Vec::new()));
        if doubted > 0 {
            return CONFIRM;
        }
        self.shared.listed();
        self.shared.works(K::PLURAL);
        LOOK_AGAIN + jitter(LOOK_AGAIN)
    }

    /// Whether the API server is behind what was seen of it.
    async fn is_ahead(&self, api: &Api<K>, version: u64) -> Result<bool, Trouble> {
        let one = params::<K>().limit(1);
        let list = answered(api.list_metadata(&one)).await?.map_err(|error| said_of::<K>(&error))?;
        let theirs = number(list.metadata.resource_version.as_deref());
        if theirs < version {
            tracing::warn!(
                kind = K::PLURAL,
                seen = version,
                now = theirs,
                "the API server is behind what it said: listing anew"
            );
        }
        Ok(theirs < version)
    }

    /// Lists until nothing is in doubt. The version of the last list.
    async fn list(&mut self, api: &Api<K>) -> Result<u64, Trouble> {
        loop {
            let (items, version) = self.list_once(api).await?;
            let doubted = self.shared.change(|stores| K::store(stores).take_list(items));
            if doubted == 0 {
                self.shared.listed();
                return Ok(version);
            }
            tracing::info!(
                kind = K::PLURAL,
                objects = doubted,
                "a list lacks what was there, or has it older: asking again"
            );
            tokio::time::sleep(CONFIRM).await;
        }
    }

    async fn list_once(&self, api: &Api<K>) -> Result<(Vec<Seen<K>>, u64), Trouble> {
        let mut items = Vec::new();
        let mut params = params::<K>().limit(PAGE);
        loop {
            let list = answered(api.list(&params)).await?.map_err(|error| said_of::<K>(&error))?;
            items.extend(list.items.into_iter().map(Seen::from));
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => return Ok((items, number(list.metadata.resource_version.as_deref()))),
            }
        }
    }

    async fn watch(&mut self, api: &Api<K>, version: u64) -> Result<Ended, Trouble> {
        let lasting = lasting();
        let seconds = u32::try_from(lasting.as_secs()).unwrap_or(u32::MAX);
        let mut params = WatchParams::default().timeout(seconds);
        params.label_selector = K::SELECTOR.map(str::to_owned);
        let began = Instant::now();
        let events = match answered(api.watch(&params, &version.to_string())).await? {
            Ok(events) => events,
            Err(kube::Error::Api(status)) if status.code == 410 => return Ok(Ended::Lost),
            Err(error) => return Err(said_of::<K>(&error)),
        };
        self.shared.works(K::PLURAL);
        self.pause = PAUSES.0;
        let mut events = pin!(events);
        loop {
            let silence = tokio::time::timeout(SILENCE, events.next());
            let Ok(event) = silence.await else { return Err("the API server has gone silent".to_owned().into()) };
            match event {
                None if began.elapsed() + Duration::from_secs(1) >= lasting => return Ok(Ended::InTime),
                None => return Ok(Ended::Over),
                Some(Err(kube::Error::Api(status))) if status.code == 410 => return Ok(Ended::Lost),
                Some(Err(kube::Error::ReadEvents(_))) => return Ok(Ended::Over),
                Some(Err(error)) => return Err(said_of::<K>(&error)),
                Some(Ok(WatchEvent::Error(status))) if status.code == 410 => return Ok(Ended::Lost),
                Some(Ok(WatchEvent::Error(status))) => return Err(status.message.clone().into()),
                Some(Ok(event)) => {
                    if !self.take(event) {
                        return Ok(Ended::Lost);
                    }
                }
            }
        }
    }

    /// Takes an event. Whether its version is not behind what was seen.
    fn take(&mut self, event: WatchEvent<K>) -> bool {
        let (version, object) = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                (object.meta().resource_version.clone(), Some((true, object)))
            }
            WatchEvent::Deleted(object) => (object.meta().resource_version.clone(), Some((false, object))),
            WatchEvent::Bookmark(mark) => (Some(mark.metadata.resource_version), None),
            WatchEvent::Error(_) => return true,
        };
        let version = number(version.as_deref());
        if self.version.is_some_and(|seen| version < seen) {
            return false;
        }
        self.version = Some(version);
        if let Some((there, object)) = object {
            self.shared.change(|stores| {
                let store = K::store(stores);
                (if there { store.put_event(object) } else { store.remove(&object) }, ())
            });
        }
        true
    }
}

fn params<K: Kind>() -> ListParams {
    let params = ListParams::default();
    match K::SELECTOR {
        Some(selector) => params.labels(selector),
        None => params,
    }
}

fn number(version: Option<&str>) -> u64 {
    version.and_then(|version| version.parse().ok()).unwrap_or_default()
}

async fn answered<T>(question: impl Future<Output = T>) -> Result<T, String> {
    tokio::time::timeout(ANSWER, question).await.map_err(|_| "the API server does not answer".to_owned())
}

fn said_of<K: Kind>(error: &kube::Error) -> Trouble {
    let status = if let kube::Error::Api(status) = error { status.code } else { 0 };
    let why = match error {
        kube::Error::Api(status) if status.code == 401 || status.code == 403 => {
            format!(
                "{}: expected the verbs get, list and watch on {} in a ClusterRole bound to it",
                status.message,
                K::PLURAL
            )
        }
        kube::Error::Api(status) => status.message.clone(),
        other => said(other),
    };
    Trouble { why, status }
}
