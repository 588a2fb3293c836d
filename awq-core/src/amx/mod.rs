//! Tiles of AMX: eight registers of 16 rows of 64 bytes, and products of them. Rust's standard library does not offer these instructions
//! yet, so they stand here as assembly. The left factor of a product is 16 rows of 64 bytes; row `k` of the right factor holds bytes `4 k`
//! to `4 k + 3` of 16 columns.
//!
//! Where the CPU has no tiles, unit tests run with those of `emulated.rs`.

#[cfg(all(test, target_os = "linux"))]
mod emulated;

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Rows of a tile, and columns of its 32-bit values.
pub(crate) const ROWS: usize = 16;
/// Bytes of a row.
pub(crate) const ROW_BYTES: usize = 64;
const TILE_BYTES: usize = ROWS * ROW_BYTES;

/// What a register holds.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Tile(pub(crate) [[u8; ROW_BYTES]; ROWS]);

impl Tile {
    pub(crate) const ZERO: Self = Self([[0; ROW_BYTES]; ROWS]);
}

/// Sums of products of bytes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Sums(pub(crate) [[i32; ROWS]; ROWS]);

impl Sums {
    pub(crate) const ZERO: Self = Self([[0; ROWS]; ROWS]);
}

/// Rows and columns of [`Square`].
pub(crate) const SIDE: usize = 2 * ROWS;
const SIDE_BYTES: usize = 4 * SIDE;

/// Sums of 32 rows and 32 columns: those of four tiles.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Square(pub(crate) [[f32; SIDE]; SIDE]);

impl Square {
    pub(crate) const ZERO: Self = Self([[0.0; SIDE]; SIDE]);
}

/// How many numbers of bf16 add up to one of f32.
pub(crate) const PARTS: usize = 3;

/// What the second-level cache is asked for while other tiles are multiplied: behind each pointer so many bytes at each step. What there
/// is, is not read.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    pub(crate) x: *const u8,
    pub(crate) w: *const u8,
}

impl Ahead {
    pub(crate) const X_BYTES: usize = 4 * ROW_BYTES;
    pub(crate) const W_BYTES: usize = 2 * ROW_BYTES;
}

/// Proof that the CPU has tiles with products of bytes and of bf16, and that the operating system lets this process use them.
#[derive(Clone, Copy)]
pub(crate) struct Amx(());

impl Amx {
    /// `None` where the CPU or the operating system lacks them.
    pub(crate) fn detect() -> Option<Self> {
        static FOUND: OnceLock<bool> = OnceLock::new();
        FOUND.get_or_init(|| cpu_has_tiles() && may_use_tiles()).then_some(Self(()))
    }

    /// The CPU's own tiles, or those of the emulator.
    #[cfg(all(test, target_os = "linux"))]
    pub(crate) fn for_tests() -> Self {
        Self::detect().unwrap_or_else(|| {
            emulated::install();
            Self(())
        })
    }

    /// Gives this thread eight whole tiles, until the value is dropped. What runs in between must not hand work to other threads: one that
    /// waits for it may take on work that configures tiles, too.
    ///
    /// # Panics
    /// If this thread has them already.
    pub(crate) fn configure(self) -> Configured {
        static WHOLE: Config = Config::whole();
        assert!(!HAS_TILES.replace(true), "this thread has its tiles already");
        // SAFETY: `self` exists, so the CPU has the instruction; it reads 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const WHOLE, options(nostack, preserves_flags, readonly)) };
        Configured { of_this_thread: PhantomData }
    }
}

thread_local! {
    static HAS_TILES: Cell<bool> = const { Cell::new(false) };
}

/// Bits of `edx` of leaf 7.
const BF16_TILES: u32 = 1 << 22;
const TILES: u32 = 1 << 24;
const BYTE_TILES: u32 = 1 << 25;

fn cpu_has_tiles() -> bool {
    let wanted = BF16_TILES | TILES | BYTE_TILES;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & wanted == wanted
}

