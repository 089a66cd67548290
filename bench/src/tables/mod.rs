//! Case `tables`: from objects to what workers read, whole and for one change; Maglev's cost and what it moves.

mod cluster;
mod disruption;
mod ranges;

use std::sync::Arc;
use std::time::Duration;

use lb::Tables;
use lb::build::{BuildConfig, build};
use lb::maglev::Maglev;
use lb::model::TABLE_SIZES;
use lb::registry::Registry;
use lb::tables::SelectionSeed;
use publish::Slot;
use translate::{Given, Translation, read_after, translate, translate_after};
use wire::{Addr, Port};

use crate::clock::cpu_time;
use crate::figure::Figure;
use cluster::Cluster;

/// Endpoints of the Maglev tables of which one goes.
const COUNTS: [usize; 3] = [10, 100, 1000];
/// How many of them go, one at a time.
const GONE: usize = 20;

/// What to run.
pub struct TablesCase {
    /// Services.
    pub services: usize,
    /// Endpoints of each.
    pub endpoints: usize,
    /// Counted runs.
    pub runs: usize,
}

impl TablesCase {
    /// All figures.
    pub fn run(&self) -> Vec<Figure> {
        eprintln!("tables: Maglev, {} runs", self.runs);
        let mut figures = vec![self.maglev()];
        for count in COUNTS {
            let gone = (0..GONE).map(|n| n * count / GONE);
            figures.push(figure("flows_moved", "%", disruption::moved(count, gone)).of(format!("1 of {count}")));
        }
        figures.extend(ranges::figures(self.runs));
        eprintln!("tables: {} Services of {} endpoints, {} runs", self.services, self.endpoints, self.runs);
        figures.extend(self.cluster());
        figures
    }

    /// The largest table with a thousand endpoints.
    fn maglev(&self) -> Figure {
        let [.., size] = TABLE_SIZES;
        let endpoint = |n: u32| (Addr::from_v4((0x0a00_0000 + n).to_be_bytes()), Port::new(8080), 1);
        let endpoints: Vec<(Addr, Port, u16)> = (0..1000).map(endpoint).collect();
        let build = || timed(|| assert_eq!(Maglev::of_endpoints(&endpoints, size, SelectionSeed(1, 2)).size(), size));
        build();
        let values = (0..self.runs).map(|_| millis(build().0)).collect();
        figure("maglev_build", "ms", values).of("65537 slots, 1000")
    }

    /// Everything from objects, then one endpoint's change again and again: its file is read, which
    /// is told apart, and the way from objects takes what did not change from the time before; letting go of that counts.
    ///
    /// # Panics
    /// If the manifests are not sound.
    fn cluster(&self) -> Vec<Figure> {
        let cluster = Cluster { services: self.services, endpoints: self.endpoints };
        let context = cluster::context();
        let mut sources = cluster.sources(None);
        let mut read = read_after(None, &sources, &Given::default());
        assert!(read.findings.is_empty(), "these manifests are sound: {}", read.findings[0]);
        let (mut whole, mut whole_build) = (Vec::new(), Vec::new());
        for _ in 0..self.runs {
            let (time, first) = timed(|| translate(&read.objects, &context, &Given::default()));
            let built = Plane::new().put_in_force(&first);
            whole.push(millis(time + built));
            whole_build.push(millis(built));
        }
        // The second time tells that everyone has what was given the first time, as in a gateway that has just started.
        let (first, former) = translate_after(None, &read.objects, &context, &Given::default());
        let (mut translation, mut former) = translate_after(Some(&former), &read.objects, &context, &first.given);
        let mut plane = Plane::new();
        plane.put_in_force(&translation);
        let octets = plane.octets();
        let mut change: [Vec<f64>; 4] = Default::default();
        let which = self.services / 2;
        for run in 0..self.runs {
            // There and back again.
            sources[which] = cluster.source(which, run % 2 == 0);
            let (reading, now) = timed(|| read_after(Some(&read), &sources, &translation.given));
            let (time, (next, after)) =
                timed(|| translate_after(Some(&former), &now.objects, &context, &translation.given));
            assert_ne!(next.desired, translation.desired, "an endpoint changed");
            let built = plane.put_in_force(&next);
            let (over, ()) = timed(|| drop((read, translation, former)));
            (read, translation, former) = (now, next, after);
            for (values, time) in change.iter_mut().zip([time + built + over, reading, time, built]) {
                values.push(millis(time));
            }
        }
        let [change, reading, translating, building] = change;
        let per_service = octets as f64 / self.services as f64;
        vec![
            figure("objects_to_tables", "ms", whole),
            figure("build_of_that", "ms", whole_build),
            figure("change_to_tables", "ms", change),
            figure("reading_of_that_change", "ms", reading),
            figure("translation_of_that_change", "ms", translating),
            figure("build_of_that_change", "ms", building),
            figure("octets_a_service", "B", vec![per_service]),
        ]
        .into_iter()
        .map(|figure| figure.of(format!("{} x {}", self.services, self.endpoints)))
        .collect()
    }
}

/// Ids and the slot that workers read.
struct Plane {
    registry: Registry,
    slot: Arc<Slot<Tables>>,
    first: bool,
}

impl Plane {
    fn new() -> Self {
        Self { registry: cluster::registry(), slot: Arc::new(Slot::new(Tables::default())), first: true }
    }

    /// Builds tables of a translation and publishes them.
    fn put_in_force(&mut self, translation: &Translation) -> Duration {
        let mut reader = self.slot.reader();
        let (time, refused) = timed(|| {
            let built = {
                let pinned = reader.pin();
                let previous = (!self.first).then_some(&*pinned);
                // As in a gateway whose network is as it was.
                let config = BuildConfig { same_hops: !self.first, ..cluster::build_config() };
                build(previous, &translation.desired, &mut self.registry, &cluster::hop, &config)
            };
            self.slot.publish(built.tables);
            built.refused
        });
        assert_eq!(refused, 0, "there is room for all of them");
        self.first = false;
        time
    }

    fn octets(&self) -> usize {
        self.slot.reader().pin().octets()
    }
}

fn timed<T>(what: impl FnOnce() -> T) -> (Duration, T) {
    let start = cpu_time();
    let result = what();
    (cpu_time() - start, result)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn figure(name: &'static str, unit: &'static str, values: Vec<f64>) -> Figure {
    Figure::new("tables", 0, name, unit, values)
}
