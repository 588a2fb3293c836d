//! The instructions of `mod.rs` for tests on a CPU that has none of them: such an instruction raises a signal, whose handler computes what
//! it stands for and goes on behind it. After the instruction set's description (Intel's Architecture Instruction Set Extensions, AMX);
//! what the tests use is there, all else ends the program as it would without.

use std::cell::UnsafeCell;
use std::sync::Once;

use libc::{c_int, c_void, greg_t, siginfo_t, ucontext_t};

use super::{ROW_BYTES, ROWS};

/// A tile's rows and bytes of a row, and what it holds.
#[derive(Clone, Copy)]
struct Register {
    rows: usize,
    bytes_of_row: usize,
    content: [[u8; ROW_BYTES]; ROWS],
}

thread_local! {
    /// A thread without a configuration has tiles of no rows.
    static REGISTERS: UnsafeCell<[Register; 8]> =
        const { UnsafeCell::new([Register { rows: 0, bytes_of_row: 0, content: [[0; ROW_BYTES]; ROWS] }; 8]) };
}

/// Emulates tiles in this process from now on.
pub(super) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler is a function of the form that `SA_SIGINFO` asks for.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut()), 0, "no handler");
        }
    });
}

extern "C" fn handle(_: c_int, _: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel hands over the registers of the thread that met the instruction, and nobody else uses them or its tiles.
    let done = unsafe {
        let registers = &mut (*context.cast::<ucontext_t>()).uc_mcontext.gregs;
        REGISTERS.with(|tiles| execute(registers, &mut *tiles.get()))
    };
    if done.is_none() {
        // SAFETY: the default action of the signal takes a null handler.
        unsafe { libc::signal(libc::SIGILL, libc::SIG_DFL) };
    }
}

/// Executes the instruction at the instruction pointer and moves the pointer behind it; `None` if it is none of ours.
///
/// # Safety
/// Registers must be those of a thread that met an instruction which its CPU does not know.
unsafe fn execute(registers: &mut [greg_t; 23], tiles: &mut [Register; 8]) -> Option<()> {
    let start = registers[libc::REG_RIP as usize] as *const u8;
    // SAFETY: an instruction of this kind is 5 bytes or longer.
    let bytes = unsafe { std::slice::from_raw_parts(start, 5) };
    // The prefix of three bytes, opcodes of map 0F38, 128 bits.
    if bytes[0] != 0xc4 || bytes[1] & 0x1f != 2 || bytes[2] & 0x84 != 0 {
        return None;
    }
    let (prefix, opcode, operands) = (bytes[2] & 3, bytes[3], bytes[4]);
    let third = usize::from(!bytes[2] >> 3 & 0xf);
    let (reg, rm) = (usize::from(operands >> 3 & 7), usize::from(operands & 7));
    if operands >> 6 == 3 {
        match (opcode, prefix) {
            (0x49, 0) => *tiles = [Register { rows: 0, bytes_of_row: 0, content: [[0; ROW_BYTES]; ROWS] }; 8],
            (0x49, 3) if tiles[reg].rows > 0 => tiles[reg].content = [[0; ROW_BYTES]; ROWS],
            (0x5c, 2) => multiply(tiles, [reg, rm, third], Product::Bf16)?,
            (0x5e, 2) => multiply(tiles, [reg, rm, third], Product::Bytes)?,
            _ => return None,
        }
        registers[libc::REG_RIP as usize] += 5;
        return Some(());
    }
    // SAFETY: the operand belongs to the instruction.
    let (place, length) = unsafe { Place::read(registers, start.add(4), bytes[1]) };
    // SAFETY: what the instruction reads and writes is its own matter.
    unsafe {
        match (opcode, prefix) {
            (0x49, 0) => configure(tiles, place.start as *const u8)?,
            (0x4b, 3) if tiles[reg].rows > 0 => {
                let Register { rows, bytes_of_row, content } = &mut tiles[reg];
                *content = [[0; ROW_BYTES]; ROWS];
                for (row, content) in content.iter_mut().enumerate().take(*rows) {
                    let from = place.start.wrapping_add(row * place.stride) as *const u8;
                    from.copy_to_nonoverlapping(content.as_mut_ptr(), *bytes_of_row);
                }
            }
            (0x4b, 2) if tiles[reg].rows > 0 => {
                let Register { rows, bytes_of_row, content } = &tiles[reg];
                for (row, content) in content.iter().enumerate().take(*rows) {
                    let to = place.start.wrapping_add(row * place.stride) as *mut u8;
                    content.as_ptr().copy_to_nonoverlapping(to, *bytes_of_row);
                }
            }
            _ => return None,
        }
    }
    registers[libc::REG_RIP as usize] += 4 + length as greg_t;
    Some(())
}

/// An operand in memory: where a tile's first row is, and how far rows are apart.
struct Place {
    start: usize,
    stride: usize,
}

