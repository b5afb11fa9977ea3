//! Paths and what stands at them, thousands at a time: all text in one buffer, found by binary search. A capture of a
//! large host has ten thousand entries, and a string of its own for each would cost more than planning does.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What an entry's value is in a capture file.
pub(super) trait Shape {
    /// What a reader of the file is told to expect.
    const EXPECTED: &'static str;
    fn write<S: SerializeMap>(map: &mut S, path: &str, value: &str) -> Result<(), S::Error>;
    fn read<'de, D: Deserializer<'de>>(value: D, buffer: &mut String) -> Result<(), D::Error>;
}

/// A text.
#[derive(Debug)]
pub(super) struct Text;

/// The names in a directory. In the buffer they stand one after the other, each before a `/`, which no name holds.
#[derive(Debug)]
pub(super) struct Names;

/// Sorted paths with their values.
pub(super) struct Table<T> {
    buffer: String,
    entries: Vec<Entry>,
    shape: PhantomData<fn() -> T>,
}

#[derive(Debug, Clone)]
struct Entry {
    path: Range<usize>,
    value: Range<usize>,
}

impl<T> Table<T> {
    /// What stands at `path`.
    pub(super) fn get(&self, path: &str) -> Option<&str> {
        self.get_after(path, &Cell::default())
    }

    /// The same, looking first behind the entry `last`, which is the one that was found before: much of a table is
    /// asked for in its own order.
    pub(super) fn get_after(&self, path: &str, last: &Cell<usize>) -> Option<&str> {
        let next = last.get() + 1;
        let here = self.entries.get(next).is_some_and(|entry| self.text(&entry.path) == path);
        let found = || self.entries.binary_search_by(|entry| self.text(&entry.path).cmp(path)).ok();
        let at = if here { next } else { found()? };
        last.set(at);
        self.entries.get(at).map(|entry| self.text(&entry.value))
    }

    fn text(&self, range: &Range<usize>) -> &str {
        self.buffer.get(range.clone()).unwrap_or_default()
    }

    fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|entry| (self.text(&entry.path), self.text(&entry.value)))
    }

    /// Adds an entry; `finish` makes it findable.
    fn push(&mut self, path: &str, value: &str) {
        let start = self.buffer.len();
        self.buffer.push_str(path);
        let middle = self.buffer.len();
        self.buffer.push_str(value);
        self.entries.push(Entry { path: start..middle, value: middle..self.buffer.len() });
    }

    /// Sorts; of entries for one path the last counts, as in any JSON object.
    fn finish(mut self) -> Self {
        let buffer = std::mem::take(&mut self.buffer);
        let path = |entry: &Entry| buffer.get(entry.path.clone()).unwrap_or_default();
        if !self.entries.is_sorted_by(|a, b| path(a) < path(b)) {
            self.entries.sort_by(|a, b| path(a).cmp(path(b)));
            self.entries.reverse();
            self.entries.dedup_by(|a, b| path(a) == path(b));
            self.entries.reverse();
        }
        self.buffer = buffer;
        self
    }
}

impl Table<Names> {
    /// The names in a directory, in the file's order.
    pub(super) fn names(&self, path: &str) -> impl Iterator<Item = &str> {
        self.get(path).unwrap_or_default().split_terminator('/')
    }
}

impl<T> FromIterator<(String, String)> for Table<T> {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(entries: I) -> Self {
        let mut table = Table::default();
        entries.into_iter().for_each(|(path, value)| table.push(&path, &value));
        table.finish()
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table { buffer: String::new(), entries: Vec::new(), shape: PhantomData }
    }
}

impl<T> Clone for Table<T> {
    fn clone(&self) -> Self {
        Table { buffer: self.buffer.clone(), entries: self.entries.clone(), shape: PhantomData }
    }
}

impl<T> PartialEq for Table<T> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<T> Eq for Table<T> {}

impl<T> fmt::Debug for Table<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<T: Shape> Serialize for Table<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.entries.len()))?;
        for (path, value) in self.iter() {
            T::write(&mut map, path, value)?;
        }
        map.end()
    }
}

