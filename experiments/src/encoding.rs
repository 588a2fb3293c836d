//! Text files as UTF-8; any other encoding is named with the way out of it.

use std::path::Path;

use anyhow::{Context, bail};

/// The byte order mark that some editors put in front of UTF-8.
pub(crate) const BYTE_ORDER_MARK: char = '\u{feff}';

/// Marks with which a text in another encoding begins. UTF-32's first: it begins as UTF-16's does.
const OTHER_MARKS: [(&[u8], &str); 4] =
    [(b"\xff\xfe\0\0", "UTF-32"), (b"\0\0\xfe\xff", "UTF-32"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16")];

/// The text of `path`, with its byte order mark if it has one.
///
/// # Errors
/// A file that cannot be read, and as [`utf8`].
pub(crate) fn read_utf8(path: &Path) -> anyhow::Result<String> {
    utf8(path, std::fs::read(path).with_context(|| format!("{}: cannot read", path.display()))?)
}

/// The text of `path`, whose bytes are given.
///
/// # Errors
/// Bytes that are not UTF-8; the message says what they are, and how to convert them.
pub(crate) fn utf8(path: &Path, bytes: Vec<u8>) -> anyhow::Result<String> {
    let place = path.display();
    if let Some((_, encoding)) = OTHER_MARKS.iter().find(|(mark, _)| bytes.starts_with(mark)) {
        bail!("{place}: is {encoding}, as its byte order mark says; convert it with `iconv -f {encoding} -t UTF-8`");
    }
    String::from_utf8(bytes).map_err(|error| {
        let first = error.utf8_error().valid_up_to();
        let byte = error.as_bytes().get(first).copied().unwrap_or_default();
        anyhow::anyhow!(
            "{place}: is not UTF-8: byte {} ({byte:#04x}) begins no character; if it is Latin-1 or Windows-1252, convert it \
             with `iconv -f WINDOWS-1252 -t UTF-8`",
            first + 1
        )
    })
}
