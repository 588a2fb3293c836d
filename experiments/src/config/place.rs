//! Where in a TOML document an error lies, as a path of keys.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Path of the innermost key or value at byte `offset` of `document`, e.g. `methods[2].awq.clip.search.n_steps`; `None`
/// between keys, or where the document is no TOML.
pub(super) fn path_at(document: &str, offset: usize) -> Option<String> {
    let root = DeTable::parse(document).ok()?;
    in_table(root.get_ref(), offset).map(|path| path.trim_start_matches('.').to_owned())
}

fn in_table(table: &DeTable<'_>, offset: usize) -> Option<String> {
    table.iter().find_map(|(key, value)| {
        let below = in_value(value, offset).or_else(|| key.span().contains(&offset).then(String::new))?;
        Some(format!(".{}{below}", key.get_ref()))
    })
}

fn in_value(value: &Spanned<DeValue<'_>>, offset: usize) -> Option<String> {
    let below = match value.get_ref() {
        DeValue::Table(table) => in_table(table, offset),
        DeValue::Array(array) => array
            .iter()
            .enumerate()
            .find_map(|(index, value)| in_value(value, offset).map(|below| format!("[{index}]{below}"))),
        _ => None,
    };
    below.or_else(|| value.span().contains(&offset).then(String::new))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const DOCUMENT: &str = r#"
question = "?"
[grids]
bits = [4, 33]
[[methods]]
rtn = {}
[[methods]]
[methods.awq]
clip = { search = { n_steps = 20 } }
"#;

    #[track_caller]
    fn check(at: &str, expected: Option<&str>) {
        assert_eq!(path_at(DOCUMENT, DOCUMENT.find(at).unwrap()).as_deref(), expected);
    }

    #[test]
    fn keys_and_values_have_paths() {
        check("question", Some("question"));
        check("bits", Some("grids.bits"));
        check("33", Some("grids.bits[1]"));
        check("rtn", Some("methods[0].rtn"));
        check("clip", Some("methods[1].awq.clip"));
        check("n_steps", Some("methods[1].awq.clip.search.n_steps"));
        check("20", Some("methods[1].awq.clip.search.n_steps"));
        assert_eq!(path_at(DOCUMENT, DOCUMENT.len()), None);
        assert_eq!(path_at("a = ", 0), None);
    }
}
