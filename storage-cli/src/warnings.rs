//! What the server finds odd about rules and quotas, such as that one gives nothing; told to people on stderr.

use serde_json::Value;

use crate::api::{self, Api};
use crate::tell;

/// All that an answer has.
pub(crate) fn tell_all(answer: &Value) {
    for warning in of(answer) {
        tell(format_args!("warning: {warning}"));
    }
}

/// Those about the one that was just stored under this name. `list`: where they are listed; `kind`: what each is called
/// there. It is stored whatever becomes of this question, so that is no failure.
pub(crate) async fn tell_of(api: &Api, list: &str, kind: &str, name: &str) {
    let Ok(answer) = api.ask(&api::path(&[list])).await else {
        tell(format_args!(
            "warning: it is stored, but whether the server finds something odd about it could not be asked"
        ));
        return;
    };
    // As the server begins each: it has no other mark of what it is about.
    let about = format!("stored {kind} {name:?}: ");
    for warning in of(&answer).filter(|warning| warning.starts_with(&about)) {
        tell(format_args!("warning: {warning}"));
    }
}

fn of(answer: &Value) -> impl Iterator<Item = &str> {
    let warnings = answer.get("warnings").and_then(Value::as_array);
    warnings.into_iter().flatten().filter_map(Value::as_str)
}
