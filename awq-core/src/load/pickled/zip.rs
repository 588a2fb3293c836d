//! The directory of a zip archive whose entries are stored as they are, the way `torch.save` writes them.
//!
//! Where the crate `zip` keeps the last of two entries of one name and takes overlapping ones, this reader refuses both: what a
//! tensor is must not depend on who reads the file. Layout: APPNOTE.TXT of PKWARE, sections 4.3.7 to 4.5.3.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;

use super::Problem;

/// The most entries that are listed: a hundred times what the largest checkpoints have in a file.
const MAX_ENTRIES: usize = 1 << 20;
/// The longest name of an entry, in bytes.
const MAX_NAME: usize = 1024;

const LOCAL_HEADER: u32 = 0x0403_4b50;
const DIRECTORY_ENTRY: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;

const LOCAL_BYTES: usize = 30;
const ENTRY_BYTES: usize = 46;
const END_BYTES: usize = 22;
const END_64_BYTES: usize = 56;
const LOCATOR_BYTES: usize = 20;
/// The longest comment after the end record.
const MAX_COMMENT: usize = u16::MAX as usize;
/// The extra field with the numbers that 32 bits do not hold.
const EXTRA_64: usize = 1;

/// The entries of an archive: names, and the byte ranges of their contents.
pub(super) type Entries = BTreeMap<String, Range<usize>>;

/// Lists the entries of the archive `bytes`. Every range lies inside the file, and no two overlap.
///
/// # Errors
/// A file that is cut off or contradicts itself; compressed or encrypted entries; names that are twice there or lead out of a
/// folder.
pub(super) fn entries(bytes: &[u8]) -> Result<Entries, Problem> {
    let directory = Directory::find(bytes)?;
    if directory.n_entries > MAX_ENTRIES {
        return Err(Problem::Foreign(format!("{} zip entries, at most {MAX_ENTRIES} are read", directory.n_entries)));
    }
    let mut entries = Entries::new();
    // From an entry's own header to the end of its content.
    let mut extents: Vec<Range<usize>> = Vec::new();
    let mut at = directory.range.start;
    for _ in 0..directory.n_entries {
        let (entry, next) = DirectoryEntry::read(bytes, at, directory.range.end)?;
        let content = entry.content(bytes, directory.range.start)?;
        extents.push(entry.header_at..content.end);
        if entries.insert(entry.name.to_owned(), content).is_some() {
            return Err(damaged(format!("two zip entries are named {:?}", entry.name)));
        }
        at = next;
    }
    if at != directory.range.end {
        return Err(damaged("the zip directory is longer than its entries".to_owned()));
    }
    extents.sort_unstable_by_key(|extent| extent.start);
    if extents.windows(2).any(|pair| pair[0].end > pair[1].start) {
        return Err(damaged("two zip entries overlap".to_owned()));
    }
    Ok(entries)
}

/// Where the list of entries stands.
struct Directory {
    range: Range<usize>,
    n_entries: usize,
}

impl Directory {
    /// The end record is the last thing in the file but for a comment; a 64-bit one may stand before it.
    fn find(bytes: &[u8]) -> Result<Self, Problem> {
        let cut_off =
            || damaged("the zip directory, which stands at the end, is not there: the file is cut off".to_owned());
        let last = bytes.len().checked_sub(END_BYTES).ok_or_else(cut_off)?;
        let first = last.saturating_sub(MAX_COMMENT);
        let is_end = |at: &usize| {
            u32_at(bytes, *at) == Some(END)
                && u16_at(bytes, at + 20).is_some_and(|comment| at + END_BYTES + usize::from(comment) == bytes.len())
        };
        let end_at = (first..=last).rev().find(is_end).ok_or_else(cut_off)?;
        let n_entries = u16_at(bytes, end_at + 10).map(u64::from);
        let size = u32_at(bytes, end_at + 12).map(u64::from);
        let start = u32_at(bytes, end_at + 16).map(u64::from);
        let short = [n_entries, size, start].map(Option::unwrap_or_default);
        let (numbers, limit) = match Self::numbers_64(bytes, end_at)? {
            None => (short, end_at),
            Some((long, record_at)) => {
                let saturated = [u64::from(u16::MAX), u64::from(u32::MAX), u64::from(u32::MAX)];
                if (0..3).any(|i| short[i] != long[i] && short[i] != saturated[i]) {
                    return Err(damaged("the two end records of the zip file differ".to_owned()));
                }
                (long, record_at)
            }
        };
        let [n_entries, size, start] = numbers;
        let end = start.checked_add(size).filter(|end| *end <= limit as u64);
        let end = end.ok_or_else(|| damaged("the zip directory lies outside the file".to_owned()))?;
        if n_entries.saturating_mul(ENTRY_BYTES as u64) > size {
            return Err(damaged(format!("a zip directory of {size} bytes cannot hold {n_entries} entries")));
        }
        // All are at most the file's length now.
        Ok(Self { range: start as usize..end as usize, n_entries: n_entries as usize })
    }

