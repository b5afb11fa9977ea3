//! The JSON Schema of a plan, made from the very types that write it. `vmprof schema` prints it; a test holds real plans
//! against it.

use std::borrow::Cow;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::plan::Plan;
use crate::topology::CpuSet;

impl JsonSchema for CpuSet {
    fn schema_name() -> Cow<'static, str> {
        "IdList".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "Ids of CPUs or nodes as a kernel list, such as `0-3,8`; empty for none.",
            "pattern": "^([0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*)?$",
        })
    }
}

/// The JSON Schema (draft 2020-12) of what `vmprof plan --format json` prints.
pub fn plan_schema() -> String {
    let generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let mut schema = generator.into_root_schema_for::<Plan>();
    schema.insert("title".to_owned(), "vmprof.plan/1".into());
    let mut text = serde_json::to_string_pretty(&schema).unwrap_or_default();
    text.push('\n');
    text
}
