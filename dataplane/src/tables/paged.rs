//! A vector whose versions share what they have in common: pages of 32 elements.

use std::sync::Arc;

use crate::packet::prefetch::prefetch_whole;
use crate::packet::region::Shared;

const PAGE: usize = 32;

/// Behind the last element are copies of an earlier one, which nobody sees.
type Page<T> = Shared<[T; PAGE]>;

/// A vector that is cheap to clone and cheap to change in one place. A reader follows two
/// pointers: to the page, to the element, and reads nothing else of the page. The pages stand in huge pages.
#[derive(Debug, Clone)]
pub struct Paged<T> {
    pages: Arc<[Page<T>]>,
    len: usize,
}

impl<T: Clone> Default for Paged<T> {
    fn default() -> Self {
        Self { pages: Arc::new([]), len: 0 }
    }
}

impl<T: Clone> Paged<T> {
    /// Elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Has it no element?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The element at `index`.
    #[inline]
    #[must_use]
    pub fn get(&self, index: u32) -> Option<&T> {
        if index as usize >= self.len {
            return None;
        }
        self.pages.get(index as usize / PAGE)?.get(index as usize % PAGE)
    }

    /// Brings the element near that [`Paged::get`] will read. Waits for nothing.
    #[inline]
    pub fn prefetch(&self, index: u32) {
        let Some(element) = self.get(index) else { return };
        prefetch_whole(element);
    }

    /// The element at `index`, to be changed; its page is copied if another version has it.
    pub fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        if index as usize >= self.len {
            return None;
        }
        let page = Arc::make_mut(&mut self.pages).get_mut(index as usize / PAGE)?;
        page.make_mut().get_mut(index as usize % PAGE)
    }

    /// Appends an element: copies the last page, if another version has it, or, once in 32 times, the list
    /// of pages.
    pub fn push(&mut self, element: T) {
        if self.len.is_multiple_of(PAGE) {
            let page = Shared::new(std::array::from_fn(|_| element.clone()));
            self.pages = self.pages.iter().cloned().chain([page]).collect();
        } else if let Some(page) = Arc::make_mut(&mut self.pages).last_mut() {
            page.make_mut()[self.len % PAGE] = element;
        }
        self.len += 1;
    }

    /// Bytes of its pages, those that versions share counted once.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.pages.len() * (Page::<T>::BYTES + size_of::<Page<T>>())
    }

    /// All elements in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.pages.iter().flat_map(|page| page.iter()).take(self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_version_keeps_its_elements() {
        let mut new = Paged::default();
        for n in 0..100 {
            new.push(n);
        }
        let old = new.clone();
        *new.get_mut(70).unwrap() = 1000;
        new.push(100);
        assert_eq!((old.get(70), new.get(70)), (Some(&70), Some(&1000)));
        assert_eq!(
            (old.len(), new.len(), old.get(100), new.get(100)),
            (100, 101, None, Some(&100))
        );
        assert_eq!(old.iter().copied().collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
        assert!(new.get_mut(101).is_none());
    }

    #[test]
    fn nothing_is_behind_the_last_element() {
        let mut elements = Paged::default();
        for n in 0..66 {
            assert_eq!(elements.get(n), None);
            assert!(elements.get_mut(n).is_none());
            assert_eq!(elements.iter().count(), n as usize);
            elements.push(n);
        }
        assert_eq!(elements.iter().copied().collect::<Vec<_>>(), (0..66).collect::<Vec<_>>());
    }
}