impl<'de, T: Shape> Deserialize<'de> for Table<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);
        impl<'de, T: Shape> Visitor<'de> for Entries<T> {
            type Value = Table<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "paths, each with {}", T::EXPECTED)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Table<T>, A::Error> {
                let mut table = Table::<T>::default();
                loop {
                    let start = table.buffer.len();
                    let key = Value::<Text>(&mut table.buffer, PhantomData);
                    if map.next_key_seed(key)?.is_none() {
                        return Ok(table.finish());
                    }
                    let middle = table.buffer.len();
                    map.next_value_seed(Value::<T>(&mut table.buffer, PhantomData))?;
                    table.entries.push(Entry { path: start..middle, value: middle..table.buffer.len() });
                }
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

/// Puts a value straight into the buffer.
struct Value<'b, T>(&'b mut String, PhantomData<T>);

impl<'de, T: Shape> DeserializeSeed<'de> for Value<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        T::read(deserializer, self.0)
    }
}

impl Shape for Text {
    const EXPECTED: &'static str = "a text";

    fn write<S: SerializeMap>(map: &mut S, path: &str, value: &str) -> Result<(), S::Error> {
        map.serialize_entry(path, value)
    }

    fn read<'de, D: Deserializer<'de>>(value: D, buffer: &mut String) -> Result<(), D::Error> {
        struct Into<'b>(&'b mut String);
        impl Visitor<'_> for Into<'_> {
            type Value = ();

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_str<E>(self, text: &str) -> Result<(), E> {
                self.0.push_str(text);
                Ok(())
            }
        }
        value.deserialize_str(Into(buffer))
    }
}

impl Shape for Names {
    const EXPECTED: &'static str = "a list of names";

    fn write<S: SerializeMap>(map: &mut S, path: &str, value: &str) -> Result<(), S::Error> {
        let names: Vec<&str> = value.split_terminator('/').collect();
        map.serialize_entry(path, &names)
    }

    fn read<'de, D: Deserializer<'de>>(value: D, buffer: &mut String) -> Result<(), D::Error> {
        struct Each<'b>(&'b mut String);
        impl<'de> Visitor<'de> for Each<'_> {
            type Value = ();

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of names")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<(), A::Error> {
                while names.next_element_seed(Value::<Text>(self.0, PhantomData))?.is_some() {
                    self.0.push('/');
                }
                Ok(())
            }
        }
        value.deserialize_seq(Each(buffer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_find_what_a_file_names_in_any_order() {
        let table: Table<Text> = serde_json::from_str(r#"{"/b":"2\n","/a":"1","/c":"","/a":"3"}"#).unwrap();
        assert_eq!((table.get("/a"), table.get("/b"), table.get("/c")), (Some("3"), Some("2\n"), Some("")));
        assert_eq!((table.get("/d"), table.get("")), (None, None));
        let last = Cell::new(0);
        for (path, text) in
            [("/b", Some("2\n")), ("/c", Some("")), ("/c", Some("")), ("/d", None), ("/a", Some("3"))]
        {
            assert_eq!(table.get_after(path, &last), text, "{path}");
        }
        assert_eq!(serde_json::to_string(&table).unwrap(), r#"{"/a":"3","/b":"2\n","/c":""}"#);
    }

    #[test]
    fn names_come_back_as_they_were() {
        let text = r#"{"/x":["b","a"],"/y":[]}"#;
        let table: Table<Names> = serde_json::from_str(text).unwrap();
        assert_eq!(table.names("/x").collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!((table.names("/y").count(), table.names("/z").count()), (0, 0));
        assert_eq!(serde_json::to_string(&table).unwrap(), text);
        assert!(serde_json::from_str::<Table<Names>>(r#"{"/x":"a"}"#).is_err());
        assert!(serde_json::from_str::<Table<Text>>(r#"{"/x":["a"]}"#).is_err());
    }
}
