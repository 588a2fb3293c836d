//! Which comparisons need not be measured again: those whose newest record was made on this CPU, with as many threads, by this
//! commit of the program. A time says nothing of another machine, and a program that was built again may be faster.

use std::collections::BTreeMap;

use super::asked::Comparison;
use super::record::{SpeedLine, SpeedRecord};
use crate::progress::Progress;
use crate::provenance::Provenance;

/// Digits of a commit in messages.
const SHOWN_DIGITS: usize = 7;

/// Those of `all` that are to be measured; says of records that do not count why.
pub(super) fn to_measure<'a>(
    all: Vec<Comparison<'a>>,
    records: &[SpeedLine],
    progress: &Progress,
) -> Vec<Comparison<'a>> {
    let done = records.iter().filter_map(|line| match line {
        SpeedLine::Done(record) => Some(&**record),
        SpeedLine::Failed(_) => None,
    });
    let newest: BTreeMap<&str, &SpeedRecord> = done.map(|record| (record.id.as_str(), record)).collect();
    let mut outdated: BTreeMap<String, usize> = BTreeMap::new();
    let mut needs_measuring = |one: &Comparison<'_>| {
        let Some(record) = newest.get(one.id().as_str()) else { return true };
        let changes = changes(&record.provenance, &Provenance::collect(one.device(), one.threads, BTreeMap::new()));
        if changes.is_empty() {
            return false;
        }
        *outdated.entry(changes.join(", ")).or_default() += 1;
        true
    };
    let todo: Vec<Comparison<'a>> = all.into_iter().filter(&mut needs_measuring).collect();
    for (changes, n) in outdated {
        let (count, them) = if n == 1 {
            ("1 speed comparison".to_owned(), "it is")
        } else {
            (format!("{n} speed comparisons"), "they are")
        };
        progress.note(&format!("{count} on record, but measured otherwise ({changes}): {them} measured again"));
    }
    todo
}

/// What decides times and is not the same: `commit 0123456 -> 89abcde`.
fn changes(then: &Provenance, now: &Provenance) -> Vec<String> {
    let short = |commit: &str| commit.chars().take(SHOWN_DIGITS).collect::<String>();
    let facts = [
        ("CPU", then.cpu.clone(), now.cpu.clone()),
        ("threads", then.threads.to_string(), now.threads.to_string()),
        ("commit", short(&then.commit), short(&now.commit)),
    ];
    facts
        .into_iter()
        .filter(|(_, then, now)| then != now)
        .map(|(name, then, now)| format!("{name} {then} -> {now}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_belongs_to_a_cpu_its_threads_and_a_commit() {
        let now = Provenance::collect("cpu", 2, BTreeMap::new());
        let then = |change: &dyn Fn(&mut Provenance)| {
            let mut then = now.clone();
            change(&mut then);
            changes(&then, &now)
        };
        assert_eq!(then(&|_| ()), [""; 0]);
        assert_eq!(then(&|then| then.unix_time = 0), [""; 0], "when it was measured does not matter");
        assert_eq!(then(&|then| then.threads = 8), ["threads 8 -> 2"]);
        assert_eq!(then(&|then| then.cpu = "Old".into()), [format!("CPU Old -> {}", now.cpu)]);
        let both = then(&|then| (then.cpu, then.commit) = ("Old".into(), "0123456789".into()));
        assert_eq!(both.len(), 2);
        assert!(both[1].starts_with("commit 0123456 -> "), "{both:?}");
    }
}
