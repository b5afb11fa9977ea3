//! Arguments in, exit code out.

#![allow(dead_code)]
mod args;
mod lab;
mod places;
mod report;
mod run;
mod verify;

fn main() {}
