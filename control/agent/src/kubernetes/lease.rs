//! Leases (`coordination.k8s.io/v1`): something that one holder has at a time, or by which a node says that it lives.
//!
//! Every write names the version that it was made from, so that of two who write at once one is refused. Clocks of nodes
//! are never compared: another's Lease is over when it has not changed for as long as it lasts, by the clock of who looks
//! and since it looked first. Who holds one stops by itself a third of that time before others may take it, reckoned from
//! before it asked.
//!
//! Source: the algorithm of Kubernetes' own leader election (<https://kubernetes.io/docs/concepts/architecture/leases/>).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::{Client, Error};

use super::client::said;

/// How long an API server may take to answer: no write may arrive after others may have taken the Lease.
const ANSWER: Duration = Duration::from_secs(3);

/// The status of a write that lost against another's.
const CONFLICT: u16 = 409;
/// Those of a write to what is not as it was seen.
const STALE: [u16; 2] = [404, CONFLICT];

/// How a claim stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is held, at least until then.
    Held {
        /// When to stop acting on it, unless it is renewed.
        until: Instant,
        /// Whether it was another's, or nobody's, before.
        taken: bool,
    },
    /// Another holds it.
    Of(String),
}

/// One Lease, and who asks for it.
pub(super) struct Claim {
    api: Api<Lease>,
    terms: Terms,
    seen: Option<Seen>,
}

/// What a holder writes.
#[derive(Clone, Debug)]
struct Terms {
    name: String,
    holder: String,
    lasts: Duration,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

/// A Lease as it was last, and since when it is so.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    lease: Lease,
    since: Instant,
}

impl Seen {
    /// A Lease that is seen for the first time.
    pub fn new(lease: Lease, now: Instant) -> Self {
        Self { lease, since: now }
    }

    /// Takes it in as it is now.
    pub fn renew(&mut self, lease: Lease, now: Instant) {
        if self.lease.metadata.resource_version != lease.metadata.resource_version {
            *self = Self::new(lease, now);
        }
    }

    /// Who holds it.
    pub fn holder(&self) -> Option<&str> {
        self.lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
    }

    /// Whether it has not changed for as long as it lasts; `lasts` where it does not say.
    pub fn is_over(&self, lasts: Duration, now: Instant) -> bool {
        let written = self.lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
        let written = written.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
        now.saturating_duration_since(self.since) >= written.unwrap_or(lasts)
    }
}

impl Claim {
    /// Of one holder, for a Lease that lasts whole seconds.
    pub fn new(client: &Client, namespace: &str, name: &str, holder: &str, lasts: Duration) -> Self {
        let (name, holder) = (name.to_owned(), holder.to_owned());
        let terms = Terms { name, holder, lasts, labels: BTreeMap::new(), annotations: BTreeMap::new() };
        Self { api: Api::namespaced(client.clone(), namespace), terms, seen: None }
    }

    /// What writes from now on say beside the holder; what others wrote there stays.
    pub fn note(&mut self, labels: BTreeMap<String, String>, annotations: BTreeMap<String, String>) {
        (self.terms.labels, self.terms.annotations) = (labels, annotations);
    }

    /// Takes or renews it where nobody else holds it.
    ///
    /// # Errors
    /// If the API server refuses it or does not answer; what was held counts until the time that was said.
    pub async fn renew(&mut self) -> Result<Standing, String> {
        // What was written last is likely as it was: no question is needed before the next write.
        if self.seen.as_ref().is_some_and(|seen| self.terms.hold(seen))
            && let Some(standing) = self.write().await?
        {
            return Ok(standing);
        }
        for _ in 0..2 {
            self.look().await?;
            if let Some(other) = self.seen.as_ref().and_then(|seen| self.terms.other(seen, Instant::now())) {
                return Ok(Standing::Of(other.to_owned()));
            }
            if let Some(standing) = self.write().await? {
                return Ok(standing);
            }
        }
        Ok(Standing::Of("one who was faster".to_owned()))
    }

    /// Lets go of it, for others to take it at once. Nothing happens where it is not held.
    ///
    /// # Errors
    /// If the API server refuses that or does not answer: it is over when it has lasted.
    pub async fn release(&mut self) -> Result<(), String> {
        let Some(seen) = self.seen.take().filter(|seen| self.terms.hold(seen)) else { return Ok(()) };
        let mut lease = seen.lease;
        lease.metadata.managed_fields = None;
        lease.spec.get_or_insert_default().holder_identity = None;
        answered(self.api.replace(&self.terms.name, &PostParams::default(), &lease), &STALE).await.map(drop)
    }

