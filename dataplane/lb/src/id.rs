//! Names of things in tables: small numbers, those that outlive a table checked by a generation.

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// How many low bits of a stable id are its index.
const INDEX_BITS: u32 = 20;

macro_rules! stable_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(transparent)]
        pub struct $name(u32);

        impl $name {
            /// Most slots a registry may have: 2^20.
            pub const MAX: usize = 1 << INDEX_BITS;

            /// From a slot's index and generation (its low 12 bits count).
            ///
            /// # Panics
            /// If `index` is not below [`Self::MAX`].
            #[must_use]
            pub const fn new(index: u32, generation: u16) -> Self {
                assert!((index as usize) < Self::MAX, "a registry's index has 20 bits");
                Self(index | ((generation as u32) << INDEX_BITS))
            }

            /// The slot, an index into the rows of [`crate::Tables`].
            #[must_use]
            #[inline]
            pub const fn index(self) -> usize {
                (self.0 & ((1 << INDEX_BITS) - 1)) as usize
            }

            /// The generation of the slot's user that this id was given to, 12 bits.
            #[must_use]
            #[inline]
            pub const fn generation(self) -> u16 {
                (self.0 >> INDEX_BITS) as u16
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({}#{})"), self.index(), self.generation())
            }
        }
    };
}

stable_id! {
    /// A Service port of one family, stable over restarts (its registry is in the flow file).
    ServiceId
}
stable_id! {
    /// An endpoint of one Service port, stable over restarts (its registry is in the flow file).
    BackendId
}

/// A NIC that Millrace forwards on: its index in the configuration's `interfaces`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct PortId(pub u8);

/// A worker, numbered from 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct WorkerId(pub u8);

impl WorkerId {
    /// Most workers one instance may have.
    pub const MAX: usize = 64;
}
