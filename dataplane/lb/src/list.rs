//! A list that shares with its copies what they have in common.
//!
//! It is kept in pieces. A copy costs a reference a piece, a change the piece that it is in, and who compares two lists
//! can pass over the pieces that are the same.

use std::ops::Index;
use std::sync::Arc;

/// Items of a piece; all pieces but the last have as many.
const PIECE: usize = if cfg!(test) { 2 } else { 64 };

/// An ordered list that is cheap to copy.
#[derive(Clone, Debug)]
pub struct List<T> {
    pieces: Vec<Arc<Vec<T>>>,
    len: usize,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { pieces: Vec::new(), len: 0 }
    }
}

impl<T> List<T> {
    /// How many items it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The item at this place.
    #[must_use]
    #[inline]
    pub fn get(&self, at: usize) -> Option<&T> {
        self.pieces.get(at / PIECE)?.get(at % PIECE)
    }

    /// All items.
    pub fn iter(&self) -> impl Iterator<Item = &T> + Clone {
        self.pieces.iter().flat_map(|piece| piece.iter())
    }

    /// The items from this place on.
    pub fn iter_from(&self, at: usize) -> impl Iterator<Item = &T> + Clone {
        let pieces = self.pieces.get(at / PIECE..).unwrap_or_default();
        pieces.iter().flat_map(|piece| piece.iter()).skip(at % PIECE)
    }

    /// The pieces, in order.
    #[must_use]
    pub fn pieces(&self) -> &[Arc<Vec<T>>] {
        &self.pieces
    }

    /// The items of the pieces that are not `other`'s as well, at the same place.
    pub fn without_shared<'l>(&'l self, other: &'l Self) -> impl Iterator<Item = &'l T> + Clone {
        let own = self.pieces.iter().enumerate().filter(|&(at, _)| !self.shares(at, other));
        own.flat_map(|(_, piece)| piece.iter())
    }

    /// Whether both have the very same piece at this place.
    #[must_use]
    pub fn shares(&self, at: usize, other: &Self) -> bool {
        matches!((self.pieces.get(at), other.pieces.get(at)), (Some(a), Some(b)) if Arc::ptr_eq(a, b))
    }

    /// Whether both have as many items, and items at equal places that are not shared are the same by `same`.
    pub fn is_like(&self, other: &Self, mut same: impl FnMut(&T, &T) -> bool) -> bool {
        let mut pairs = self.without_shared(other).zip(other.without_shared(self));
        self.len == other.len && pairs.all(|(a, b)| same(a, b))
    }

    /// How many items from the front on are so, if those that are so come first.
    pub fn partition_point(&self, mut is_so: impl FnMut(&T) -> bool) -> usize {
        let at = self.pieces.partition_point(|piece| piece.last().is_some_and(&mut is_so));
        self.pieces.get(at).map_or(self.len, |piece| at * PIECE + piece.partition_point(is_so))
    }

    /// Whether the next item begins a piece, so that [`List::share`] may follow.
    #[must_use]
    pub fn is_even(&self) -> bool {
        self.len.is_multiple_of(PIECE)
    }

    /// Adds a piece of another list.
    ///
    /// # Panics
    /// If it has not as many items as all others but the last have.
    pub fn share(&mut self, piece: &Arc<Vec<T>>) {
        assert!(self.is_even(), "only the last piece has fewer items");
        self.len += piece.len();
        self.pieces.push(Arc::clone(piece));
    }
}

impl<T: Clone> List<T> {
    /// Adds an item.
    pub fn push(&mut self, item: T) {
        match self.pieces.last_mut().filter(|_| !self.len.is_multiple_of(PIECE)) {
            Some(last) => Arc::make_mut(last).push(item),
            None => {
                let mut piece = Vec::with_capacity(PIECE);
                piece.push(item);
                self.pieces.push(Arc::new(piece));
            }
        }
        self.len += 1;
    }

    /// Puts another item in this place, which there must be.
    ///
    /// # Panics
    /// If there is no such place.
    pub fn set(&mut self, at: usize, item: T) {
        Arc::make_mut(&mut self.pieces[at / PIECE])[at % PIECE] = item;
    }

    /// Adds the item until there are so many.
    pub fn fill(&mut self, len: usize, item: &T) {
        while self.len < len {
            self.push(item.clone());
        }
    }

    /// All items, to be changed; nothing is shared any more.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.pieces.iter_mut().flat_map(|piece| Arc::make_mut(piece).iter_mut())
    }
}

impl<T> Index<usize> for List<T> {
    type Output = T;

    fn index(&self, at: usize) -> &T {
        &self.pieces[at / PIECE][at % PIECE]
    }
}

impl<T: PartialEq> PartialEq for List<T> {
    fn eq(&self, other: &Self) -> bool {
        self.is_like(other, |a, b| a == b)
    }
}

impl<T> FromIterator<T> for List<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut items = items.into_iter();
        let mut list = Self::default();
        loop {
            let piece: Vec<T> = items.by_ref().take(PIECE).collect();
            if piece.is_empty() {
                return list;
            }
            list.share(&Arc::new(piece));
        }
    }
}

impl<T> From<Vec<T>> for List<T> {
    fn from(items: Vec<T>) -> Self {
        items.into_iter().collect()
    }
}

impl<T, const N: usize> From<[T; N]> for List<T> {
    fn from(items: [T; N]) -> Self {
        items.into_iter().collect()
    }
}

impl<T: Clone> Extend<T> for List<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, items: I) {
        items.into_iter().for_each(|item| self.push(item));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_list_is_as_a_vector_and_shares_what_was_not_touched(
            len in 0usize..300, at in 0usize..300, more in 0usize..70, bound in 0usize..300,
        ) {
            let items: Vec<usize> = (0..len).collect();
            let list: List<usize> = items.clone().into();
            let (mut changed, mut now) = (list.clone(), items.clone());
            if at < len {
                changed.set(at, 1000);
                now[at] = 1000;
            }
            changed.extend(0..more);
            now.extend(0..more);
            prop_assert!(list.iter().eq(&items) && changed.iter().eq(&now));
            prop_assert_eq!((changed.len(), changed.is_empty()), (now.len(), now.is_empty()));
            prop_assert!((0..now.len() + 1).all(|at| changed.get(at) == now.get(at)));
            prop_assert_eq!(changed == list, now == items);
            let touched = |piece: usize| at / PIECE == piece && at < len || more > 0 && piece >= len / PIECE;
            for piece in 0..list.pieces().len() {
                prop_assert_eq!(list.shares(piece, &changed), !touched(piece), "piece {}", piece);
            }
            prop_assert!(list.iter_from(at).eq(items.iter().skip(at)));
            prop_assert_eq!(list.partition_point(|item| *item < bound), bound.min(len));
            let mut again = List::default();
            for piece in changed.pieces() {
                prop_assert!(again.is_even());
                again.share(piece);
            }
            prop_assert!(again.without_shared(&changed).next().is_none());
            let mut filled = again;
            filled.fill(400, &7);
            prop_assert!(filled.iter().eq(now.iter().chain(std::iter::repeat_n(&7, 400 - now.len()))));
            filled.iter_mut().for_each(|item| *item += 1);
            prop_assert!(changed.iter().zip(filled.iter()).all(|(a, b)| a + 1 == *b));
        }
    }
}
