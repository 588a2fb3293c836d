//! Writers of small pickled checkpoints, honest and hostile.
#![allow(clippy::unwrap_used)]

/// One tensor of [`state_dict`]: `torch.{class}Storage` number `key` with `n_stored` elements, seen from `offset` on.
#[derive(Clone)]
pub(super) struct Written<'a> {
    pub(super) name: &'a str,
    pub(super) class: &'a str,
    pub(super) key: &'a str,
    pub(super) n_stored: i64,
    pub(super) offset: i64,
    pub(super) shape: &'a [i64],
    pub(super) strides: &'a [i64],
}

/// A pickle as `torch.save` makes it of a state dict, without its memo.
pub(super) fn state_dict(tensors: &[Written<'_>]) -> Vec<u8> {
    let mut pickle = b"\x80\x02ccollections\nOrderedDict\n)R(".to_vec();
    for tensor in tensors {
        text(&mut pickle, tensor.name);
        pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut pickle, "storage");
        pickle.extend(format!("ctorch\n{}Storage\n", tensor.class).bytes());
        text(&mut pickle, tensor.key);
        text(&mut pickle, "cpu");
        number(&mut pickle, tensor.n_stored);
        pickle.extend(b"tQ");
        number(&mut pickle, tensor.offset);
        tuple(&mut pickle, tensor.shape);
        tuple(&mut pickle, tensor.strides);
        pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    pickle.extend(b"u.");
    pickle
}

pub(super) fn text(pickle: &mut Vec<u8>, text: &str) {
    pickle.push(b'X');
    pickle.extend((text.len() as u32).to_le_bytes());
    pickle.extend(text.bytes());
}

fn number(pickle: &mut Vec<u8>, number: i64) {
    pickle.extend([0x8a, 8]);
    pickle.extend(number.to_le_bytes());
}

fn tuple(pickle: &mut Vec<u8>, numbers: &[i64]) {
    pickle.push(b'(');
    numbers.iter().for_each(|n| number(pickle, *n));
    pickle.push(b't');
}

/// An entry of [`archive`] in its own words, so that a test can make any of them a lie.
#[derive(Clone)]
pub(super) struct ZipEntry {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
    pub(super) flags: u16,
    pub(super) method: u16,
    /// Size that the directory gives.
    pub(super) size: u32,
    /// Where the directory looks for it; `None` for where it is.
    pub(super) header_at: Option<u32>,
}

impl ZipEntry {
    pub(super) fn new(name: &str, content: &[u8]) -> Self {
        let size = content.len() as u32;
        Self { name: name.to_owned(), content: content.to_vec(), flags: 0, method: 0, size, header_at: None }
    }
}

/// A zip archive.
pub(super) fn archive(entries: &[ZipEntry]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for entry in entries {
        let header_at = file.len() as u32;
        let short = |values: &[u16]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
        let long = |values: &[u32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
        let name_bytes = entry.name.len() as u16;
        file.extend(b"PK\x03\x04");
        file.extend(short(&[20, entry.flags, entry.method, 0, 0]));
        file.extend(long(&[0, entry.size, entry.size]));
        file.extend(short(&[name_bytes, 0]));
        file.extend(entry.name.bytes());
        file.extend(&entry.content);
        directory.extend(b"PK\x01\x02");
        directory.extend(short(&[20, 20, entry.flags, entry.method, 0, 0]));
        directory.extend(long(&[0, entry.size, entry.size]));
        directory.extend(short(&[name_bytes, 0, 0, 0, 0]));
        directory.extend(long(&[0, entry.header_at.unwrap_or(header_at)]));
        directory.extend(entry.name.bytes());
    }
    let (start, size, n_entries) = (file.len() as u32, directory.len() as u32, entries.len() as u16);
    file.extend(directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([n_entries.to_le_bytes(), n_entries.to_le_bytes()].concat());
    file.extend([size.to_le_bytes(), start.to_le_bytes()].concat());
    file.extend([0, 0]);
    file
}
