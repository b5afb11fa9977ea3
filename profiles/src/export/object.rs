//! JSON as people read it on a command line.

use std::fmt;

use serde_json::{Value, json};

/// A JSON object whose members stand in the order in which people look for them: what it is, then its name.
#[derive(Debug)]
pub(super) struct Object(Vec<(&'static str, Value)>);

impl Object {
    pub(super) fn of(kind: &'static str, value: &str) -> Self {
        Object(vec![(kind, json!(value))])
    }

    pub(super) fn set(&mut self, member: &'static str, value: impl serde::Serialize) {
        self.0.push((member, json!(value)));
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = '{';
        for (member, value) in &self.0 {
            write!(f, "{before}{}:{value}", json!(member))?;
            before = ',';
        }
        f.write_str("}")
    }
}

impl Object {
    /// The value of a member.
    #[cfg(test)]
    pub(super) fn get(&self, member: &str) -> Option<&Value> {
        self.0.iter().find(|(name, _)| *name == member).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_keep_their_order_and_their_quotes() {
        let mut object = Object::of("driver", "file");
        object.set("name", "a \"b\"");
        object.set("list", [1, 2]);
        assert_eq!(object.to_string(), r#"{"driver":"file","name":"a \"b\"","list":[1,2]}"#);
    }
}
