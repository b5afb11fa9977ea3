//! How plans and hosts read as text. Pure: data in, `String` out; the caller prints it.

mod grid;
mod host;
mod plan;

pub use host::{host_json, host_text};
pub use plan::plan_text;
