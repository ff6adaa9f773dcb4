//! The OpenAPI description of the HTTP interface, against which answers are checked.

use std::{collections::BTreeSet, sync::LazyLock};

use serde_json::Value;

/// The document that nodes serve.
pub static DESCRIPTION: LazyLock<Value> = LazyLock::new(|| {
    let text = include_str!("../../crates/ws-cluster/src/server/openapi.json");
    serde_json::from_str(text).expect("the description is JSON")
});

/// A method in small letters, a path and a status.
pub type Answered = (String, String, u16);

/// Returns every status that the document has.
pub fn documented() -> BTreeSet<Answered> {
    let paths = DESCRIPTION["paths"].as_object().expect("paths");
    let operations = paths.iter().flat_map(|(path, item)| {
        item.as_object().expect("an item").iter().map(move |(method, operation)| (path, method, operation))
    });
    let statuses = operations.flat_map(|(path, method, operation)| {
        let statuses = operation["responses"].as_object().expect("responses").keys();
        statuses.map(move |status| (method.clone(), path.clone(), status.parse().expect("a status")))
    });
    statuses.collect()
}

/// Checks that an answer is in the document, if its path is.
///
/// # Panics
/// Panics if the document does not have the status.
pub fn check(method: &str, path: &str, status: u16) {
    let (method, item) = (method.to_lowercase(), &DESCRIPTION["paths"][path]);
    if item.is_null() {
        return;
    }
    let expected = match &item[&method]["responses"] {
        Value::Null => [405, 429].contains(&status),
        responses => !responses[status.to_string()].is_null(),
    };
    assert!(expected, "the answer {status} to {method} {path} is not in openapi.json");
}
