//! JSON, merge and strategic merge patches: a line of object, then the patch.
#![no_main]

use coracle_api::{patch, schema};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|text: &str| {
    let Some((target, change)) = text.split_once('\n') else { return };
    let (Ok(target), Ok(change)) =
        (serde_json::from_str::<Value>(target), serde_json::from_str::<Value>(change))
    else {
        return;
    };
    drop(patch::json(target.clone(), &change));
    let mut merged = target.clone();
    patch::merge(&mut merged, change.clone());
    let pod = schema::kind("v1", "Pod").expect("the table has pods");
    drop(patch::strategic(pod, target, change));
});
