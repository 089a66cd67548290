//! The control thread itself: it gathers what happens, and has it handled; after a panic it starts over.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::{Control, Event, TICK};
use crate::instance::Instance;
use crate::state::State;

/// How long to gather changes before acting on them: an editor writes a file in several steps.
const SETTLE: Duration = Duration::from_millis(10);
/// The same for what an API server says: each of its events is whole. The first after a while does not wait, and what
/// comes while it is put in force is gathered meanwhile.
const COALESCE: Duration = Duration::from_millis(1);

/// Runs until [`Event::Quit`]; starts over after a panic.
pub fn run(instance: &Arc<Instance>, state: &State, control: Control, events: &Receiver<Event>) {
    supervise(instance, state, control, events, serve);
}

/// The same with what is to be run.
pub(super) fn supervise(
    instance: &Arc<Instance>,
    state: &State,
    mut control: Control,
    events: &Receiver<Event>,
    mut serve: impl FnMut(&mut Control, &Receiver<Event>),
) {
    loop {
        let ended = catch_unwind(AssertUnwindSafe(|| serve(&mut control, events)));
        if ended.is_ok() {
            return;
        }
        instance.restarts.fetch_add(1, Ordering::Relaxed);
        tracing::error!("the control thread failed and starts over; forwarding goes on");
        // A cause that stays must not make this spin; events wait meanwhile.
        let mut pending = std::mem::take(&mut control.pending);
        // It may have failed over one.
        pending.push(Event::Network);
        let ends = Instant::now() + TICK;
        while let Ok(event) = events.recv_timeout(ends.saturating_duration_since(Instant::now())) {
            if matches!(event, Event::Quit) {
                return;
            }
            pending.push(event);
        }
        let draining = control.draining;
        control = Control::new(Arc::clone(instance), state.clone());
        (control.draining, control.pending) = (draining, pending);
        // The tables in force say which endpoints were there.
        control.first = instance.view().generation == 0;
    }
}

pub(super) fn serve(control: &mut Control, events: &Receiver<Event>) {
    control.apply();
    control.follow_flood();
    let pending = std::mem::take(&mut control.pending);
    if !pending.is_empty() && !control.handle(pending) {
        return;
    }
    let mut next_tick = Instant::now() + TICK;
    let mut done = Instant::now();
    loop {
        control.instance.beat();
        if Instant::now() >= next_tick {
            // Also while events always come.
            control.tick();
            (next_tick, done) = (Instant::now() + TICK, Instant::now());
        }
        let mut gathered = match events.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
            Ok(event) => vec![event],
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => continue,
        };
        let whole = |event: &Event| matches!(event, Event::Objects | Event::Owners);
        let settle = |event: &Event| if whole(event) { done + COALESCE } else { Instant::now() + SETTLE };
        let mut settled = settle(&gathered[0]);
        while let Ok(event) = events.recv_timeout(settled.saturating_duration_since(Instant::now())) {
            settled = settled.min(settle(&event));
            gathered.push(event);
        }
        if !control.handle(gathered) {
            return;
        }
        done = Instant::now();
    }
}
