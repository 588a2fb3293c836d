//! The pickle of a state dict, read by a machine that knows only what `torch.save` writes for one: no name is looked up, nothing
//! is called, and whatever else a pickle can say is an error that names it.
//!
//! Opcodes: Python's `pickletools`. Names: `torch/_utils.py` and `torch/serialization.py`, protocol 2.

mod reader;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};

use safetensors::Dtype;

use self::reader::Reader;
use super::Problem;
use super::names::Global;
use super::view::View;

/// The most opcodes that are executed, each of which makes at most one value: bounds time and memory. A tensor takes about 45.
const MAX_OPCODES: usize = 1 << 22;
/// The most dimensions of a tensor.
const MAX_DIMS: usize = 16;

/// A tensor of a state dict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pickled<'a> {
    /// The storage is the file `data/{key}`.
    pub(super) key: &'a str,
    /// Size of the storage.
    pub(super) storage_bytes: u64,
    pub(super) view: View,
}

/// The tensors of the state dict that `bytes` pickle, in their order.
///
/// # Errors
/// Anything but a dictionary of plain tensors.
pub(super) fn state_dict(bytes: &[u8]) -> Result<Vec<(&str, Pickled<'_>)>, Problem> {
    let mut machine = Machine::new(bytes);
    let result = machine.run()?;
    let Value::Dict(dict) = result else {
        return Err(foreign(format!("it holds {}, expected a dictionary of tensors", result.kind())));
    };
    let mut seen = BTreeSet::new();
    let mut tensors = Vec::new();
    for (key, value) in &machine.dicts[dict] {
        let Value::Text(name) = *key else {
            return Err(foreign(format!("a key is {}, expected the name of a tensor", key.kind())));
        };
        let Value::Tensor(tensor) = *value else {
            return Err(foreign(format!("{name:?} is {}, expected a tensor", value.kind())));
        };
        if !seen.insert(name) {
            return Err(Problem::Damaged(format!("two tensors are named {name:?}")));
        }
        tensors.push((name, machine.tensors[tensor].clone()));
    }
    Ok(tensors)
}

/// A value on the stack. Whatever has parts is an index into a list of the machine, so that no depth of nesting is recursion.
#[derive(Clone, Copy)]
enum Value<'a> {
    None,
    Bool,
    Int(i64),
    Text(&'a str),
    Global(Global),
    /// Parts by their places in `Machine::parts`.
    Tuple {
        start: usize,
        len: usize,
    },
    Dict(usize),
    Storage(usize),
    Tensor(usize),
}

impl Value<'_> {
    fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool => "a boolean",
            Self::Int(_) => "a number",
            Self::Text(_) => "a text",
            Self::Global(_) => "a class",
            Self::Tuple { .. } => "a tuple",
            Self::Dict(_) => "a dictionary",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) => "a tensor",
        }
    }
}

struct StoredBytes<'a> {
    /// `None` where the tensor says it.
    dtype: Option<Dtype>,
    key: &'a str,
    bytes: u64,
}

