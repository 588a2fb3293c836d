//! Archives that lie.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::load::pickled::testing::{ZipEntry, archive};

fn two() -> [ZipEntry; 2] {
    [ZipEntry::new("m/data.pkl", b"pickle"), ZipEntry::new("m/data/0", b"numbers")]
}

#[track_caller]
fn check_refused(bytes: &[u8], expected: &str) {
    let (Problem::Damaged(problem) | Problem::Foreign(problem)) = entries(bytes).unwrap_err();
    assert_eq!(problem, expected);
}

#[test]
fn contents_are_found() {
    let bytes = archive(&two());
    let entries = entries(&bytes).unwrap();
    let contents: Vec<(&str, &[u8])> =
        entries.iter().map(|(name, range)| (name.as_str(), &bytes[range.clone()])).collect();
    assert_eq!(contents, [("m/data.pkl", b"pickle".as_slice()), ("m/data/0", b"numbers")]);
    assert_eq!(super::entries(&archive(&[])).unwrap(), Entries::new());
}

#[test]
fn a_comment_at_the_end_is_no_obstacle() {
    let mut bytes = archive(&two());
    let comment = b"PK\x05\x06 is how an end record begins";
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&(comment.len() as u16).to_le_bytes());
    bytes.extend(comment);
    assert_eq!(entries(&bytes).unwrap().len(), 2);
}

/// The directory's numbers in 64 bits, as archives beyond 4 GB have them.
fn wide() -> Vec<u8> {
    let mut bytes = archive(&[]);
    bytes.clear();
    let content = b"numbers";
    bytes.extend(b"PK\x03\x04");
    bytes.extend([0; 22]);
    bytes.extend([1, 0, 0, 0]);
    bytes.extend(b"w");
    bytes.extend(content);
    let start = bytes.len() as u64;
    bytes.extend(b"PK\x01\x02");
    bytes.extend([0; 16]);
    bytes.extend([0xff; 8]);
    // Name, extra fields, comment; disk and attributes; the header's place.
    bytes.extend([1, 0, 32, 0, 0, 0]);
    bytes.extend([0; 8]);
    bytes.extend([0xff; 4]);
    bytes.extend(b"w");
    // Another field comes first.
    bytes.extend([9, 0, 0, 0, 1, 0, 24, 0]);
    bytes.extend([content.len() as u64, content.len() as u64, 0].map(u64::to_le_bytes).concat());
    let record_at = bytes.len() as u64;
    bytes.extend(b"PK\x06\x06");
    bytes.extend([0; 20]);
    bytes.extend([1, 1, record_at - start, start].map(u64::to_le_bytes).concat());
    bytes.extend(b"PK\x06\x07\0\0\0\0");
    bytes.extend(record_at.to_le_bytes());
    bytes.extend([1, 0, 0, 0]);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend([0xff; 12]);
    bytes.extend([0, 0]);
    bytes
}

#[test]
fn numbers_of_64_bits_are_read() {
    let bytes = wide();
    let entries = entries(&bytes).unwrap();
    assert_eq!(&bytes[entries["w"].clone()], b"numbers");
    let mut other = bytes.clone();
    let end = other.len();
    // The 32-bit record now says two entries.
    other[end - 12] = 2;
    other[end - 11] = 0;
    check_refused(&other, "the two end records of the zip file differ");
}

#[test]
fn hostile_directories_are_refused() {
    let [pickle, data] = two();
    let named = |name: &str| archive(&[pickle.clone(), ZipEntry { name: name.into(), ..data.clone() }]);
    check_refused(&named("m/data.pkl"), "two zip entries are named \"m/data.pkl\"");
    for name in ["../x", "m/../../x", "/etc/x", "m//x", "m/./x", "m\\..\\x", "m/x/", "", "m\0"] {
        check_refused(&named(name), &format!("a zip entry is named {name:?}"));
    }
    let changed = |change: fn(&mut ZipEntry)| {
        let mut data = data.clone();
        change(&mut data);
        archive(&[pickle.clone(), data])
    };
    check_refused(
        &changed(|entry| entry.method = 8),
        "the zip entry \"m/data/0\" is compressed, which torch.save does not do",
    );
    check_refused(&changed(|entry| entry.flags = 1), "the zip entry \"m/data/0\" is encrypted");
    let elsewhere = "the zip entry \"m/data/0\" is not where the directory says";
    check_refused(&changed(|entry| entry.size = 1 << 31), elsewhere);
    check_refused(&changed(|entry| entry.size += 1), elsewhere);
    check_refused(&changed(|entry| entry.header_at = Some(0)), elsewhere);
    check_refused(&changed(|entry| entry.header_at = Some(u32::MAX - 1)), elsewhere);
    let long = ZipEntry { size: pickle.size + 3, ..pickle.clone() };
    check_refused(&archive(&[long, data.clone()]), "two zip entries overlap");
}

#[test]
fn every_truncation_is_named() {
    let whole = archive(&two());
    for length in 0..whole.len() {
        check_refused(
            &whole[..length],
            "the zip directory, which stands at the end, is not there: the file is cut off",
        );
    }
}

#[test]
fn an_absurd_number_of_entries_costs_nothing() {
    let mut bytes = wide();
    let record_at = bytes.len() - END_BYTES - LOCATOR_BYTES - END_64_BYTES;
    bytes[record_at + 32..record_at + 40].copy_from_slice(&u64::MAX.to_le_bytes());
    let size = u64_at(&bytes, record_at + 40).unwrap();
    check_refused(&bytes, &format!("a zip directory of {size} bytes cannot hold {} entries", u64::MAX));
}
