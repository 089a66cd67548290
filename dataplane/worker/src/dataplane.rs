//! The threads: plans are checked, workers started, asked and stopped.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use core_affinity::CoreId;
use lb::{PortId, Tables, WorkerId, flow::FlowRecord, state::WorkerState};
use publish::Slot;
use xsk::{BURST, Frame, Queue, Umem};

use crate::{
    Decide, FrameAccount, Snapshot, WorkerError,
    cells::Cells,
    command::{Answer, Command, EXPORT_SLOTS, Reply},
    frames::Homes,
    idle::MAX_QUEUES,
    lane::Lane,
    mesh::Mesh,
    round::{Ended, Worker, WorkerParts},
    routes::Routes,
};

/// A queue and the NIC that it is of.
#[derive(Debug)]
pub struct PlannedQueue<Q> {
    /// The NIC.
    pub port: PortId,
    /// The queue, without frames in it.
    pub queue: Q,
}

/// What one worker gets. The place among the plans is the worker's number.
#[derive(Debug)]
pub struct WorkerPlan<Q, D = WorkerState> {
    /// The core to pin it to.
    pub core: Option<usize>,
    /// Its queues; without any it only decides what is handed to it.
    pub queues: Vec<PlannedQueue<Q>>,
    /// What it decides with.
    pub state: D,
    /// Its home frames: what its queues receive into. Twice the ring sizes or more is comfortable.
    pub frames: Vec<Frame>,
}

/// What a worker does without work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Idle {
    /// Looks a few times more, then blocks until a queue or another worker has work.
    #[default]
    Adaptive,
    /// Keeps looking: a core each, for the shortest delay.
    Busy,
}

/// How the workers run.
#[derive(Clone, Copy, Debug)]
pub struct DataplaneConfig {
    /// What a worker does without work.
    pub idle: Idle,
    /// Frames that wait in a ring from one worker to another at most.
    pub hand_off_ring: usize,
    /// How long an idle worker blocks at most before it tends to expired flows and the like.
    pub longest_sleep: Duration,
}

impl Default for DataplaneConfig {
    fn default() -> Self {
        Self { idle: Idle::Adaptive, hand_off_ring: 1024, longest_sleep: Duration::from_millis(100) }
    }
}

/// Running workers. Dropping it stops them.
pub struct Dataplane<D: Decide = WorkerState> {
    mesh: Arc<Mesh>,
    workers: Vec<Running<D>>,
    /// One listing at a time; nothing to do with workers.
    listing: Mutex<()>,
    /// The last drop of tables is for this side, never for a worker.
    _tables: Arc<Slot<Tables>>,
}

struct Running<D> {
    core: Option<usize>,
    cells: Arc<Cells>,
    thread: JoinHandle<Option<Ended<D>>>,
}

/// What is left of a stopped dataplane.
#[derive(Debug)]
pub struct StopReport<D = WorkerState> {
    /// The workers that ended in order.
    pub workers: Vec<Stopped<D>>,
    /// Where all frames were.
    pub frames: FrameAccount,
    /// What the first worker that failed said.
    pub failed: Option<String>,
}

/// A worker that ended.
#[derive(Debug)]
pub struct Stopped<D = WorkerState> {
    /// Which one.
    pub id: WorkerId,
    /// Its state, flows included.
    pub state: D,
    /// Frames in its hands.
    pub frames_at_hand: usize,
    /// Frames that its queues held when they were closed.
    pub frames_held: usize,
}

/// How many workers to start where nobody says: at most four, no more than queues or cores.
#[must_use]
pub fn default_workers(queues: usize, cores: usize) -> usize {
    queues.min(cores).clamp(1, 4)
}

