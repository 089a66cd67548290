//! Whose frames they are: every frame has a home worker, and a stop counts them all.

use lb::WorkerId;
use xsk::Frame;

use crate::WorkerError;

/// The home of a frame that nobody has: it stays out of the game.
const NOBODY: u8 = u8::MAX;
const _: () = assert!(WorkerId::MAX < NOBODY as usize);

/// Home workers by frame index.
#[derive(Debug)]
pub(crate) struct Homes {
    home: Box<[u8]>,
    frames: usize,
}

impl Homes {
    /// From each worker's frames, of a UMEM with `frames` frames.
    ///
    /// # Errors
    ///
    /// [`WorkerError::TwoHomes`] for a frame that comes twice.
    pub(crate) fn new<'a>(frames: u32, plans: impl Iterator<Item = &'a [Frame]>) -> Result<Self, WorkerError> {
        let mut homes = Self { home: vec![NOBODY; frames as usize].into_boxed_slice(), frames: 0 };
        for (worker, frames) in plans.enumerate() {
            for frame in frames {
                let home = &mut homes.home[frame.index() as usize];
                if *home != NOBODY {
                    return Err(WorkerError::TwoHomes(frame.index()));
                }
                *home = worker as u8;
                homes.frames += 1;
            }
        }
        Ok(homes)
    }

    /// The worker that the frame came from at the start.
    #[inline]
    pub(crate) fn of(&self, frame: &Frame) -> usize {
        usize::from(self.home[frame.index() as usize])
    }

    /// Counts frames: those at hand, and how many the queues held.
    pub(crate) fn account<'a>(&self, at_hand: impl Iterator<Item = &'a Frame>, held: usize) -> FrameAccount {
        let mut seen = vec![false; self.home.len()];
        let mut account = FrameAccount { total: self.frames, held, ..FrameAccount::default() };
        for frame in at_hand {
            account.at_hand += 1;
            let seen = &mut seen[frame.index() as usize];
            account.duplicates += usize::from(*seen || self.of(frame) == usize::from(NOBODY));
            *seen = true;
        }
        account
    }
}

/// Where all frames were when the workers had ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameAccount {
    /// Given to the workers at the start.
    pub total: usize,
    /// In the workers' hands, and in rings between them.
    pub at_hand: usize,
    /// Held by queues: filled, received, in transmission.
    pub held: usize,
    /// Seen twice, or never given. Anything but 0 is a bug.
    pub duplicates: usize,
}

impl FrameAccount {
    /// Frames that are nowhere. Anything but 0 is a bug, unless a worker failed and took its frames along.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.total.saturating_sub(self.at_hand + self.held)
    }

    /// Whether each frame is in one place.
    #[must_use]
    pub fn balanced(&self) -> bool {
        self.at_hand + self.held == self.total && self.duplicates == 0
    }
}
