//! `iothread-set`: what of a running IOThread is to change, as it is asked for and answered.

use serde::{Deserialize, Serialize};
use vmprof_vmm::config::Polling;

/// The arguments. What is left out stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct IothreadSet {
    /// Its name, or its number.
    pub id: String,
    /// Where it may run from now on, as a kernel list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpuset: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_max_ns: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_grow: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_shrink: Option<u32>,
    /// Whether it takes the times of its requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<bool>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retuned {
    /// Its name.
    pub id: String,
    pub before: Tuning,
    pub after: Tuning,
    /// Workers of io_uring, by their thread ids, that this kernel lets nobody move: they stay where they were until they end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unmoved_workers: Vec<i32>,
}

/// What can change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Tuning {
    /// A kernel list; empty is all that the process may use.
    pub cpuset: String,
    pub poll_max_ns: u64,
    pub poll_grow: u32,
    pub poll_shrink: u32,
    pub latency: bool,
}

impl IothreadSet {
    /// The polling that results, where any of it was asked for.
    pub fn polling(&self, before: Polling) -> Option<Polling> {
        let after = Polling {
            max_ns: self.poll_max_ns.unwrap_or(before.max_ns),
            grow: self.poll_grow.unwrap_or(before.grow),
            shrink: self.poll_shrink.unwrap_or(before.shrink),
        };
        (after != before).then_some(after)
    }

    /// Whether an IOThread is meant.
    pub fn means(&self, id: u32, name: &str) -> bool {
        self.id == name || self.id.parse() == Ok(id)
    }
}

impl Retuned {
    /// A line for each value, and what became of it.
    pub fn text(&self) -> String {
        let Retuned { id, before, after, unmoved_workers } = self;
        let unbound = |cpuset: &str| if cpuset.is_empty() { "any" } else { cpuset }.to_owned();
        let switch = |on| if on { "on" } else { "off" }.to_owned();
        let rows = [
            ("cpuset", unbound(&before.cpuset), unbound(&after.cpuset)),
            ("poll-max-ns", before.poll_max_ns.to_string(), after.poll_max_ns.to_string()),
            ("poll-grow", before.poll_grow.to_string(), after.poll_grow.to_string()),
            ("poll-shrink", before.poll_shrink.to_string(), after.poll_shrink.to_string()),
            ("latency", switch(before.latency), switch(after.latency)),
        ];
        let row = |(what, before, after): &(&str, String, String)| match before == after {
            true => format!("  {what:<12} {before}\n"),
            false => format!("  {what:<12} {before} → {after}\n"),
        };
        let stays = |tid: &i32| {
            format!("  iou-wrk {tid} stays where it was until it ends: this kernel lets nobody move it\n")
        };
        let stay: String = unmoved_workers.iter().map(stays).collect();
        format!("{id}\n{}{stay}", rows.iter().map(row).collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_stays_and_what_is_not_known_is_refused() {
        let set: IothreadSet = serde_json::from_str(r#"{"id":"0","poll-max-ns":7,"latency":true}"#).unwrap();
        let before = Polling { max_ns: 5, grow: 3, shrink: 2 };
        assert_eq!(set.polling(before), Some(Polling { max_ns: 7, ..before }));
        assert_eq!(set.polling(Polling { max_ns: 7, ..before }), None);
        assert!(set.means(0, "iothread0") && !set.means(1, "iothread1"));
        for wrong in [r#"{"id":"0","poll_max_ns":7}"#, "{}", r#"{"id":"0","poll-max-ns":-1}"#, r#"{"id":0}"#]
        {
            serde_json::from_str::<IothreadSet>(wrong).unwrap_err();
        }
    }

    #[test]
    fn only_what_changed_has_an_arrow() {
        let before =
            Tuning { cpuset: String::new(), poll_max_ns: 0, poll_grow: 0, poll_shrink: 0, latency: false };
        let after = Tuning { cpuset: "3".into(), poll_max_ns: 32_768, ..before.clone() };
        let text = Retuned { id: "iothread0".into(), before, after, unmoved_workers: vec![170] }.text();
        assert_eq!(
            text,
            "iothread0\n  cpuset       any → 3\n  poll-max-ns  0 → 32768\n  poll-grow    0\n  poll-shrink  0\n  latency      off\n  \
             iou-wrk 170 stays where it was until it ends: this kernel lets nobody move it\n"
        );
    }
}
