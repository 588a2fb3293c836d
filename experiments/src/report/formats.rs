//! The formats that tables are written in. Another one is a file with a function and a line here.

use super::tables::Document;
use super::{latex, markdown, typst};

/// A format of tables.
#[derive(Clone, Copy, Debug)]
pub struct TableFormat {
    /// The ending of its files, without the dot.
    pub extension: &'static str,
    /// The whole document.
    pub render: fn(&Document) -> String,
}

/// All formats. Each table of a report is written in each.
pub const TABLE_FORMATS: &[TableFormat] = &[
    TableFormat { extension: "md", render: markdown::render },
    TableFormat { extension: "tex", render: latex::render },
    TableFormat { extension: "typ", render: typst::render },
];
