//! The compiled table of characters of a SentencePiece model, checked: the library that applies it trusts every number in it.

/// The bits of a unit of the double array, as Darts-clone packs them.
fn offset(unit: u32) -> usize {
    ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize
}

fn has_leaf(unit: u32) -> bool {
    unit >> 8 & 1 == 1
}

fn label(unit: u32) -> u32 {
    unit & (1 << 31 | 0xff)
}

fn value(unit: u32) -> usize {
    (unit & !(1 << 31)) as usize
}

/// Checks that no text leads out of the table: its length, a double array of units, and the texts that its leaves point into.
pub(super) fn is_sound(charsmap: &[u8]) -> bool {
    let Some((length, rest)) = charsmap.split_first_chunk() else { return false };
    let Some((trie, texts)) = rest.split_at_checked(u32::from_le_bytes(*length) as usize) else { return false };
    let (units, left_over) = trie.as_chunks::<4>();
    let units: Vec<u32> = units.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
    let Ok(texts) = std::str::from_utf8(texts) else { return false };
    let (Some(root), []) = (units.first(), left_over) else { return false };
    let mut to_visit = vec![offset(*root)];
    let mut is_visited = vec![false; units.len()];
    while let Some(node) = to_visit.pop() {
        // Whatever the next byte is, its unit is looked at.
        if node | 0xff >= units.len() {
            return false;
        }
        if std::mem::replace(&mut is_visited[node], true) {
            continue;
        }
        for byte in 1..=0xff {
            let at = node ^ byte as usize;
            let unit = units[at];
            if label(unit) != byte {
                continue;
            }
            let next = at ^ offset(unit);
            if has_leaf(unit) && units.get(next).is_none_or(|leaf| !texts.is_char_boundary(value(*leaf))) {
                return false;
            }
            to_visit.push(next);
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_out_of_the_table_is_found() {
        let table = |units: &[u32], texts: &[u8]| {
            let mut bytes = (4 * units.len() as u32).to_le_bytes().to_vec();
            bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
            bytes.extend(texts);
            bytes
        };
        // From the root, at offset 1, "a" leads to a node at offset 3 whose leaf points at a text.
        let (root, a) = (1 << 10, 0x61 | 1 << 8 | 3 << 10);
        let at = 1 ^ 0x61;
        let leaf = at ^ 3;
        let mut units = vec![0; 256];
        (units[0], units[at], units[leaf]) = (root, a, 2);
        let texts = "é\0".as_bytes();
        assert!(is_sound(&table(&units, texts)));
        assert!(!is_sound(&table(&units[..255], texts)));
        // A leaf inside a character, and one behind the texts.
        for wrong in [1, 4] {
            units[leaf] = wrong;
            assert!(!is_sound(&table(&units, texts)));
        }
        units[leaf] = 2;
        units[at] = 0x61 | 1 << 8 | 1 << 30;
        assert!(!is_sound(&table(&units, texts)));
        assert!(!is_sound(&table(&[], texts)));
        assert!(!is_sound(b""));
        assert!(!is_sound(&u32::MAX.to_le_bytes()));
        assert!(!is_sound(&table(&units, b"\xff")));
    }
}
