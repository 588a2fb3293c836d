//! Conversations: the text that a model expects around the turns, which its own chat template makes.
//!
//! A template is a Jinja program that came with the model. It runs as in transformers' `apply_chat_template` (5.24): blocks are
//! trimmed, methods are Python's, `tojson` writes as Python's `json.dumps`. It can read nothing but what it is given, and its
//! work is bounded, since a template is a stranger's program.

mod bounded;
mod sizes;

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use chrono::format::{Item, StrftimeItems};
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, context, escape_formatter};
use serde::{Deserialize, Serialize};
use serde_json::ser::Formatter;

use self::bounded::{LimitedText, OF_TEMPLATE, TOO_LONG, within};

/// Instructions that one rendering takes at most: real templates take some thousands a message.
const FUEL: u64 = 20_000_000;
/// Calls inside calls.
const DEPTH: usize = 200;
/// The name under which errors speak of the template.
const NAME: &str = "chat_template";

/// One turn of a conversation, with whatever a template reads of it: `role` and `content` at least, in the order in which they
/// were given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Message(Value);

impl Message {
    /// A turn of text.
    pub fn new(role: &str, content: &str) -> Self {
        Self(context! { role, content })
    }

    /// Who speaks; empty where the turn does not say.
    pub fn role(&self) -> String {
        self.0.get_attr("role").ok().and_then(|role| role.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

/// A model's chat template, compiled.
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    /// Spellings by name, such as `bos_token`.
    special_tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Compiles a template. `special_tokens` are spellings by name, such as `bos_token`.
    ///
    /// # Errors
    /// A model without a template, or one that is no Jinja program, with its line.
    pub fn new(template: Option<&str>, special_tokens: BTreeMap<String, String>) -> anyhow::Result<Self> {
        let template = template.context(
            "this model has no chat template (it is no chat model, or its chat_template.jinja or tokenizer_config.json is \
             missing); use `experiments generate`",
        )?;
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(DEPTH);
        environment.set_formatter(python_formatter);
        sizes::bound(&mut environment);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, without_generation_tags(template))
            .map_err(|error| template_error(&error, "cannot be compiled"))?;
        Ok(Self { environment: Arc::new(environment), special_tokens })
    }

    /// The text of a conversation, up to where the model answers where that is asked for.
    ///
    /// # Errors
    /// What the template itself objects to (an order of roles, say), or work without end: more than 10 s, 1 GiB of memory
    /// or 64 MiB of text.
    pub fn render(&self, messages: &[Message], asks_for_answer: bool) -> anyhow::Result<String> {
        let known = context! {
            messages => messages,
            add_generation_prompt => asks_for_answer,
            tools => Value::from(()),
            documents => Value::from(()),
        };
        let context = context! { ..known, ..Value::from_serialize(&self.special_tokens) };
        let environment = Arc::clone(&self.environment);
        let done = within(OF_TEMPLATE, move || {
            let mut text = LimitedText::default();
            environment.get_template(NAME)?.render_captured_to(context, &mut text)?;
            Ok(text.into_text())
        });
        match done.context("no thread for the chat template")? {
            Ok(text) => text.map_err(|error: Error| template_error(&error, FAILS)),
            Err(given_up) => Err(refused(FAILS, "", &given_up.to_string())),
        }
    }

    /// What the template puts behind an answer; empty where it cannot be told.
    pub fn after_answer(&self) -> String {
        const ANSWER: &str = "An answer that ends here";
        let turns = [Message::new("user", "A question"), Message::new("assistant", ANSWER)];
        let text = self.render(&turns, false).unwrap_or_default();
        text.rsplit_once(ANSWER).map_or_else(String::new, |(_, after)| after.to_owned())
    }
}

const FAILS: &str = "fails on this conversation";

fn template_error(error: &Error, what: &str) -> anyhow::Error {
    let line = error.line().map_or_else(String::new, |line| format!("line {line}: "));
    let problem = match error.kind() {
        ErrorKind::OutOfFuel => "it does not end".to_owned(),
        ErrorKind::WriteFailure => TOO_LONG.to_owned(),
        _ => error.detail().map_or_else(|| error.kind().to_string(), str::to_owned),
    };
    refused(what, &line, &problem)
}

fn refused(what: &str, line: &str, problem: &str) -> anyhow::Error {
    anyhow!("the chat template {what}: {line}{problem}; use `experiments generate` with the whole text as the prompt")
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// The local time as `format` says.
fn strftime_now(format: String) -> Result<String, Error> {
    // An unknown directive would end the program when it is printed.
    if StrftimeItems::new(&format).any(|item| matches!(item, Item::Error)) {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("{format:?} is no format of a time")));
    }
    Ok(chrono::Local::now().format(&format).to_string())
}

