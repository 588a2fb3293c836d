//! A TOML file as text and as what it says.

use std::path::Path;

use anyhow::Context;
use serde::de::DeserializeOwned;

use super::place;
use crate::encoding::{BYTE_ORDER_MARK, utf8};

/// The text of a file, without the byte order mark that some editors put there, so that columns of the first line are right; and
/// what it says. `kind` is what messages call it: `experiment`.
///
/// # Errors
/// A file that cannot be read, or a key or type that `T` does not know, with line, column and path.
pub(super) fn read<T: DeserializeOwned>(path: &Path, kind: &str) -> anyhow::Result<(String, T)> {
    let bytes =
        std::fs::read(path).with_context(|| format!("{}: cannot read the {kind}'s TOML file", path.display()))?;
    let text = utf8(path, bytes)?;
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&text).to_owned();
    let says = toml::from_str(&text).map_err(|error| {
        // A key that is missing from the file as a whole has no place in it.
        let span = error.span().filter(|span| !span.is_empty());
        let key = span.and_then(|span| place::path_at(&text, span.start));
        let place = key.map_or_else(String::new, |key| format!(", key `{key}`"));
        anyhow::anyhow!("{}: not a valid {kind}{place}: {}", path.display(), error.to_string().trim_end())
    })?;
    Ok((text, says))
}