impl<D: Decide> Dataplane<D> {
    /// Starts a thread for each plan. All frames and queues must be of `umem`, which frames of other workers may cross.
    ///
    /// The threads are in the network namespace of the caller. A core that a worker cannot be pinned to is logged, and
    /// the worker runs without.
    ///
    /// # Errors
    ///
    /// [`WorkerError`], before any frame was moved, or when the system has no thread or descriptor to give.
    pub fn start<Q: Queue + 'static>(
        umem: Umem,
        plans: Vec<WorkerPlan<Q, D>>,
        tables: Arc<Slot<Tables>>,
        config: DataplaneConfig,
    ) -> Result<Self, WorkerError> {
        check(&plans)?;
        let homes = Homes::new(umem.frames(), plans.iter().map(|plan| plan.frames.as_slice()))?;
        let home_frames: Vec<usize> = plans.iter().map(|plan| plan.frames.len()).collect();
        let sends_on = |planned: &PlannedQueue<Q>| planned.queue.can_send().then_some(planned.port);
        let ports: Vec<Vec<Option<PortId>>> =
            plans.iter().map(|plan| plan.queues.iter().map(sends_on).collect()).collect();
        let mesh = Arc::new(Mesh::new(&home_frames, config.hand_off_ring, homes).map_err(WorkerError::Eventfd)?);
        let mut dataplane = Self { mesh, workers: Vec::new(), listing: Mutex::new(()), _tables: Arc::clone(&tables) };
        for (id, plan) in plans.into_iter().enumerate() {
            let queues = plan.queues.iter().map(|queue| (queue.port, queue.queue.zero_copy()));
            let cells = Arc::new(Cells::new(queues));
            // An eighth is not for receiving into, so that there is a frame for packets of its own.
            let share = (plan.frames.len() - plan.frames.len() / 8) / plan.queues.len().max(1);
            let parts = WorkerParts {
                id,
                umem: umem.clone(),
                decide: plan.state,
                tables: Arc::clone(&tables),
                lanes: plan.queues.into_iter().map(|planned| Lane::new(planned.port, planned.queue, share)).collect(),
                routes: Routes::new(id, &ports),
                mesh: Arc::clone(&dataplane.mesh),
                cells,
                frames: plan.frames,
                config,
            };
            // An error drops `dataplane`, which stops those that run.
            dataplane.workers.push(spawn(parts, plan.core)?);
        }
        Ok(dataplane)
    }

    /// What the workers did so far.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::read(self.workers.iter().map(|worker| (worker.core, &*worker.cells)))
    }

    /// What the first worker that ended by a panic said. Its queues are closed and its flows stand still: the process
    /// should give way to a successor.
    #[must_use]
    pub fn failed(&self) -> Option<String> {
        self.mesh.failed()
    }

    /// Lists flows that are `wanted`, at most `limit`. Workers list between bursts, in pieces, so flows that come or go
    /// meanwhile may be missed; a worker that failed lists nothing.
    #[must_use]
    pub fn export_flows(&self, limit: usize, wanted: &mut dyn FnMut(&FlowRecord) -> bool) -> Vec<FlowRecord> {
        let _one_at_a_time = self.listing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut flows = Vec::new();
        for worker in 0..self.workers.len() {
            let mut from = Some(0);
            let mut buffer = Vec::with_capacity(EXPORT_SLOTS as usize);
            while let Some(slot) = from {
                let Some(mut answer) = self.ask(worker, slot, buffer) else { break };
                for record in answer.records.drain(..) {
                    if flows.len() == limit {
                        return flows;
                    }
                    if wanted(&record) {
                        flows.push(record);
                    }
                }
                buffer = answer.records;
                from = answer.next;
            }
        }
        flows
    }

    /// Has one worker list a piece, and waits for it.
    fn ask(&self, worker: usize, from: u32, into: Vec<FlowRecord>) -> Option<Answer> {
        let reply = Arc::new(Reply::new());
        self.mesh.mailbox(worker).push(Command { from, into, reply: Arc::clone(&reply) }).ok()?;
        self.mesh.doorbell(worker).ring();
        loop {
            if let Some(answer) = reply.take() {
                return Some(answer);
            }
            if self.workers[worker].thread.is_finished() {
                return None;
            }
            // Unparked by the answer; the timeout is for a worker that ends instead.
            thread::park_timeout(Duration::from_millis(10));
        }
    }

    /// Stops the workers, closes the queues and says where all frames were.
    #[must_use]
    pub fn stop(mut self) -> StopReport<D> {
        self.mesh.stop();
        let mut workers = Vec::new();
        let mut frames = Vec::new();
        let mut held = 0;
        for (id, worker) in self.workers.drain(..).enumerate() {
            // A panic is caught on the thread, so a join does not fail; and a worker that failed has no state to give.
            let Ok(Some(ended)) = worker.thread.join() else { continue };
            held += ended.held;
            workers.push(Stopped {
                id: WorkerId(id as u8),
                state: ended.decide,
                frames_at_hand: ended.frames.len(),
                frames_held: ended.held,
            });
            frames.extend(ended.frames);
        }
        frames.extend(self.mesh.drain());
        let frames = self.mesh.homes.account(frames.iter(), held);
        StopReport { workers, frames, failed: self.mesh.failed() }
    }
}

impl<D: Decide> Drop for Dataplane<D> {
    fn drop(&mut self) {
        self.mesh.stop();
        for worker in self.workers.drain(..) {
            // As in `stop`; and a failure was noted.
            let _ = worker.thread.join();
        }
    }
}

fn check<Q: Queue, D: Decide>(plans: &[WorkerPlan<Q, D>]) -> Result<(), WorkerError> {
    if plans.is_empty() || plans.len() > WorkerId::MAX {
        return Err(WorkerError::WorkerCount(plans.len()));
    }
    for (worker, plan) in plans.iter().enumerate() {
        let found = plan.state.worker();
        if usize::from(found.0) != worker {
            return Err(WorkerError::WrongState { place: worker, found });
        }
        if plan.queues.len() > MAX_QUEUES {
            return Err(WorkerError::TooManyQueues { worker, queues: plan.queues.len() });
        }
        if plan.frames.len() < plan.queues.len() {
            return Err(WorkerError::TooFewFrames(worker));
        }
        if plan.queues.iter().any(|planned| planned.queue.held() > 0) {
            return Err(WorkerError::QueueInUse(worker));
        }
    }
    Ok(())
}

fn spawn<Q: Queue + 'static, D: Decide>(
    mut parts: WorkerParts<Q, D>,
    core: Option<usize>,
) -> Result<Running<D>, WorkerError> {
    let worker = parts.id;
    let cells = Arc::clone(&parts.cells);
    let mesh = Arc::clone(&parts.mesh);
    // The pool never grows in the loop: it holds home frames, and those of others on their way home.
    parts.frames.shrink_to_fit();
    parts.frames.reserve_exact(BURST);
    let (pinned, is_pinned) = mpsc::channel();
    let body = move || {
        let core = core.filter(|&id| core_affinity::set_for_current(CoreId { id }));
        // The other side waits for it; and if it does not, nothing is lost.
        let _ = pinned.send(core);
        match catch_unwind(AssertUnwindSafe(|| Worker::new(parts).run())) {
            Ok(ended) => Some(ended),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words");
                mesh.fail(format!("worker {worker} failed: {text}"));
                None
            }
        }
    };
    let thread = thread::Builder::new().name(format!("worker-{worker}"));
    let thread = thread.spawn(body).map_err(|source| WorkerError::Thread { worker, source })?;
    let pinned = is_pinned.recv().ok().flatten();
    if let (Some(core), None) = (core, pinned) {
        tracing::warn!(worker, core, "cannot pin the worker to its core");
    }
    Ok(Running { core: pinned, cells, thread })
}
