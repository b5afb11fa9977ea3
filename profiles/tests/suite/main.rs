//! The profile language, the topology reader and the planner from outside: fixtures, golden plans, rendered
//! diagnostics, properties over made-up hosts, and every KDL block of the documentation.

mod conditions;
mod diagnostics;
mod docs;
mod exact;
mod exports;
mod facts;
mod fixtures;
mod golden;
mod host;
mod hwloc;
mod imports;
mod ladder;
mod language;
mod layers;
mod lints;
mod oddities;
mod plans;
mod properties;
mod shipped;
mod topology;
mod views;
