//! The bytes of a pickle, taken one after the other.

use super::super::Problem;
use super::broken;

/// The longest name of a module or class, in bytes.
const MAX_LINE: usize = 256;

/// What is left of the bytes. Every method takes from their beginning.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    /// How many bytes were taken.
    pub(super) at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    pub(super) fn byte(&mut self) -> Result<u8, Problem> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn take(&mut self, n: usize) -> Result<&'a [u8], Problem> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| broken("it ends too early"))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Problem> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// A number of up to 8 bytes behind its length.
    pub(super) fn long(&mut self) -> Result<i64, Problem> {
        let length = usize::from(self.byte()?);
        let bytes = self.take(length)?;
        if length > 8 {
            return Err(broken("a number has more than 64 bits"));
        }
        let fill = if bytes.last().is_some_and(|last| last & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [fill; 8];
        wide[..length].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(wide))
    }

    pub(super) fn line(&mut self) -> Result<&'a str, Problem> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().take(MAX_LINE).position(|byte| *byte == b'\n');
        let line = self.take(length.ok_or_else(|| broken("a name does not end"))? + 1)?;
        std::str::from_utf8(&line[..line.len() - 1]).map_err(|_| broken("a name is not UTF-8"))
    }
}
