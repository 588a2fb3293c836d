//! What the machine reads, and what it refuses.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::load::pickled::testing::{Written, state_dict as pickled, text};

const W: Written<'static> =
    Written { name: "w", class: "Half", key: "0", n_stored: 8, offset: 2, shape: &[2, 3], strides: &[3, 1] };

#[track_caller]
fn check_refused(pickle: &[u8], expected: &str) {
    let (Problem::Damaged(problem) | Problem::Foreign(problem)) = state_dict(pickle).unwrap_err();
    assert_eq!(problem, expected);
}

#[test]
fn tensors_are_views_of_storages() {
    let other = Written { name: "v", class: "Float", n_stored: 4, offset: 0, shape: &[4], strides: &[1], ..W };
    let pickle = pickled(&[W, other]);
    let view = View { dtype: Dtype::F16, offset: 2, shape: vec![2, 3], strides: vec![3, 1] };
    let other = View { dtype: Dtype::F32, offset: 0, shape: vec![4], strides: vec![1] };
    let of_storage = |view| Pickled { key: "0", storage_bytes: 16, view };
    assert_eq!(state_dict(&pickle).unwrap(), [("w", of_storage(view)), ("v", of_storage(other))]);
    assert_eq!(state_dict(b"\x80\x02}.").unwrap(), []);
}

#[test]
fn what_would_run_is_named_and_not_run() {
    for (pickle, name) in [
        (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.".as_slice(), "os.system"),
        (b"\x80\x02cbuiltins\neval\n)R.", "builtins.eval"),
        (b"\x80\x02ctorch\nload\n)R.", "torch.load"),
        (b"\x80\x02ctorch\nos.systemStorage\n)R.", "torch.os.systemStorage"),
        (b"\x80\x02ctorch._utils\n_rebuild_sparse_tensor\n)R.", "torch._utils._rebuild_sparse_tensor"),
    ] {
        let expected = format!("its pickle names {name}, which no plain tensor needs and which is not called");
        check_refused(pickle, &expected);
    }
    // INST, OBJ, NEWOBJ, STACK_GLOBAL, EXT1, PERSID.
    for opcode in [b'i', b'o', 0x81, 0x93, 0x82, b'P'] {
        let expected = format!("its pickle has opcode {opcode:#04x} at byte 2, which no plain tensor needs");
        check_refused(&[0x80, 2, opcode, b'.'], &expected);
    }
    check_refused(b"\x80\x04.", "its pickle has protocol 4, expected 2");
}

#[test]
fn other_things_than_tensors_are_named() {
    check_refused(b"\x80\x02K\x01.", "it holds a number, expected a dictionary of tensors");
    check_refused(b"\x80\x02}K\x01Ns.", "a key is a number, expected the name of a tensor");
    let mut nested = b"\x80\x02}".to_vec();
    text(&mut nested, "state_dict");
    nested.extend(b"}s.");
    check_refused(&nested, "\"state_dict\" is a dictionary, expected a tensor");
    check_refused(&pickled(&[W, W]), "two tensors are named \"w\"");
}

#[test]
fn views_stay_inside_their_storage() {
    let changed = |change: fn(&mut Written<'static>)| {
        let mut tensor = W;
        change(&mut tensor);
        pickled(&[tensor])
    };
    let outside = "a tensor lies outside its storage";
    check_refused(&changed(|w| w.offset = 3), outside);
    check_refused(&changed(|w| w.shape = &[3, 3]), outside);
    check_refused(&changed(|w| w.strides = &[i64::MAX, 1]), outside);
    check_refused(&changed(|w| w.shape = &[i64::MAX, i64::MAX]), outside);
    check_refused(
        &changed(|w| {
            w.shape = &[1 << 40, 1 << 40];
            w.strides = &[0, 0];
        }),
        "a tensor of shape [1099511627776, 1099511627776] shows the 8 numbers of its storage several times",
    );
    check_refused(
        &changed(|w| (w.class, w.n_stored) = ("Float", i64::MAX)),
        "its pickle is broken: a storage has an absurd size",
    );
    check_refused(&changed(|w| w.n_stored = -1), "its pickle is broken: a storage has an absurd size");
    check_refused(
        &changed(|w| w.strides = &[3]),
        "its pickle is broken: a tensor is described otherwise than torch.save does",
    );
    check_refused(&changed(|w| w.shape = &[-2, 3]), "its pickle is broken: a shape or strides are no tuple of numbers");
    check_refused(&changed(|w| w.shape = &[1; 17]), "its pickle is broken: a tensor has too many dimensions");
    // No elements, nothing outside.
    assert_eq!(state_dict(&changed(|w| w.shape = &[0, i64::MAX])).unwrap()[0].1.view.shape, [0, i64::MAX as usize]);
}

#[test]
fn nesting_and_doubling_are_bounded() {
    // A tuple in a tuple, four million times: as deep as it gets, nothing overflows.
    let mut deep = b"\x80\x02)".to_vec();
    deep.resize(MAX_OPCODES - 1, 0x85);
    deep.push(b'.');
    check_refused(&deep, "it holds a tuple, expected a dictionary of tensors");
    deep.insert(3, 0x85);
    deep.insert(3, 0x85);
    check_refused(&deep, "its pickle has more than 4194304 opcodes");
    // Each tuple is twice the last: 2^60 parts if anyone counted them.
    let mut doubling = b"\x80\x02)".to_vec();
    (0..60).for_each(|_| doubling.extend(b"q\x00h\x00\x86"));
    doubling.push(b'.');
    check_refused(&doubling, "it holds a tuple, expected a dictionary of tensors");
    // A dictionary in itself.
    check_refused(b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.", "\"a\" is a dictionary, expected a tensor");
}

#[test]
fn every_truncation_and_underflow_is_an_error() {
    let whole = pickled(&[W]);
    for length in 0..whole.len() {
        assert!(state_dict(&whole[..length]).is_err(), "{length}");
    }
    for opcode in *b"tRbQsuq\x85\x86\x87" {
        let pickle = [0x80, 2, opcode, 0, b'.'];
        check_refused(&pickle, "its pickle is broken: a value is missing");
    }
    check_refused(b"\x80\x02(}NN(u.", "its pickle is broken: items are put into something else than a dictionary");
    check_refused(b"\x80\x02}(Nu.", "its pickle is broken: a key has no value");
    check_refused(b"\x80\x02N}.", "its pickle is broken: values are left over at its end");
    check_refused(b"\x80\x02}..", "its pickle is broken: values are left over at its end");
}