/// Truth values and nothing as Python prints them.
fn python_formatter(out: &mut Output<'_>, state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    sizes::check_length(value)?;
    let python = match value.kind() {
        ValueKind::Bool if value.is_true() => "True",
        ValueKind::Bool => "False",
        ValueKind::None => "None",
        _ => return escape_formatter(out, state, value),
    };
    out.write_str(python).map_err(Error::from)
}

/// As transformers' filter: Python's `json.dumps`, by default without escapes of what is not ASCII.
fn to_json(value: Value, options: Kwargs) -> Result<String, Error> {
    let bad = |message: String| Error::new(ErrorKind::InvalidOperation, message);
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let is_ascii: Option<bool> = options.get("ensure_ascii")?;
    if options.get::<Option<bool>>("sort_keys")? == Some(true) {
        return Err(bad("tojson: sort_keys is not supported".to_owned()));
    }
    options.assert_all_used()?;
    // Python has no space behind a comma at the end of a line.
    let between = separators.unwrap_or_else(|| vec![if indent.is_some() { "," } else { ", " }.into(), ": ".into()]);
    let [item, key] = between.as_slice() else {
        return Err(bad("tojson: separators are two texts".to_owned()));
    };
    let formatter =
        PythonFormatter { item, key, indent: indent.map(|indent| indent.min(16)), depth: 0, is_empty: true };
    let mut json = Vec::new();
    value
        .serialize(&mut serde_json::Serializer::with_formatter(&mut json, formatter))
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    let text = String::from_utf8_lossy(&json).into_owned();
    Ok(if is_ascii == Some(true) { escaped(&text) } else { text })
}

/// What is not ASCII as `\u` escapes; in JSON it stands in texts alone.
fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c.is_ascii() {
            true => text.push(c),
            false => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| text.push_str(&format!("\\u{unit:04x}"))),
        }
    }
    text
}

/// Python's layout of JSON.
struct PythonFormatter<'a> {
    /// Between items.
    item: &'a str,
    /// Between key and value.
    key: &'a str,
    /// Spaces a level, on lines of their own; `None` for one line.
    indent: Option<usize>,
    depth: usize,
    /// Whether the innermost list or object has no item so far.
    is_empty: bool,
}

impl PythonFormatter<'_> {
    fn line<W: ?Sized + std::io::Write>(&self, writer: &mut W) -> std::io::Result<()> {
        match self.indent {
            None => Ok(()),
            Some(indent) => write!(writer, "\n{}", " ".repeat(indent * self.depth)),
        }
    }

    fn begin<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> std::io::Result<()> {
        self.depth += 1;
        self.is_empty = true;
        writer.write_all(bracket)
    }

    fn next<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if !first {
            writer.write_all(self.item.as_bytes())?;
        }
        self.is_empty = false;
        self.line(writer)
    }

    fn end<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> std::io::Result<()> {
        self.depth -= 1;
        if !self.is_empty {
            self.line(writer)?;
        }
        self.is_empty = false;
        writer.write_all(bracket)
    }
}

impl Formatter for PythonFormatter<'_> {
    fn begin_array<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.begin(writer, b"[")
    }

    fn end_array<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.end(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.begin(writer, b"{")
    }

    fn end_object<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.end(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }
}