/// Asks Linux for tiles, whose contents it must keep for each thread: a process has none until then.
#[cfg(target_os = "linux")]
fn may_use_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: the call takes two numbers and writes nowhere.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn may_use_tiles() -> bool {
    false
}

/// What the configuration instruction reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_of_rows: [u16; 16],
    rows: [u8; 16],
}

impl Config {
    const fn whole() -> Self {
        let (mut bytes_of_rows, mut rows) = ([0; 16], [0; 16]);
        let mut tile = 0;
        while tile < 8 {
            (bytes_of_rows[tile], rows[tile]) = (ROW_BYTES as u16, ROWS as u8);
            tile += 1;
        }
        Self { palette: 1, start_row: 0, reserved: [0; 14], bytes_of_rows, rows }
    }
}

/// A thread's tiles, ready to multiply.
pub(crate) struct Configured {
    /// Another thread has tiles of its own.
    of_this_thread: PhantomData<*mut ()>,
}

impl Drop for Configured {
    fn drop(&mut self) {
        HAS_TILES.set(false);
        // SAFETY: the value exists, so the CPU has the instruction.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}

impl Configured {
    /// `sums[i][j] = x[i] w[j]`, summed over as many tiles as each has; bytes of `x` are signed, those of `w` are not.
    ///
    /// # Panics
    /// If they are none, or differ in number.
    pub(crate) fn multiply_bytes(&self, x: [&[Tile]; 2], w: [&[Tile]; 2], sums: &mut [[Sums; 2]; 2]) {
        let n = x[0].len();
        assert!(n > 0 && x[1].len() == n && w[0].len() == n && w[1].len() == n, "tiles do not match");
        // SAFETY: this thread's tiles are whole; the loop reads `n` tiles behind each pointer, and `sums` are four in a row.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{x0} + {row}]",
                "tileloadd tmm6, [{w0} + {row}]",
                "tileloadd tmm5, [{x1} + {row}]",
                "tileloadd tmm7, [{w1} + {row}]",
                "tdpbsud tmm0, tmm4, tmm6",
                "tdpbsud tmm1, tmm4, tmm7",
                "tdpbsud tmm2, tmm5, tmm6",
                "tdpbsud tmm3, tmm5, tmm7",
                "add {x0}, {tile}",
                "add {w0}, {tile}",
                "add {x1}, {tile}",
                "add {w1}, {tile}",
                "dec {n}",
                "jnz 2b",
                "tilestored [{sums} + {row}], tmm0",
                "tilestored [{sums} + {row} + {tile}], tmm1",
                "tilestored [{sums} + {row} + 2 * {tile}], tmm2",
                "tilestored [{sums} + {row} + 3 * {tile}], tmm3",
                x0 = inout(reg) x[0].as_ptr() => _,
                x1 = inout(reg) x[1].as_ptr() => _,
                w0 = inout(reg) w[0].as_ptr() => _,
                w1 = inout(reg) w[1].as_ptr() => _,
                n = inout(reg) n => _,
                sums = in(reg) sums.as_mut_ptr(),
                row = in(reg) ROW_BYTES,
                tile = const TILE_BYTES,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// Adds to `sums` the products of 32 rows with 32 columns, in the order of their inputs. Each of `x` and `w` is 16 of them, a tile for each 32
    /// inputs. Without `has_sums` they begin at zero, whatever is there.
    ///
    /// # Panics
    /// If they are none, or differ in number.
    pub(crate) fn add_bf16(&self, x: [&[Tile]; 2], w: [&[Tile]; 2], sums: &mut Square, has_sums: bool, ahead: Ahead) {
        let n = x[0].len();
        assert!(n > 0 && x[1].len() == n && w[0].len() == n && w[1].len() == n, "tiles do not match");
        // SAFETY: this thread's tiles are whole; the loop reads `n` tiles behind each pointer, and rows of `sums` are 128 bytes. What is
        // asked for ahead is not read: it may be anywhere.
        unsafe {
            asm!(
                "test {has_sums}, {has_sums}",
                "jz 2f",
                "tileloadd tmm0, [{sums} + {side}]",
                "tileloadd tmm1, [{sums} + {side} + {row_bytes}]",
                "tileloadd tmm2, [{sums} + {side} + 2 * {tile}]",
                "tileloadd tmm3, [{sums} + {side} + 2 * {tile} + {row_bytes}]",
                "jmp 3f",
                "2:",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "3:",
                "tileloadd tmm4, [{x0} + {row}]",
                "tileloadd tmm6, [{w0} + {row}]",
                "tileloadd tmm5, [{x1} + {row}]",
                "tileloadd tmm7, [{w1} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "prefetcht1 [{ahead_x}]",
                "prefetcht1 [{ahead_x} + 64]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "prefetcht1 [{ahead_x} + 128]",
                "prefetcht1 [{ahead_x} + 192]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "prefetcht1 [{ahead_w}]",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "prefetcht1 [{ahead_w} + 64]",
                "add {x0}, {tile}",
                "add {x1}, {tile}",
                "add {w0}, {tile}",
                "add {w1}, {tile}",
                "add {ahead_x}, {ahead_x_bytes}",
                "add {ahead_w}, {ahead_w_bytes}",
                "dec {n}",
                "jnz 3b",
                "tilestored [{sums} + {side}], tmm0",
                "tilestored [{sums} + {side} + {row_bytes}], tmm1",
                "tilestored [{sums} + {side} + 2 * {tile}], tmm2",
                "tilestored [{sums} + {side} + 2 * {tile} + {row_bytes}], tmm3",
                x0 = inout(reg) x[0].as_ptr() => _,
                x1 = inout(reg) x[1].as_ptr() => _,
                w0 = inout(reg) w[0].as_ptr() => _,
                w1 = inout(reg) w[1].as_ptr() => _,
                n = inout(reg) n => _,
                ahead_x = inout(reg) ahead.x => _,
                ahead_w = inout(reg) ahead.w => _,
                sums = in(reg) sums.0.as_mut_ptr(),
                has_sums = in(reg) usize::from(has_sums),
                row = in(reg) ROW_BYTES,
                side = in(reg) SIDE_BYTES,
                row_bytes = const ROW_BYTES,
                tile = const TILE_BYTES,
                ahead_x_bytes = const Ahead::X_BYTES,
                ahead_w_bytes = const Ahead::W_BYTES,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// The sums of products of 32 rows with 32 columns in f32. Each of `x` and `w` is 16 of them, [`PARTS`] tiles for each 32 inputs: the
    /// numbers rounded to bf16, what that leaves, rounded, and the rest. Of the nine products of parts the three smallest are left out: their
    /// sum is below half a unit of the last digit of what they belong to. The largest come last, so that the others lose few digits.
    ///
    /// # Panics
    /// If they are none, differ in number, or their number is no multiple of [`PARTS`].
    pub(crate) fn multiply_parts(&self, x: [&[Tile]; 2], w: [&[Tile]; 2], sums: &mut Square) {
        let n = x[0].len();
        let alike = x[1].len() == n && w[0].len() == n && w[1].len() == n;
        assert!(n > 0 && n.is_multiple_of(PARTS) && alike, "tiles do not match");
        // SAFETY: this thread's tiles are whole; the loops read `n` tiles behind each pointer, and rows of `sums` are 128 bytes.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                // The third part of `x` with the first of `w`.
                "tileloadd tmm4, [{x0} + {row} + 2 * {tile}]",
                "tileloadd tmm6, [{w0} + {row}]",
                "tileloadd tmm5, [{x1} + {row} + 2 * {tile}]",
                "tileloadd tmm7, [{w1} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                // The second with the first.
                "tileloadd tmm4, [{x0} + {row} + {tile}]",
                "tileloadd tmm5, [{x1} + {row} + {tile}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                // The second with the second.
                "tileloadd tmm6, [{w0} + {row} + {tile}]",
                "tileloadd tmm7, [{w1} + {row} + {tile}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                // The first with the second.
                "tileloadd tmm4, [{x0} + {row}]",
                "tileloadd tmm5, [{x1} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                // The first with the third.
                "tileloadd tmm6, [{w0} + {row} + 2 * {tile}]",
                "tileloadd tmm7, [{w1} + {row} + 2 * {tile}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {x0}, 3 * {tile}",
                "add {x1}, 3 * {tile}",
                "add {w0}, 3 * {tile}",
                "add {w1}, 3 * {tile}",
                "dec {n}",
                "jnz 2b",
                "imul {n}, {steps}, {parts} * {tile}",
                "sub {x0}, {n}",
                "sub {x1}, {n}",
                "sub {w0}, {n}",
                "sub {w1}, {n}",
                "3:",
                // The first with the first.
                "tileloadd tmm4, [{x0} + {row}]",
                "tileloadd tmm6, [{w0} + {row}]",
                "tileloadd tmm5, [{x1} + {row}]",
                "tileloadd tmm7, [{w1} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {x0}, {parts} * {tile}",
                "add {x1}, {parts} * {tile}",
                "add {w0}, {parts} * {tile}",
                "add {w1}, {parts} * {tile}",
                "dec {steps}",
                "jnz 3b",
                "tilestored [{sums} + {side}], tmm0",
                "tilestored [{sums} + {side} + {row_bytes}], tmm1",
                "tilestored [{sums} + {side} + 2 * {tile}], tmm2",
                "tilestored [{sums} + {side} + 2 * {tile} + {row_bytes}], tmm3",
                x0 = inout(reg) x[0].as_ptr() => _,
                x1 = inout(reg) x[1].as_ptr() => _,
                w0 = inout(reg) w[0].as_ptr() => _,
                w1 = inout(reg) w[1].as_ptr() => _,
                steps = inout(reg) n / PARTS => _,
                n = inout(reg) n / PARTS => _,
                sums = in(reg) sums.0.as_mut_ptr(),
                row = in(reg) ROW_BYTES,
                side = in(reg) SIDE_BYTES,
                row_bytes = const ROW_BYTES,
                parts = const PARTS,
                tile = const TILE_BYTES,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Bytes without a pattern.
    fn bytes(seed: usize) -> Tile {
        let mut tile = Tile::ZERO;
        for (i, byte) in tile.0.as_flattened_mut().iter_mut().enumerate() {
            *byte = ((i + seed * 5003) * 7919 % 1021) as u8;
        }
        tile
    }

    #[test]
    fn products_of_bytes_are_their_sums() {
        let tiles = Amx::for_tests().configure();
        for n in [1, 2, 5] {
            let several = |seed: usize| (0..n).map(|i| bytes(seed + i)).collect::<Vec<_>>();
            let (x, w) = ([several(1), several(20)], [several(40), several(60)]);
            let mut sums = [[Sums([[-1; ROWS]; ROWS]); 2]; 2];
            tiles.multiply_bytes([&x[0], &x[1]], [&w[0], &w[1]], &mut sums);
            for (x, sums) in x.iter().zip(&sums) {
                for (w, sums) in w.iter().zip(sums) {
                    for row in 0..ROWS {
                        for col in 0..ROWS {
                            let products = x.iter().zip(w).map(|(x, w)| {
                                let bytes = (0..ROW_BYTES).map(|i| (x.0[row][i], w.0[i / 4][4 * col + i % 4]));
                                bytes.map(|(x, w)| i32::from(x.cast_signed()) * i32::from(w)).sum::<i32>()
                            });
                            assert_eq!(sums.0[row][col], products.sum::<i32>(), "{n} tiles, row {row}, column {col}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_thread_has_its_tiles_once_at_a_time() {
        let amx = Amx::for_tests();
        let work = move || {
            for _ in 0..2 {
                let tiles = amx.configure();
                let mut sums = [[Sums::ZERO; 2]; 2];
                tiles.multiply_bytes([&[bytes(1)], &[bytes(2)]], [&[bytes(3)], &[bytes(4)]], &mut sums);
            }
            let _tiles = amx.configure();
            amx.configure();
        };
        let panic = std::thread::spawn(work).join().unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"this thread has its tiles already"));
    }
}
