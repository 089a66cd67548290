//! What the control thread asks of a worker, between two bursts: a bounded mailbox, answered in bounded pieces.

use std::{sync::Arc, thread::Thread};

use crossbeam_queue::ArrayQueue;
use lb::flow::FlowRecord;

/// Slots of the flow table that one command looks at: some ten microseconds of a worker's time.
pub(crate) const EXPORT_SLOTS: u32 = 512;

/// A request. Its buffer comes along, so that the worker allocates nothing.
#[derive(Debug)]
pub(crate) struct Command {
    /// The slot to list from.
    pub(crate) from: u32,
    /// Empty, with room for [`EXPORT_SLOTS`].
    pub(crate) into: Vec<FlowRecord>,
    /// Where the answer goes.
    pub(crate) reply: Arc<Reply>,
}

/// Where the asking thread waits.
#[derive(Debug)]
pub(crate) struct Reply {
    answer: ArrayQueue<Answer>,
    asker: Thread,
}

/// What was listed, and the slot to go on from.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) next: Option<u32>,
    pub(crate) records: Vec<FlowRecord>,
}

impl Reply {
    /// For the calling thread.
    pub(crate) fn new() -> Self {
        Self { answer: ArrayQueue::new(1), asker: std::thread::current() }
    }

    /// Called by the worker.
    pub(crate) fn give(&self, answer: Answer) {
        // There is one command to a reply, so there is room; an answer that nobody waits for is dropped by the asker.
        let _ = self.answer.push(answer);
        self.asker.unpark();
    }

    /// The answer, if it is there.
    pub(crate) fn take(&self) -> Option<Answer> {
        self.answer.pop()
    }
}
