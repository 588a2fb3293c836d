//! [`derive()`]: the file of an experiment with some keys changed, everything else as it is written.

use anyhow::{Context, bail, ensure};
use toml_edit::{DocumentMut, Item, Table, Value};

/// A key and what it is set to: `grids.bits=[2]`, `methods[1].awq.scale.search.n_ratios=10`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    key: String,
    value: String,
}

impl std::str::FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) =
            text.split_once('=').ok_or_else(|| format!("`{text}` sets nothing; give it as grids.bits=[2]"))?;
        Ok(Self { key: key.trim().to_owned(), value: value.trim().to_owned() })
    }
}

/// A step into a document.
enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

/// `document` with each of `settings` in its place, comments and order kept. A key that is not there yet is added, and
/// so are tables on the way to it.
///
/// # Errors
/// Text that is no TOML, or a path through what is no table or list.
pub fn derive(document: &str, settings: &[Setting]) -> anyhow::Result<String> {
    let mut document: DocumentMut = document.parse().context("not a TOML file")?;
    for setting in settings {
        set(document.as_item_mut(), &setting.key, setting.value())
            .with_context(|| format!("cannot set `{}`", setting.key))?;
    }
    Ok(document.to_string())
}

impl Setting {
    /// A value of TOML; what is none is a string, so that quotes need no quotes of the shell.
    fn value(&self) -> Value {
        self.value.parse().unwrap_or_else(|_| Value::from(self.value.clone()))
    }
}

fn set(root: &mut Item, path: &str, value: Value) -> anyhow::Result<()> {
    let steps = steps(path)?;
    let Some((last, before)) = steps.split_last() else { bail!("an empty key") };
    let mut at = root;
    for step in before {
        at = below(at, step)?;
    }
    match last {
        Step::Key(key) => {
            let table = at.as_table_like_mut().with_context(|| format!("`{key}` lies in what is no table"))?;
            match table.get_mut(key) {
                Some(old) => replace(old, value),
                None => drop(table.insert(key, Item::Value(value))),
            }
        }
        Step::Index(index) => {
            let old = below(at, &Step::Index(*index))?;
            replace(old, value);
        }
    }
    Ok(())
}

/// Puts `value` in place of `old`, with the comment and the blanks that stand around it.
fn replace(old: &mut Item, mut value: Value) {
    if let Some(old) = old.as_value() {
        *value.decor_mut() = old.decor().clone();
    }
    *old = Item::Value(value);
}

fn below<'a>(item: &'a mut Item, step: &Step<'_>) -> anyhow::Result<&'a mut Item> {
    match step {
        // A table that is not there is made: whether an experiment may have it is checked with the whole.
        Step::Key(key) => {
            let table = item.as_table_like_mut().with_context(|| format!("`{key}` lies in what is no table"))?;
            Ok(table.entry(key).or_insert_with(|| Item::Table(Table::new())))
        }
        Step::Index(index) => {
            let n = item.as_array().map_or_else(
                || item.as_array_of_tables().map_or(0, toml_edit::ArrayOfTables::len),
                toml_edit::Array::len,
            );
            item.get_mut(*index).with_context(|| format!("there is no [{index}]: the list has {n}"))
        }
    }
}

/// `a.b[1].c` as steps. A key with a dot in it cannot be named.
fn steps(path: &str) -> anyhow::Result<Vec<Step<'_>>> {
    let mut steps = Vec::new();
    for part in path.split('.') {
        let (key, indices) = part.split_at(part.find('[').unwrap_or(part.len()));
        ensure!(!key.is_empty(), "`{path}` has an empty key; write it as grids.bits or methods[0].rtn");
        steps.push(Step::Key(key));
        for index in indices.split_inclusive(']') {
            let number = index.strip_prefix('[').and_then(|index| index.strip_suffix(']'));
            let number = number.and_then(|number| number.parse().ok());
            steps.push(Step::Index(
                number.with_context(|| format!("`{index}` is no place in a list; write it as [0]"))?,
            ));
        }
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const DOCUMENT: &str = "# What is asked.\nquestion = \"?\" # in a sentence\n\n[grids]\nbits = [4, 3] # bits\n\n\
                            [[methods]]\nrtn = {}\n[[methods]]\nawq = { scale = { n = 20 }, clip = \"off\" }\n";

    fn derived(settings: &[&str]) -> Result<String, String> {
        let settings: Vec<Setting> = settings.iter().map(|text| text.parse().unwrap()).collect();
        derive(DOCUMENT, &settings).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_value_changes_and_all_else_stays() {
        assert_eq!(derived(&[]).unwrap(), DOCUMENT);
        assert_eq!(derived(&["grids.bits=[2]"]).unwrap(), DOCUMENT.replace("[4, 3]", "[2]"));
        assert_eq!(derived(&["grids.bits[1]=2"]).unwrap(), DOCUMENT.replace("[4, 3]", "[4, 2]"));
        assert_eq!(derived(&["methods[1].awq.scale.n = 5"]).unwrap(), DOCUMENT.replace("20", "5"));
        // Words need no quotes.
        assert_eq!(derived(&["question=Why not?"]).unwrap(), DOCUMENT.replace("\"?\"", "\"Why not?\""));
        assert_eq!(derived(&["grids.new=true"]).unwrap(), DOCUMENT.replace("# bits\n", "# bits\nnew = true\n"));
        // A table that is not there comes behind the others.
        let reported = derived(&["report.baseline=GPTQ"]).unwrap();
        assert_eq!(reported, format!("{DOCUMENT}\n[report]\nbaseline = \"GPTQ\"\n"));
        let both = derived(&["grids.bits=[2]", "question=\"x\""]).unwrap();
        assert_eq!(both, DOCUMENT.replace("[4, 3]", "[2]").replace("\"?\"", "\"x\""));
    }

    #[test]
    fn what_is_not_there_is_named() {
        assert_eq!(
            derived(&["methods[2].rtn={}"]).unwrap_err(),
            "cannot set `methods[2].rtn`: there is no [2]: the list has 2"
        );
        assert_eq!(
            derived(&["grids.bits[7]=1"]).unwrap_err(),
            "cannot set `grids.bits[7]`: there is no [7]: the list has 2"
        );
        assert!(derived(&["question.more=1"]).unwrap_err().ends_with("`more` lies in what is no table"));
        assert!(derived(&["methods[x].rtn={}"]).unwrap_err().contains("`[x]` is no place in a list"));
        assert!(derived(&["=1"]).unwrap_err().contains("has an empty key"));
        assert!("grids.bits".parse::<Setting>().is_err());
    }
}