    async fn look(&mut self) -> Result<(), String> {
        let lease = answered(self.api.get_opt(&self.terms.name), &[]).await?.flatten();
        let now = Instant::now();
        match (&mut self.seen, lease) {
            (Some(seen), Some(lease)) => seen.renew(lease, now),
            (seen, lease) => *seen = lease.map(|lease| Seen::new(lease, now)),
        }
        Ok(())
    }

    /// Writes this holder. `None`: another wrote since it was seen.
    async fn write(&mut self) -> Result<Option<Standing>, String> {
        let asked = Instant::now();
        let taken = !self.seen.as_ref().is_some_and(|seen| self.terms.hold(seen));
        let lease = self.terms.next(self.seen.as_ref(), Timestamp::now());
        let written = match &self.seen {
            None => answered(self.api.create(&PostParams::default(), &lease), &[CONFLICT]).await?,
            Some(_) => answered(self.api.replace(&self.terms.name, &PostParams::default(), &lease), &STALE).await?,
        };
        let Some(lease) = written else { return Ok(None) };
        self.seen = Some(Seen::new(lease, asked));
        Ok(Some(Standing::Held { until: asked + self.terms.acts(), taken }))
    }
}

impl Terms {
    /// How long a holder acts on what it wrote.
    fn acts(&self) -> Duration {
        self.lasts * 2 / 3
    }

    fn hold(&self, seen: &Seen) -> bool {
        seen.holder() == Some(&self.holder)
    }

    /// Who else holds it.
    fn other<'s>(&self, seen: &'s Seen, now: Instant) -> Option<&'s str> {
        seen.holder().filter(|holder| *holder != self.holder && !seen.is_over(self.lasts, now))
    }

    /// The Lease as this holder writes it after what is there.
    fn next(&self, before: Option<&Seen>, now: Timestamp) -> Lease {
        let mut lease = before.map(|seen| seen.lease.clone()).unwrap_or_default();
        let spec = lease.spec.take().unwrap_or_default();
        let ours = before.is_some_and(|seen| self.hold(seen));
        let changes = spec.lease_transitions.unwrap_or_default();
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.holder.clone()),
            lease_duration_seconds: Some(i32::try_from(self.lasts.as_secs()).unwrap_or(i32::MAX)),
            acquire_time: if ours { spec.acquire_time.clone() } else { Some(MicroTime(now)) },
            renew_time: Some(MicroTime(now)),
            lease_transitions: Some(if ours || before.is_none() { changes } else { changes.saturating_add(1) }),
            ..spec
        });
        let metadata = &mut lease.metadata;
        metadata.name = Some(self.name.clone());
        // What is read has it, and no write may.
        metadata.managed_fields = None;
        for (ours, all) in [(&self.labels, &mut metadata.labels), (&self.annotations, &mut metadata.annotations)] {
            if !ours.is_empty() {
                all.get_or_insert_default().extend(ours.clone());
            }
        }
        lease
    }
}

