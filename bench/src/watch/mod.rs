//! Case `watch`: a node of a cluster that follows a real API server with many Services.
//!
//! First sync is from the start of the process until it is ready: AF_XDP sockets, all lists, translation and tables. A
//! change is one endpoint that is ready or not, from its watch event to tables in force, as `millrace_update_seconds`
//! tells it. The control plane is on the same cores.

mod site;

use clap::Args;

use crate::figure::Figure;
use crate::{interrupt, needs};
use site::Site;

/// What to run.
#[derive(Args)]
pub struct Watch {
    /// Services, each with one port and one slice.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u16).range(1..=5000))]
    services: u16,
    /// Endpoints of each.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=20))]
    endpoints: u16,
    /// Changes of an endpoint in each run.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u16).range(1..))]
    changes: u16,
}

impl Watch {
    /// Runs all of it, so many starts with their changes, and gives each figure to `show`.
    ///
    /// # Errors
    /// What is missing, and what to do about it.
    pub fn run(&self, runs: usize, mut show: impl FnMut(Figure)) -> Result<(), String> {
        needs::root("the watch case makes network namespaces")?;
        needs::programs(&["ip", "nsenter", "sysctl", "curl", "openssl"])?;
        needs::millrace()?;
        eprintln!("watch: {} Services with {} endpoints each are made", self.services, self.endpoints);
        let mut site = Site::new(self.services.into(), self.endpoints.into());
        let (mut syncs, mut changes, mut peaks) = (Vec::new(), Vec::new(), Vec::new());
        for run in 0..runs {
            interrupt::check();
            eprintln!("watch: run {} of {runs}", run + 1);
            let (instance, sync) = site.start();
            syncs.push(sync.as_secs_f64());
            for _ in 0..self.changes {
                interrupt::check();
                changes.push(site.change().as_secs_f64() * 1e3);
            }
            peaks.push(instance.peak_memory());
            site.end(instance);
        }
        changes.sort_by(f64::total_cmp);
        let p99 = changes[(changes.len() * 99).div_ceil(100) - 1];
        let variant = format!("{}x{}", self.services, self.endpoints);
        let figures = [
            Figure::new("watch", 0, "first_sync", "s", syncs),
            Figure::new("watch", 0, "change", "ms", changes),
            Figure::new("watch", 0, "change_p99", "ms", vec![p99]),
            Figure::new("watch", 0, "memory_peak", "MB", peaks),
        ];
        figures.into_iter().for_each(|figure| show(figure.of(variant.clone())));
        Ok(())
    }
}
