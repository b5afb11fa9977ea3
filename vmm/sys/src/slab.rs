//! Numbered places that are used again: what an engine holds for the kernel, by the number that comes back with its end.

#[derive(Debug)]
pub(crate) struct Slab<V> {
    entries: Vec<Entry<V>>,
    free: Option<usize>,
    used: usize,
}

#[derive(Debug)]
enum Entry<V> {
    Free { next: Option<usize> },
    Used(V),
}

impl<V> Slab<V> {
    pub(crate) const fn new() -> Self {
        Slab { entries: Vec::new(), free: None, used: 0 }
    }

    /// How many places are in use.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// One more than the highest number that was ever given.
    pub(crate) fn bound(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut V> {
        match self.entries.get_mut(index)? {
            Entry::Used(value) => Some(value),
            Entry::Free { .. } => None,
        }
    }

    /// Puts a value into a free place, which it has until it is removed.
    pub(crate) fn insert(&mut self, value: V) -> usize {
        self.used += 1;
        match self.free {
            Some(index) => {
                let before = std::mem::replace(&mut self.entries[index], Entry::Used(value));
                if let Entry::Free { next } = before {
                    self.free = next;
                }
                index
            }
            None => {
                self.entries.push(Entry::Used(value));
                self.entries.len() - 1
            }
        }
    }

    pub(crate) fn remove(&mut self, index: usize) -> Option<V> {
        let entry = self.entries.get_mut(index).filter(|entry| matches!(entry, Entry::Used(_)))?;
        let Entry::Used(value) = std::mem::replace(entry, Entry::Free { next: self.free }) else {
            return None;
        };
        self.free = Some(index);
        self.used -= 1;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_used_again_and_values_stay_at_theirs() {
        let mut slab = Slab::new();
        let places: Vec<usize> = ["a", "b", "c"].map(|value| slab.insert(value)).to_vec();
        assert_eq!(slab.remove(places[1]), Some("b"));
        assert_eq!(slab.remove(places[1]), None, "once");
        assert_eq!(slab.remove(99), None);
        assert_eq!(slab.insert("d"), places[1]);
        assert_eq!(
            (slab.get_mut(places[0]).copied(), slab.get_mut(places[1]).copied()),
            (Some("a"), Some("d"))
        );
        assert_eq!((slab.used(), slab.bound()), (3, 3));
    }
}
