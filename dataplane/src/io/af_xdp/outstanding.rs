//! Which chunks one port has given to the kernel.

/// A set of chunk numbers.
#[derive(Debug)]
pub(super) struct Outstanding {
    words: Box<[u64]>,
    count: usize,
}

impl Outstanding {
    /// An empty set over `chunks` chunks.
    pub(super) fn new(chunks: usize) -> Self {
        Self { words: vec![0; chunks.div_ceil(64)].into_boxed_slice(), count: 0 }
    }

    /// Chunks in the set.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Adds a chunk that is not in the set.
    #[inline]
    pub(super) fn insert(&mut self, chunk: usize) {
        debug_assert_eq!(self.words[chunk / 64] >> (chunk % 64) & 1, 0, "chunk {chunk} is out");
        self.words[chunk / 64] |= 1 << (chunk % 64);
        self.count += 1;
    }

    /// Takes a chunk out; was it in the set? False for a number outside of the UMEM too.
    #[inline]
    pub(super) fn remove(&mut self, chunk: usize) -> bool {
        let Some(word) = self.words.get_mut(chunk / 64) else { return false };
        let bit = 1 << (chunk % 64);
        let was_in = *word & bit != 0;
        *word &= !bit;
        self.count -= usize::from(was_in);
        was_in
    }

    /// Takes out any chunk.
    pub(super) fn pop(&mut self) -> Option<usize> {
        let index = self.words.iter().position(|&w| w != 0)?;
        let bit = self.words[index].trailing_zeros() as usize;
        self.words[index] &= self.words[index] - 1;
        self.count -= 1;
        Some(index * 64 + bit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_chunk_comes_out_once() {
        let mut set = Outstanding::new(100);
        for chunk in [0, 63, 64, 99] {
            set.insert(chunk);
        }
        assert!(set.remove(63) && !set.remove(63) && !set.remove(5) && !set.remove(4000));
        assert_eq!(set.len(), 3);
        assert_eq!(
            [set.pop(), set.pop(), set.pop(), set.pop()],
            [Some(0), Some(64), Some(99), None]
        );
        assert_eq!(set.len(), 0);
    }
}