    /// Entries, bytes and start of the directory by the 64-bit end record, and where that stands.
    fn numbers_64(bytes: &[u8], end_at: usize) -> Result<Option<([u64; 3], usize)>, Problem> {
        let Some(locator_at) = end_at.checked_sub(LOCATOR_BYTES) else { return Ok(None) };
        if u32_at(bytes, locator_at) != Some(LOCATOR_64) {
            return Ok(None);
        }
        let record_at = u64_at(bytes, locator_at + 8).and_then(|at| usize::try_from(at).ok());
        let is_record = |at: &usize| {
            u32_at(bytes, *at) == Some(END_64) && at.checked_add(END_64_BYTES).is_some_and(|end| end <= locator_at)
        };
        let record_at = record_at
            .filter(is_record)
            .ok_or_else(|| damaged("the 64-bit end record of the zip file is not where its locator says".to_owned()))?;
        let numbers = [32, 40, 48].map(|offset| u64_at(bytes, record_at + offset).unwrap_or_default());
        Ok(Some((numbers, record_at)))
    }
}

/// One entry of the directory.
struct DirectoryEntry<'a> {
    name: &'a str,
    size: u64,
    header_at: usize,
}

impl<'a> DirectoryEntry<'a> {
    /// The entry at `at` of a directory that ends at `end`, and where the next one begins.
    fn read(bytes: &'a [u8], at: usize, end: usize) -> Result<(Self, usize), Problem> {
        let broken = || damaged("the zip directory is broken".to_owned());
        let field = |offset: usize| u32_at(bytes, at + offset).map(u64::from);
        if u32_at(bytes, at) != Some(DIRECTORY_ENTRY) || at + ENTRY_BYTES > end {
            return Err(broken());
        }
        let [flags, method, name_bytes, extra_bytes, comment_bytes] =
            [8, 10, 28, 30, 32].map(|offset| usize::from(u16_at(bytes, at + offset).unwrap_or_default()));
        let name_at = at + ENTRY_BYTES;
        let extra_at = name_at + name_bytes;
        let next = extra_at + extra_bytes + comment_bytes;
        if next > end {
            return Err(broken());
        }
        let name = checked_name(&bytes[name_at..extra_at])?;
        if flags & 1 != 0 {
            return Err(Problem::Foreign(format!("the zip entry {name:?} is encrypted")));
        }
        if method != 0 {
            return Err(Problem::Foreign(format!(
                "the zip entry {name:?} is compressed, which torch.save does not do"
            )));
        }
        let numbers = [24, 20, 42].map(|offset| field(offset).unwrap_or_default());
        let [size, stored, header_at] =
            widened(numbers, &bytes[extra_at..extra_at + extra_bytes]).ok_or_else(broken)?;
        if size != stored {
            return Err(damaged(format!("the zip entry {name:?} has {size} bytes and stores {stored}")));
        }
        let header_at = usize::try_from(header_at).map_err(|_| broken())?;
        Ok((Self { name, size, header_at }, next))
    }

    /// The bytes of the content, which stand behind a header of their own and before the directory at `limit`.
    fn content(&self, bytes: &[u8], limit: usize) -> Result<Range<usize>, Problem> {
        let broken = || damaged(format!("the zip entry {:?} is not where the directory says", self.name));
        if u32_at(bytes, self.header_at) != Some(LOCAL_HEADER) {
            return Err(broken());
        }
        let length = |offset: usize| u16_at(bytes, self.header_at + offset).map(usize::from).ok_or_else(broken);
        let name_at = self.header_at + LOCAL_BYTES;
        let extra_at = name_at + length(26)?;
        let start = extra_at + length(28)?;
        let size = usize::try_from(self.size).map_err(|_| broken())?;
        let end = start.checked_add(size).filter(|end| *end <= limit).ok_or_else(broken)?;
        match bytes.get(name_at..extra_at) {
            Some(name) if name == self.name.as_bytes() => Ok(start..end),
            _ => Err(broken()),
        }
    }
}

/// A name that stays inside a folder.
fn checked_name(bytes: &[u8]) -> Result<&str, Problem> {
    let shown = || String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_NAME)]).into_owned();
    let is_plain = |part: &str| !["", ".", ".."].contains(&part);
    std::str::from_utf8(bytes)
        .ok()
        .filter(|name| name.len() <= MAX_NAME && name.split('/').all(is_plain) && !name.contains(['\\', '\0']))
        .ok_or_else(|| damaged(format!("a zip entry is named {:?}", shown())))
}

/// `numbers` (size, stored size, place of the header), those of them that 32 bits do not hold taken from the extra field.
fn widened(mut numbers: [u64; 3], extra: &[u8]) -> Option<[u64; 3]> {
    let is_wide = |number: u64| number == u64::from(u32::MAX);
    if !numbers.iter().any(|number| is_wide(*number)) {
        return Some(numbers);
    }
    let mut at = 0;
    let mut wide = loop {
        let (id, length) = (u16_at(extra, at)?, usize::from(u16_at(extra, at + 2)?));
        let field = extra.get(at + 4..at + 4 + length)?;
        if usize::from(id) == EXTRA_64 {
            break field.as_chunks::<8>().0.iter();
        }
        at += 4 + length;
    };
    for number in numbers.iter_mut().filter(|number| is_wide(**number)) {
        *number = u64::from_le_bytes(*wide.next()?);
    }
    Some(numbers)
}

fn damaged(problem: String) -> Problem {
    Problem::Damaged(problem)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}