/// `{% generation %}` marks for training what the model said: here it is a block that is always rendered.
fn without_generation_tags(template: &str) -> String {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(start) = rest.find("{%") {
        // Behind the opening: `{%}` is no tag.
        let Some(length) = rest[start + 2..].find("%}") else { break };
        let (tag, end) = (&rest[start + 2..start + 2 + length], start + length + 4);
        let statement = match tag.trim_matches(['-', '+']).trim() {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        text.push_str(&rest[..start]);
        match statement {
            None => text.push_str(&rest[start..end]),
            Some(statement) => {
                let control = |marked: Option<char>| marked.filter(|c| ['-', '+'].contains(c)).map(String::from);
                let (open, close) = (control(tag.chars().next()), control(tag.chars().next_back()));
                text.push_str(&format!("{{%{} {statement} {}%}}", open.unwrap_or_default(), close.unwrap_or_default()));
            }
        }
        rest = &rest[end..];
    }
    text + rest
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn compiled(template: &str) -> anyhow::Result<ChatTemplate> {
        let special = [("bos_token", "<s>"), ("eos_token", "</s>")];
        ChatTemplate::new(Some(template), special.map(|(name, token)| (name.into(), token.into())).into())
    }

    fn turns() -> [Message; 1] {
        [Message::new("user", "Hi")]
    }

    #[derive(Deserialize)]
    struct Fixture {
        template: String,
        conversations: Vec<Rendering>,
    }

    #[derive(Deserialize)]
    struct Rendering {
        messages: Vec<Message>,
        asks_for_answer: bool,
        /// `None` where the template refuses the conversation.
        text: Option<String>,
        /// Why it does.
        refused: Option<String>,
    }

    /// Renderings of transformers' `apply_chat_template`, made by `scripts/make-chat-fixtures.py`.
    #[test]
    fn renderings_are_those_of_transformers() {
        let fixtures: BTreeMap<String, Fixture> = serde_json::from_str(include_str!("chat_fixtures.json")).unwrap();
        assert!(fixtures.len() >= 10);
        for (name, fixture) in fixtures {
            let template = compiled(&fixture.template).unwrap();
            for Rendering { messages, asks_for_answer, text, refused } in fixture.conversations {
                let found = template.render(&messages, asks_for_answer);
                assert_eq!(found.as_ref().ok(), text.as_ref(), "{name}: {messages:?}: {found:?}");
                if let (Err(error), Some(refused)) = (found, refused) {
                    assert!(error.to_string().contains(&refused), "{name}: {error}");
                }
            }
        }
    }

    #[test]
    fn what_is_wrong_with_a_template_is_said_with_its_line() {
        let message = |template| compiled(template).and_then(|compiled| compiled.render(&turns(), true)).unwrap_err();
        let remedy = "; use `experiments generate` with the whole text as the prompt";
        assert_eq!(
            message("{{ messages[0].content }}\n{{ raise_exception('Roles must alternate') }}").to_string(),
            format!("the chat template fails on this conversation: line 2: Roles must alternate{remedy}")
        );
        assert!(message("one\n{% if %}").to_string().starts_with("the chat template cannot be compiled: line 2: "));
        let endless = "{% for i in range(9000) %}{% for j in range(9000) %}{{ i }}{% endfor %}{% endfor %}";
        let found = message(endless).to_string();
        assert!(found.contains("it does not end"), "{found}");
        let found = message("{% for i in range(9) %}{{ 'long' * 9000000 }}{% endfor %}").to_string();
        assert!(found.contains(": its text is longer than 64 MiB; use"), "{found}");
        let found = message("{{ strftime_now('%Q') }}").to_string();
        assert!(found.contains("\"%Q\" is no format of a time"), "{found}");
        let none = ChatTemplate::new(None, BTreeMap::new()).err().unwrap().to_string();
        assert!(none.starts_with("this model has no chat template"), "{none}");
    }

    #[test]
    fn marks_that_share_a_character_are_no_tag() {
        for template in ["{%}", "{%}.{%", "{%-%}", "{%%}", "{%}{% generation %}", "{% generation"] {
            assert!(compiled(template).is_err(), "{template}");
        }
    }

    #[test]
    fn what_follows_an_answer_is_told_by_the_template() {
        let template = compiled("{% for m in messages %}<{{ m.role }}>{{ m.content }}<|end|>\n{% endfor %}").unwrap();
        assert_eq!(template.after_answer(), "<|end|>\n");
    }
}