/// An answer in time; `None` with a status that is expected.
async fn answered<T>(question: impl Future<Output = kube::Result<T>>, expected: &[u16]) -> Result<Option<T>, String> {
    match tokio::time::timeout(ANSWER, question).await {
        Err(_) => Err("the API server does not answer".to_owned()),
        Ok(Ok(answer)) => Ok(Some(answer)),
        Ok(Err(Error::Api(status))) if expected.contains(&status.code) => Ok(None),
        Ok(Err(Error::Api(status))) if matches!(status.code, 401 | 403) => Err(format!(
            "{}: expected the verbs get, create and update on leases.coordination.k8s.io in a Role bound to it",
            status.message
        )),
        Ok(Err(Error::Api(status))) => Err(status.message.clone()),
        Ok(Err(other)) => Err(said(&other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LASTS: Duration = Duration::from_secs(15);

    fn terms(holder: &str) -> Terms {
        let (name, holder) = ("lease".to_owned(), holder.to_owned());
        Terms { name, holder, lasts: LASTS, labels: BTreeMap::new(), annotations: BTreeMap::new() }
    }

    /// As an API server keeps it: a write counts where it names the version that is there.
    #[derive(Default)]
    struct Kept {
        lease: Option<Lease>,
        version: u64,
    }

    impl Kept {
        fn write(&mut self, mut lease: Lease) -> Option<Lease> {
            let there = self.lease.as_ref().and_then(|lease| lease.metadata.resource_version.clone());
            if lease.metadata.resource_version != there {
                return None;
            }
            self.version += 1;
            lease.metadata.resource_version = Some(self.version.to_string());
            self.lease = Some(lease.clone());
            Some(lease)
        }
    }

    struct Candidate {
        terms: Terms,
        seen: Option<Seen>,
        until: Option<Instant>,
    }

    impl Candidate {
        fn look(&mut self, kept: &Kept, now: Instant) {
            match (&mut self.seen, kept.lease.clone()) {
                (Some(seen), Some(lease)) => seen.renew(lease, now),
                (seen, lease) => *seen = lease.map(|lease| Seen::new(lease, now)),
            }
        }

        /// As [`Claim::renew`] does, but that others may act between the look and the write.
        fn write(&mut self, kept: &mut Kept, now: Instant) {
            if self.seen.as_ref().is_some_and(|seen| self.terms.other(seen, now).is_some()) {
                return;
            }
            if let Some(lease) = kept.write(self.terms.next(self.seen.as_ref(), Timestamp::UNIX_EPOCH)) {
                self.seen = Some(Seen::new(lease, now));
                self.until = Some(now + self.terms.acts());
            }
        }
    }

    #[test]
    fn of_many_who_look_and_write_in_any_order_one_holds_it_at_a_time() {
        let mut random = 7_u64;
        let mut pick = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let mut kept = Kept::default();
        let mut all = ["n1", "n2", "n3"].map(|holder| Candidate { terms: terms(holder), seen: None, until: None });
        let (mut now, mut holders) = (Instant::now(), std::collections::BTreeSet::new());
        for _ in 0..20_000 {
            now += Duration::from_millis(pick(8_000));
            let candidate = &mut all[pick(3) as usize];
            if pick(2) == 0 {
                candidate.look(&kept, now)
            } else {
                candidate.write(&mut kept, now)
            }
            let held: Vec<&str> = all
                .iter()
                .filter(|one| one.until.is_some_and(|until| until > now))
                .map(|one| one.terms.holder.as_str())
                .collect();
            assert!(held.len() <= 1, "{held:?} hold it");
            holders.extend(held.first().map(|holder| (*holder).to_owned()));
        }
        assert_eq!(holders.len(), 3, "each held it once");
    }

    #[test]
    fn a_lease_that_changes_is_not_over_however_old_its_times_are() {
        let start = Instant::now();
        let mut lease = terms("n2").next(None, Timestamp::UNIX_EPOCH);
        lease.metadata.resource_version = Some("1".to_owned());
        let mut seen = Seen::new(lease.clone(), start);
        assert_eq!(terms("n1").other(&seen, start + LASTS - Duration::from_millis(1)), Some("n2"));
        assert_eq!(terms("n1").other(&seen, start + LASTS), None);
        seen.renew(lease.clone(), start + LASTS);
        assert_eq!(terms("n1").other(&seen, start + LASTS), None, "it is the same one");
        lease.metadata.resource_version = Some("2".to_owned());
        seen.renew(lease, start + LASTS);
        assert_eq!(terms("n1").other(&seen, start + LASTS * 2 - Duration::from_millis(1)), Some("n2"));
    }

    #[test]
    fn a_renewal_keeps_what_others_wrote_and_says_when_the_holder_changed() {
        let (t0, t1) = (Timestamp::UNIX_EPOCH, Timestamp::MAX);
        let mut first = terms("n1").next(None, t0);
        let spec = first.spec.clone().expect("a spec");
        assert_eq!((spec.holder_identity.as_deref(), spec.lease_transitions), (Some("n1"), Some(0)));
        assert_eq!(spec.lease_duration_seconds, Some(15));
        first.metadata.annotations = Some([("other".to_owned(), "kept".to_owned())].into());
        let seen = Seen::new(first, Instant::now());
        let noted = [("millrace.dev/owns".to_owned(), "10.0.0.1".to_owned())];
        let renewed = Terms { annotations: noted.into(), ..terms("n1") }.next(Some(&seen), t1);
        let spec = renewed.spec.clone().expect("a spec");
        assert_eq!((spec.acquire_time, spec.renew_time), (Some(MicroTime(t0)), Some(MicroTime(t1))));
        assert_eq!(renewed.metadata.annotations.expect("annotations").len(), 2);
        let taken = terms("n2").next(Some(&seen), t1).spec.expect("a spec");
        assert_eq!((taken.acquire_time, taken.lease_transitions), (Some(MicroTime(t1)), Some(1)));
    }
}