impl Place {
    /// With the bytes that the operand takes.
    ///
    /// # Safety
    /// `at` must point to an operand in memory that does not start at the instruction pointer.
    unsafe fn read(registers: &[greg_t; 23], at: *const u8, extensions: u8) -> (Self, usize) {
        let extension = |bit: u8| if extensions & bit == 0 { 8 } else { 0 };
        let register = |number: usize| registers[OF_NUMBERS[number] as usize] as usize;
        // SAFETY: the caller says so, and operands say themselves how long they are.
        unsafe {
            let mode = *at >> 6;
            let (base, index, mut length) = if *at & 7 == 4 {
                let second = *at.add(1);
                let index = usize::from(second >> 3 & 7) + extension(0x40);
                let stride = if index == 4 { 0 } else { register(index) << (second >> 6) };
                (register(usize::from(second & 7) + extension(0x20)), stride, 2)
            } else {
                (register(usize::from(*at & 7) + extension(0x20)), 0, 1)
            };
            let moved = match mode {
                0 => 0,
                1 => *at.add(length).cast::<i8>() as isize,
                _ => at.add(length).cast::<i32>().read_unaligned() as isize,
            };
            length += [0, 1, 4][usize::from(mode)];
            (Self { start: base.wrapping_add_signed(moved), stride: index }, length)
        }
    }
}

/// Where the kernel puts the general registers, in the order of their numbers.
const OF_NUMBERS: [c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Sets rows and bytes of rows; all tiles are zero then.
///
/// # Safety
/// `config` must point to 64 bytes.
unsafe fn configure(tiles: &mut [Register; 8], config: *const u8) -> Option<()> {
    // SAFETY: the caller says so.
    let config = unsafe { std::slice::from_raw_parts(config, 64) };
    if config[0] != 1 || config[1..16].iter().any(|&byte| byte != 0) {
        return None;
    }
    for (i, tile) in tiles.iter_mut().enumerate() {
        let bytes_of_row = usize::from(u16::from_le_bytes([config[16 + 2 * i], config[17 + 2 * i]]));
        let rows = usize::from(config[48 + i]);
        if rows > ROWS || bytes_of_row > ROW_BYTES {
            return None;
        }
        *tile = Register { rows, bytes_of_row, content: [[0; ROW_BYTES]; ROWS] };
    }
    Some(())
}

/// What two tiles hold.
#[derive(Clone, Copy)]
enum Product {
    /// Signed bytes on the left, unsigned ones on the right, sums of 32 bits.
    Bytes,
    /// Pairs of bf16, sums of f32; what is too small for a normal number is zero.
    Bf16,
}

impl Product {
    /// Adds the products of four bytes of a row with four of a column: of bf16 the first of each pair to one sum, the second to another.
    fn add(self, left: [u8; 4], right: [u8; 4], sums: &mut [u32; 2]) {
        match self {
            Self::Bytes => {
                for (left, right) in left.into_iter().zip(right) {
                    let product = i32::from(left.cast_signed()) * i32::from(right);
                    sums[0] = sums[0].wrapping_add(product.cast_unsigned());
                }
            }
            Self::Bf16 => {
                for (i, sum) in sums.iter_mut().enumerate() {
                    let value = |of: [u8; 4]| flushed(u32::from_le_bytes([0, 0, of[2 * i], of[2 * i + 1]]));
                    *sum = flushed(value(left).mul_add(value(right), f32::from_bits(*sum)).to_bits()).to_bits();
                }
            }
        }
    }

    /// Both sums with what was there before.
    fn total(self, before: u32, [first, second]: [u32; 2]) -> u32 {
        match self {
            Self::Bytes => before.wrapping_add(first),
            Self::Bf16 => {
                let both = flushed((f32::from_bits(first) + f32::from_bits(second)).to_bits());
                flushed((flushed(before) + both).to_bits()).to_bits()
            }
        }
    }
}

fn flushed(bits: u32) -> f32 {
    let value = f32::from_bits(bits);
    if value.is_subnormal() { 0.0_f32.copysign(value) } else { value }
}

fn multiply(tiles: &mut [Register; 8], [to, left, right]: [usize; 3], product: Product) -> Option<()> {
    let (left, right) = (*tiles.get(left)?, *tiles.get(right)?);
    let to = &mut tiles[to];
    let fitting = left.rows == to.rows && left.bytes_of_row == 4 * right.rows && right.bytes_of_row == to.bytes_of_row;
    if !fitting || to.rows == 0 {
        return None;
    }
    for row in 0..to.rows {
        for at in (0..to.bytes_of_row).step_by(4) {
            let four = |row: &[u8; ROW_BYTES], at: usize| [row[at], row[at + 1], row[at + 2], row[at + 3]];
            let mut sums = [0, 0];
            for depth in 0..right.rows {
                product.add(four(&left.content[row], 4 * depth), four(&right.content[depth], at), &mut sums);
            }
            let before = u32::from_le_bytes(four(&to.content[row], at));
            to.content[row][at..at + 4].copy_from_slice(&product.total(before, sums).to_le_bytes());
        }
    }
    Some(())
}
