//! Flows: what is kept of each, how it is found by the keys of both directions, when it ends, and the file that
//! outlives the process.

mod allowance;
mod association;
mod entry;
mod evict;
mod expire;
mod file;
mod index;
mod key;
mod layout;
mod record;
mod spec;
mod state;
mod table;

pub use arena::Pages;
pub(crate) use association::Said;
pub use entry::FlowEntry;
pub(crate) use expire::GROUP;
pub use file::{Discarded, FlowFile, FlowFileConfig, FlowFileError, Opened, Room};
pub use key::{FlowHash, FlowHasher, FlowKey};
pub use record::{FLOW_RECORD_VERSION, FlowRecord};
pub use spec::FlowSpec;
pub use state::{Direction, FlowState};
pub(crate) use table::Guess;
pub use table::{FlowRef, FlowTable, InsertError};

pub(crate) use layout::RegistrySlot;
