//! Label selectors, as text and as objects.
#![no_main]

use coracle_api::selector::LabelSelector;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(selector) = LabelSelector::parse(text) {
        selector.matches(|key| (key.len() % 2 == 0).then_some("value"));
    }
    if let Ok(value) = serde_json::from_str(text) {
        drop(LabelSelector::from_value(&value));
    }
});
