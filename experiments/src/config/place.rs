//! Where in a TOML document an error lies: from a byte to a path of keys, and from a path to its line and column.

use std::ops::Range;

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

/// `line 12, column 3` of the value at `path`, which is spelled as [`path_at`] does it; `None` where there is none.
pub(super) fn position_of(document: &str, path: &str) -> Option<String> {
    let root = DeTable::parse(document).ok()?;
    let before = document.get(..span_in_table(root.get_ref(), path)?.start)?;
    let line_start = before.rfind('\n').map_or(0, |end| end + 1);
    let (line, column) = (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1);
    Some(format!("line {line}, column {column}"))
}

fn span_in_table(table: &DeTable<'_>, path: &str) -> Option<Range<usize>> {
    table.iter().find_map(|(key, value)| span_in_value(value, path.strip_prefix(key.get_ref().as_ref())?))
}

fn span_in_value(value: &Spanned<DeValue<'_>>, path: &str) -> Option<Range<usize>> {
    if path.is_empty() {
        return Some(value.span());
    }
    match value.get_ref() {
        DeValue::Table(table) => span_in_table(table, path.strip_prefix('.')?),
        DeValue::Array(array) => {
            let (index, below) = path.strip_prefix('[')?.split_once(']')?;
            span_in_value(array.get(index.parse::<usize>().ok()?)?, below)
        }
        _ => None,
    }
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

    #[test]
    fn paths_have_lines_and_columns() {
        let place = |path: &str| position_of(DOCUMENT, path);
        assert_eq!(place("question").as_deref(), Some("line 2, column 12"));
        assert_eq!(place("grids.bits[1]").as_deref(), Some("line 4, column 12"));
        assert_eq!(place("methods[0].rtn").as_deref(), Some("line 6, column 7"));
        assert_eq!(place("methods[1].awq.clip.search.n_steps").as_deref(), Some("line 9, column 31"));
        for nowhere in ["", "quest", "grids.bits[2]", "grids.bits[x]", "grids.bits.1", "question.more"] {
            assert_eq!(place(nowhere), None, "{nowhere}");
        }
        // Counted in characters; a key with a dot in it is one key.
        let document = "note = [\"ä\", { \"SmolLM2-1.7B\" = 1 }]";
        assert_eq!(position_of(document, "note[1].SmolLM2-1.7B").as_deref(), Some("line 1, column 33"));
    }
}
