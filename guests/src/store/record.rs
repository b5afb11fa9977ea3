//! Records: which entries some inputs gave.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Entry, Store};
use crate::digest::Inputs;
use crate::error::{Result, failed};

/// What inputs once gave: entries by role (`root`, `kernel`, …) and facts about them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    schema: String,
    /// What was built, for people: `root of fio`.
    pub what: String,
    pub entries: Vec<RecordEntry>,
    /// Facts found while building that a reader of the record needs: a kernel release, an emulator version.
    #[serde(default)]
    pub facts: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordEntry {
    pub role: String,
    pub entry: String,
    /// Size of a file entry in bytes; `None` for a directory entry.
    pub bytes: Option<u64>,
}

const RECORD_SCHEMA: &str = "vmprof.record/1";

impl Record {
    pub fn new(what: impl Into<String>) -> Self {
        Self {
            schema: RECORD_SCHEMA.to_owned(),
            what: what.into(),
            entries: Vec::new(),
            facts: Default::default(),
        }
    }

    pub(crate) fn with(mut self, role: &str, entry: &Entry) -> Self {
        self.entries.push(RecordEntry {
            role: role.to_owned(),
            entry: entry.name.clone(),
            bytes: entry.bytes,
        });
        self
    }

    pub(crate) fn fact(mut self, name: &str, value: impl Into<String>) -> Self {
        self.facts.insert(name.to_owned(), value.into());
        self
    }
}

impl Store {
    /// What `inputs` gave, if all of it is still there with the sizes it had.
    pub fn recall(&self, inputs: Inputs) -> Option<(Record, Vec<Entry>)> {
        let record = self.recall_record(inputs)?;
        let entries: Option<Vec<_>> = record
            .entries
            .iter()
            .map(|named| self.entry(&named.entry).filter(|found| found.bytes == named.bytes))
            .collect();
        Some((record, entries?))
    }

    /// The record of `inputs` whether or not its entries are still there.
    pub fn recall_record(&self, inputs: Inputs) -> Option<Record> {
        parse(&fs::read(self.record_path(inputs)).ok()?).ok()
    }

    /// Records that `inputs` gave these entries. Call it after they are published.
    pub fn remember(&self, inputs: Inputs, record: &Record) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(record)
            .map_err(io::Error::other)
            .map_err(failed("write the record", self.record_path(inputs)))?;
        text.push(b'\n');
        let mut temp = self.temp_file()?;
        temp.write_all(&text)?;
        self.settle(&mut temp, &self.record_path(inputs), self.file_mode())
    }

    fn record_path(&self, inputs: Inputs) -> PathBuf {
        self.root.join("records").join(format!("{inputs}.json"))
    }
}

pub(super) fn parse(text: &[u8]) -> Result<Record, String> {
    let record: Record = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    match record.schema == RECORD_SCHEMA {
        true => Ok(record),
        false => Err(format!("its schema is {}, and {RECORD_SCHEMA} is understood", record.schema)),
    }
}
