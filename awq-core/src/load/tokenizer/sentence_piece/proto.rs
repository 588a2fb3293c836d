//! The few fields of a SentencePiece model file that decide ids; the file is a protobuf message, `sentencepiece_model.proto` of
//! SentencePiece 0.2.

/// The largest file that is read: the largest known one has 4 MB.
pub(super) const MAX_BYTES: u64 = 64 << 20;
const MAX_PIECES: usize = 1 << 21;

/// A SentencePiece model.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Model {
    /// The index is the id.
    pub(super) pieces: Vec<ModelPiece>,
    pub(super) algorithm: Algorithm,
    /// Characters without a piece are spelled in bytes.
    pub(super) byte_fallback: bool,
    pub(super) unk_id: usize,
    /// `None` where the model has no such token.
    pub(super) bos_id: Option<usize>,
    pub(super) eos_id: Option<usize>,
    /// A compiled table of characters and what stands for them; empty for none.
    pub(super) charsmap: Vec<u8>,
    pub(super) add_dummy_prefix: bool,
    pub(super) remove_extra_whitespaces: bool,
    pub(super) escape_whitespaces: bool,
}

/// A piece of text and what it is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ModelPiece {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: PieceKind,
}

/// `ModelProto.SentencePiece.Type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PieceKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Byte,
}

/// `TrainerSpec.ModelType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Unigram,
    Bpe,
}

impl Model {
    /// Parses the bytes of a model file.
    ///
    /// # Errors
    /// Bytes that are no such message, or a model with something that is not supported, as the end of a sentence.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        // What holds where the file does not say, as the proto has it.
        let mut model = Self {
            pieces: Vec::new(),
            algorithm: Algorithm::Unigram,
            byte_fallback: false,
            unk_id: 0,
            bos_id: Some(1),
            eos_id: Some(2),
            charsmap: Vec::new(),
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        };
        for field in Fields(bytes) {
            match field? {
                (1, Value::Bytes(piece)) if model.pieces.len() < MAX_PIECES => {
                    model.pieces.push(ModelPiece::parse(piece)?);
                }
                (1, Value::Bytes(_)) => return Err(format!("it has more than {MAX_PIECES} pieces")),
                (2, Value::Bytes(trainer)) => model.read_trainer(trainer)?,
                (3, Value::Bytes(normalizer)) => model.read_normalizer(normalizer)?,
                _ => {}
            }
        }
        if model.pieces.is_empty() {
            return Err("it has no pieces".to_owned());
        }
        if model.pieces.get(model.unk_id).is_none_or(|piece| piece.kind != PieceKind::Unknown) {
            return Err(format!("the piece of its unknown token, {}, is no such piece", model.unk_id));
        }
        let in_range = |id: &usize| *id < model.pieces.len();
        (model.bos_id, model.eos_id) = (model.bos_id.filter(in_range), model.eos_id.filter(in_range));
        Ok(model)
    }

    fn read_trainer(&mut self, bytes: &[u8]) -> Result<(), String> {
        for field in Fields(bytes) {
            match field? {
                (3, Value::Int(1)) => self.algorithm = Algorithm::Unigram,
                (3, Value::Int(2)) => self.algorithm = Algorithm::Bpe,
                (3, Value::Int(other)) => {
                    return Err(format!("its model type is {other}, expected 1 (unigram) or 2 (BPE)"));
                }
                (24, Value::Int(suffix)) if suffix != 0 => {
                    return Err(
                        "it writes spaces behind words (treat_whitespace_as_suffix), which is not read".to_owned()
                    );
                }
                (35, Value::Int(value)) => self.byte_fallback = value != 0,
                (40, Value::Int(id)) => self.unk_id = id_of(id).ok_or("it has no unknown token")?,
                (41, Value::Int(id)) => self.bos_id = id_of(id),
                (42, Value::Int(id)) => self.eos_id = id_of(id),
                _ => {}
            }
        }
        Ok(())
    }

    fn read_normalizer(&mut self, bytes: &[u8]) -> Result<(), String> {
        for field in Fields(bytes) {
            match field? {
                (2, Value::Bytes(charsmap)) => self.charsmap = charsmap.to_vec(),
                (3, Value::Int(value)) => self.add_dummy_prefix = value != 0,
                (4, Value::Int(value)) => self.remove_extra_whitespaces = value != 0,
                (5, Value::Int(value)) => self.escape_whitespaces = value != 0,
                _ => {}
            }
        }
        Ok(())
    }
}

impl ModelPiece {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut piece = Self { text: String::new(), score: 0.0, kind: PieceKind::Normal };
        for field in Fields(bytes) {
            match field? {
                (1, Value::Bytes(text)) => {
                    piece.text = String::from_utf8(text.to_vec()).map_err(|_| "a piece is not UTF-8")?;
                }
                (2, Value::Fixed32(score)) => piece.score = f32::from_le_bytes(score),
                (3, Value::Int(kind)) => {
                    piece.kind = match kind {
                        1 => PieceKind::Normal,
                        2 => PieceKind::Unknown,
                        3 => PieceKind::Control,
                        4 => PieceKind::UserDefined,
                        6 => PieceKind::Byte,
                        other => return Err(format!("a piece has type {other}, which is not read")),
                    };
                }
                _ => {}
            }
        }
        if piece.text.is_empty() || !piece.score.is_finite() {
            return Err(format!("a piece is {:?} with score {}", piece.text, piece.score));
        }
        Ok(piece)
    }
}

/// An id; negative numbers, which stand for none, are large ones here.
fn id_of(number: u64) -> Option<usize> {
    u32::try_from(number).ok().map(|id| id as usize)
}

/// The value of a field.
enum Value<'a> {
    Int(u64),
    Fixed32([u8; 4]),
    Fixed64,
    Bytes(&'a [u8]),
}

/// The fields of a message: numbers and values, in their order.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn read(&mut self) -> Option<(u64, Value<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Int(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed64)?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Fixed32(*self.take(4)?.first_chunk()?),
            _ => return None,
        };
        Some((tag >> 3, value)).filter(|(number, _)| *number != 0)
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    /// Seven bits a byte, the lowest first.
    fn varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or_else(|| "it is no SentencePiece model, or damaged".to_owned()))
    }
}
