//! A chat template, which is a stranger's program.
#![no_main]

use std::collections::BTreeMap;

use experiments::generate::chat::{ChatTemplate, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    experiments_fuzz::allow_panics_of_libraries();
    let special = [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(name, text)| (name.into(), text.into()));
    let Ok(template) = ChatTemplate::new(Some(input), BTreeMap::from(special)) else { return };
    let turns = [("system", "Be brief."), ("user", "What is 2 + 2?"), ("assistant", "4"), ("user", "Why?\n\n")];
    let turns = turns.map(|(role, content)| Message::new(role, content));
    let _ = template.render(&turns, true);
    let _ = template.render(&turns[1..3], false);
    let _ = template.after_answer();
});
