//! Files that are cut, damaged or made to harm, and what is said of them.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::testing::{Written, ZipEntry, archive, state_dict};
use super::*;

const MATRIX: Written<'static> =
    Written { name: "w", class: "BFloat16", key: "0", n_stored: 6, offset: 0, shape: &[3, 2], strides: &[1, 3] };

/// The bfloat16 numbers 1, 2, 4, 8, 16, 32.
fn numbers() -> Vec<u8> {
    (0..6u16).flat_map(|power| ((127 + power) << 7).to_le_bytes()).collect()
}

fn entries() -> Vec<ZipEntry> {
    vec![
        ZipEntry::new("m/data.pkl", &state_dict(&[MATRIX])),
        ZipEntry::new("m/byteorder", b"little"),
        ZipEntry::new("m/data/0", &numbers()),
        ZipEntry::new("m/version", b"3\n"),
    ]
}

fn open(bytes: &[u8]) -> Result<PickledCheckpoint, LoadError> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(FILES.single), bytes).unwrap();
    PickledCheckpoint::open_folder(folder.path())
}

#[track_caller]
fn check_refused(bytes: &[u8], expected: &str) {
    let message = open(bytes).err().unwrap().to_string();
    let (_, message) = message.split_once("pytorch_model.bin: ").unwrap();
    assert!(message.starts_with(expected), "{message}");
}

#[test]
fn a_file_as_older_programs_write_it_is_read() {
    // Without byte order and version, as PyTorch 1.6 to 2.0 wrote it.
    let entries: Vec<ZipEntry> = entries().into_iter().filter(|entry| entry.name.contains("data")).collect();
    let checkpoint = open(&archive(&entries)).unwrap();
    assert_eq!(checkpoint.names(), ["w"]);
    assert_eq!(checkpoint.read_f32("w").unwrap(), [1.0, 8.0, 2.0, 16.0, 4.0, 32.0]);
}

#[test]
fn what_is_no_state_dict_is_named_with_the_remedy() {
    let old = [OLD_FORMAT, b".and so on"].concat();
    check_refused(
        &old,
        "written in the format of PyTorch before 1.6, which is not read; convert it to safetensors: python -c \"import \
         transformers as t; t.AutoModelForCausalLM.from_pretrained('",
    );
    check_refused(b"\x80\x02}.", "bad header: no zip archive, which torch.save writes; download the file again");
    let with = |change: &dyn Fn(&mut Vec<ZipEntry>)| {
        let mut entries = entries();
        change(&mut entries);
        archive(&entries)
    };
    check_refused(
        &with(&|entries| entries.push(ZipEntry::new("m/constants.pkl", b"x"))),
        "a TorchScript program (it has \"m/constants.pkl\"), not a state dict; convert",
    );
    check_refused(
        &with(&|entries| entries[1] = ZipEntry::new("m/byteorder", b"big")),
        "its numbers are not little-endian; convert",
    );
    check_refused(
        &with(&|entries| entries[0].name = "m/n/data.pkl".into()),
        "a zip archive without data.pkl, not a state dict; convert",
    );
    check_refused(
        &with(&|entries| entries.push(ZipEntry::new("n/data.pkl", b"x"))),
        "bad header: it has data.pkl twice, in \"m\" and in \"n\"; download",
    );
    check_refused(
        &with(&|entries| entries[0] = ZipEntry::new("m/data.pkl", b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.")),
        "its pickle names os.system, which no plain tensor needs and which is not called; convert",
    );
    check_refused(
        &with(&|entries| entries[0] = ZipEntry::new("m/data.pkl", &vec![0; MAX_PICKLE_BYTES + 1])),
        "its pickle has 67108865 bytes, at most 67108864 are read; convert",
    );
    check_refused(&with(&|entries| entries[2].method = 8), "the zip entry \"m/data/0\" is compressed");
}

#[test]
fn storages_are_as_large_as_the_pickle_says() {
    let with = |tensor: Written<'_>| {
        let mut entries = entries();
        entries[0] = ZipEntry::new("m/data.pkl", &state_dict(&[tensor]));
        archive(&entries)
    };
    check_refused(
        &with(Written { n_stored: 7, ..MATRIX }),
        "bad header: the storage \"m/data/0\" has 12 bytes, expected 14; download",
    );
    check_refused(
        &with(Written { class: "Float", ..MATRIX }),
        "bad header: the storage \"m/data/0\" has 12 bytes, expected 24; download",
    );
    check_refused(&with(Written { key: "1", ..MATRIX }), "bad header: the storage \"m/data/1\" is not there; download");
    check_refused(&with(Written { key: "../0", ..MATRIX }), "bad header: the storage \"m/data/../0\" is not there");
    check_refused(
        &with(Written { n_stored: 1 << 60, shape: &[1 << 30, 1 << 30], strides: &[1 << 30, 1], ..MATRIX }),
        "bad header: the storage \"m/data/0\" has 12 bytes, expected 2305843009213693952; download",
    );
}

#[test]
fn not_finite_numbers_are_reported_with_their_place() {
    let mut entries = entries();
    // The fourth number of the storage is the second of the transposed matrix.
    entries[2].content[6..8].copy_from_slice(&0x7f80u16.to_le_bytes());
    let error = open(&archive(&entries)).unwrap().read_f32("w").unwrap_err();
    assert!(matches!(error, LoadError::NonFinite { index: 1, .. }), "{error}");
}

#[test]
fn every_truncation_is_an_error() {
    let whole = archive(&entries());
    for length in 1..whole.len() {
        let message = open(&whole[..length]).err().unwrap().to_string();
        assert!(message.ends_with("; download the file again, or convert the model again"), "{length}: {message}");
    }
}

/// Reads all there is.
fn read(bytes: &[u8]) {
    for (_, Entry { view, storage }) in tensors(bytes).into_iter().flatten() {
        assert_eq!(
            view.row_major(&bytes[storage]).len(),
            view.shape.iter().product::<usize>() * view.dtype.bitsize() / 8
        );
    }
}

const REAL: &[u8] = include_bytes!("../../../tests/pickled/views/pytorch_model.bin");

proptest! {
    #[test]
    fn damaged_bytes_never_panic(changes in prop::collection::vec((0..1usize << 20, any::<u8>()), 1..8)) {
        let mut bytes = archive(&entries());
        let length = bytes.len();
        for (position, byte) in changes {
            bytes[position % length] = byte;
        }
        read(&bytes);
    }

    #[test]
    fn damaged_real_files_never_panic(
        changes in prop::collection::vec((0..REAL.len(), 0..8u32), 1..4),
        cut in prop::option::of(0..REAL.len()),
    ) {
        let mut bytes = REAL.to_vec();
        for (position, bit) in changes {
            bytes[position] ^= 1 << bit;
        }
        read(&bytes[..cut.unwrap_or(bytes.len())]);
    }

    #[test]
    fn damaged_pickles_never_panic(changes in prop::collection::vec((0..1usize << 20, any::<u8>()), 1..4)) {
        let mut entries = entries();
        let pickle = &mut entries[0].content;
        let length = pickle.len();
        for (position, byte) in changes {
            pickle[position % length] = byte;
        }
        read(&archive(&entries));
    }

    #[test]
    fn any_opcodes_never_panic(opcodes in prop::collection::vec(
        prop::sample::select(b"\x80\x02(cqrhjN\x88KMJ\x8aX)\x85\x86\x87t}suRbQ.\x00\x01".to_vec()), 0..60,
    )) {
        let _ = pickle::state_dict(&[b"\x80\x02".as_slice(), &opcodes].concat());
    }
}