struct Machine<'a> {
    input: Reader<'a>,
    stack: Vec<Value<'a>>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    parts: Vec<Value<'a>>,
    dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    storages: Vec<StoredBytes<'a>>,
    tensors: Vec<Pickled<'a>>,
}

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            input: Reader::new(bytes),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            parts: Vec::new(),
            dicts: Vec::new(),
            storages: Vec::new(),
            tensors: Vec::new(),
        }
    }

    /// The value that the pickle ends with.
    fn run(&mut self) -> Result<Value<'a>, Problem> {
        for _ in 0..MAX_OPCODES {
            let opcode_at = self.input.at;
            match self.input.byte()? {
                b'.' => return self.result(),
                opcode => self.step(opcode, opcode_at)?,
            }
        }
        Err(foreign(format!("its pickle has more than {MAX_OPCODES} opcodes")))
    }

    fn result(&mut self) -> Result<Value<'a>, Problem> {
        let result = self.pop()?;
        if self.stack.is_empty() && self.marks.is_empty() && self.input.is_at_end() {
            Ok(result)
        } else {
            Err(broken("values are left over at its end"))
        }
    }

    fn step(&mut self, opcode: u8, opcode_at: usize) -> Result<(), Problem> {
        match opcode {
            // PROTO
            0x80 => match self.input.byte()? {
                2 => {}
                protocol => return Err(foreign(format!("its pickle has protocol {protocol}, expected 2"))),
            },
            b'(' => self.marks.push(self.stack.len()),
            // GLOBAL
            b'c' => {
                let (module, name) = (self.input.line()?, self.input.line()?);
                let global = Global::named(module, name).ok_or_else(|| unknown_name(module, name))?;
                self.stack.push(Value::Global(global));
            }
            // BINPUT, LONG_BINPUT
            b'q' => {
                let index = u32::from(self.input.byte()?);
                self.remember(index)?;
            }
            b'r' => {
                let index = self.input.u32()?;
                self.remember(index)?;
            }
            // BINGET, LONG_BINGET
            b'h' => {
                let index = u32::from(self.input.byte()?);
                self.recall(index)?;
            }
            b'j' => {
                let index = self.input.u32()?;
                self.recall(index)?;
            }
            // NONE, NEWTRUE, NEWFALSE
            b'N' => self.stack.push(Value::None),
            0x88 | 0x89 => self.stack.push(Value::Bool),
            // BININT1, BININT2, BININT, LONG1
            b'K' => {
                let value = self.input.byte()?;
                self.stack.push(Value::Int(value.into()));
            }
            b'M' => {
                let value = self.input.take(2)?;
                self.stack.push(Value::Int(u16::from_le_bytes([value[0], value[1]]).into()));
            }
            b'J' => {
                let value = self.input.u32()?.cast_signed();
                self.stack.push(Value::Int(value.into()));
            }
            0x8a => {
                let value = self.input.long()?;
                self.stack.push(Value::Int(value));
            }
            // BINUNICODE
            b'X' => {
                let length = self.input.u32()? as usize;
                let text = self.input.take(length)?;
                let text = std::str::from_utf8(text).map_err(|_| broken("a text is not UTF-8"))?;
                self.stack.push(Value::Text(text));
            }
            // EMPTY_TUPLE, TUPLE1, TUPLE2, TUPLE3, TUPLE
            b')' => self.tuple(0)?,
            0x85..=0x87 => self.tuple(usize::from(opcode - 0x84))?,
            b't' => {
                let mark = self.pop_mark()?;
                self.tuple(self.stack.len() - mark)?;
            }
            // EMPTY_DICT, SETITEM, SETITEMS
            b'}' => self.new_dict(),
            b's' => {
                let first = self.stack.len().checked_sub(2).ok_or_else(underflow)?;
                self.set_items(first)?;
            }
            b'u' => {
                let mark = self.pop_mark()?;
                self.set_items(mark)?;
            }
            // REDUCE, BUILD, BINPERSID
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            b'Q' => self.storage()?,
            other => {
                return Err(foreign(format!(
                    "its pickle has opcode {other:#04x} at byte {opcode_at}, which no plain tensor needs"
                )));
            }
        }
        Ok(())
    }

    fn pop(&mut self) -> Result<Value<'a>, Problem> {
        let floor = self.marks.last().copied().unwrap_or_default();
        if self.stack.len() <= floor {
            return Err(underflow());
        }
        self.stack.pop().ok_or_else(underflow)
    }

    fn pop_mark(&mut self) -> Result<usize, Problem> {
        self.marks.pop().filter(|mark| *mark <= self.stack.len()).ok_or_else(underflow)
    }

    fn remember(&mut self, index: u32) -> Result<(), Problem> {
        let value = *self.stack.last().ok_or_else(underflow)?;
        self.memo.insert(index, value);
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<(), Problem> {
        let value = *self.memo.get(&index).ok_or_else(|| broken("it recalls a value that it never stored"))?;
        self.stack.push(value);
        Ok(())
    }

    /// Makes a tuple of the last `len` values.
    fn tuple(&mut self, len: usize) -> Result<(), Problem> {
        let floor = self.marks.last().copied().unwrap_or_default();
        let first = self.stack.len().checked_sub(len).filter(|first| *first >= floor).ok_or_else(underflow)?;
        let start = self.parts.len();
        self.parts.extend(self.stack.drain(first..));
        self.stack.push(Value::Tuple { start, len });
        Ok(())
    }

    fn new_dict(&mut self) {
        self.dicts.push(Vec::new());
        self.stack.push(Value::Dict(self.dicts.len() - 1));
    }

    /// Puts keys and values from place `first` of the stack on into the dictionary below them.
    fn set_items(&mut self, first: usize) -> Result<(), Problem> {
        let floor = self.marks.last().copied().unwrap_or_default();
        let dict_at = first.checked_sub(1).filter(|at| *at >= floor).ok_or_else(underflow)?;
        let Value::Dict(dict) = self.stack[dict_at] else {
            return Err(broken("items are put into something else than a dictionary"));
        };
        let items: Vec<Value<'a>> = self.stack.drain(first..).collect();
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(broken("a key has no value"));
        }
        self.dicts[dict].extend(pairs.iter().map(|[key, value]| (*key, *value)));
        Ok(())
    }

    /// The result of a known function of a tuple of arguments.
    fn reduce(&mut self) -> Result<(), Problem> {
        let arguments = self.pop()?;
        let function = self.pop()?;
        let (Value::Global(function), Value::Tuple { start, len }) = (function, arguments) else {
            return Err(broken("something else than a function is called"));
        };
        let arguments = self.parts[start..start + len].to_vec();
        match (function, arguments.as_slice()) {
            (Global::OrderedDict, []) => self.new_dict(),
            (
                Global::RebuildTensor,
                [storage, offset, shape, strides, _, _] | [storage, offset, shape, strides, _, _, _],
            ) => {
                self.tensor([*storage, *offset, *shape, *strides], None)?;
            }
            (
                Global::RebuildTypedTensor,
                [storage, offset, shape, strides, _, _, Value::Global(Global::Dtype(dtype))]
                | [storage, offset, shape, strides, _, _, Value::Global(Global::Dtype(dtype)), _],
            ) => self.tensor([*storage, *offset, *shape, *strides], Some(*dtype))?,
            (Global::RebuildParameter, [tensor @ Value::Tensor(_), _, _]) => self.stack.push(*tensor),
            _ => return Err(broken("a function is called with other arguments than torch.save writes")),
        }
        Ok(())
    }

    /// A state dict carries the versions of its modules as an attribute, which says nothing of its tensors.
    fn build(&mut self) -> Result<(), Problem> {
        let state = self.pop()?;
        let floor = self.marks.last().copied().unwrap_or_default();
        match (self.stack.get(floor..).and_then(<[_]>::last), state) {
            (Some(Value::Dict(_)), Value::Dict(_)) => Ok(()),
            (Some(object), state) => Err(foreign(format!("{} is given {} as its state", object.kind(), state.kind()))),
            (None, _) => Err(underflow()),
        }
    }

    /// The storage of a tuple `("storage", class, key, device, number of elements)`.
    fn storage(&mut self) -> Result<(), Problem> {
        let Value::Tuple { start, len } = self.pop()? else { return Err(broken("a storage is no tuple")) };
        let [
            Value::Text("storage"),
            Value::Global(Global::Storage(dtype)),
            Value::Text(key),
            Value::Text(_),
            Value::Int(n),
        ] = self.parts[start..start + len]
        else {
            return Err(broken("a storage is described otherwise than torch.save does"));
        };
        let width = dtype.map_or(1, |dtype| dtype.bitsize() as u64 / 8);
        let bytes = u64::try_from(n)
            .ok()
            .and_then(|n| n.checked_mul(width))
            .ok_or_else(|| broken("a storage has an absurd size"))?;
        self.storages.push(StoredBytes { dtype, key, bytes });
        self.stack.push(Value::Storage(self.storages.len() - 1));
        Ok(())
    }

    fn tensor(
        &mut self,
        [storage, offset, shape, strides]: [Value<'a>; 4],
        dtype: Option<Dtype>,
    ) -> Result<(), Problem> {
        let wrong = || broken("a tensor is described otherwise than torch.save does");
        let Value::Storage(storage) = storage else { return Err(wrong()) };
        let storage = &self.storages[storage];
        let dtype = storage.dtype.xor(dtype).ok_or_else(wrong)?;
        let Value::Int(offset) = offset else { return Err(wrong()) };
        let offset = usize::try_from(offset).map_err(|_| wrong())?;
        let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
        if shape.len() != strides.len() {
            return Err(wrong());
        }
        let view = View { dtype, offset, shape, strides };
        view.check(storage.bytes)?;
        self.tensors.push(Pickled { key: storage.key, storage_bytes: storage.bytes, view });
        self.stack.push(Value::Tensor(self.tensors.len() - 1));
        Ok(())
    }

    /// The numbers of a tuple, none of them negative.
    fn sizes(&self, tuple: Value<'a>) -> Result<Vec<usize>, Problem> {
        let wrong = || broken("a shape or strides are no tuple of numbers");
        let Value::Tuple { start, len } = tuple else { return Err(wrong()) };
        if len > MAX_DIMS {
            return Err(broken("a tensor has too many dimensions"));
        }
        let size = |value: &Value<'a>| match value {
            Value::Int(size) => usize::try_from(*size).map_err(|_| wrong()),
            _ => Err(wrong()),
        };
        self.parts[start..start + len].iter().map(size).collect()
    }
}

fn foreign(problem: String) -> Problem {
    Problem::Foreign(problem)
}

fn broken(problem: &str) -> Problem {
    Problem::Damaged(format!("its pickle is broken: {problem}"))
}

fn underflow() -> Problem {
    broken("a value is missing")
}

fn unknown_name(module: &str, name: &str) -> Problem {
    foreign(format!("its pickle names {module}.{name}, which no plain tensor needs and which is not called"))
}
