//! Who has which place in a table.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::packet::meta::Route;

/// Names by place; the lowest free place is used first.
#[derive(Debug, Default)]
pub(super) struct Names {
    names: Vec<Option<String>>,
    free: BinaryHeap<Reverse<u32>>,
}

impl Names {
    /// A place for `name`: a free one, or one more.
    pub(super) fn claim(&mut self, name: &str) -> u32 {
        if let Some(Reverse(place)) = self.free.pop()
            && let Some(free) = self.names.get_mut(place as usize)
        {
            *free = Some(name.to_owned());
            return place;
        }
        self.names.push(Some(name.to_owned()));
        u32::try_from(self.names.len() - 1).unwrap_or(Route::MAX_INDEX)
    }

    /// Nobody has that place any more.
    pub(super) fn release(&mut self, place: u32) {
        if let Some(name) = self.names.get_mut(place as usize)
            && name.take().is_some()
        {
            self.free.push(Reverse(place));
        }
    }

    /// Who has that place.
    pub(super) fn get(&self, place: u32) -> Option<&str> {
        self.names.get(place as usize)?.as_deref()
    }

    /// All names, by place.
    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.names.iter().filter_map(Option::as_deref)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_place_is_used_first() {
        let mut names = Names::default();
        assert_eq!(["a", "b", "c"].map(|name| names.claim(name)), [0, 1, 2]);
        names.release(2);
        names.release(0);
        names.release(0);
        assert_eq!((names.get(0), names.get(1)), (None, Some("b")));
        assert_eq!(["d", "e", "f"].map(|name| names.claim(name)), [0, 2, 3]);
        assert_eq!(names.iter().collect::<Vec<_>>(), ["d", "b", "e", "f"]);
    }
}
