//! Filters and methods of templates that make room for as much as they are told: in one piece, and a program that cannot have it ends at
//! once. Here what they are told has an end, and so has a text that they put together.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, Value};
use minijinja::{Environment, Error, ErrorKind, State, filters};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::bounded::{MAX_TEXT, TOO_LONG};

/// The most: characters of a field, values of a list.
const MOST: usize = 100_000;

/// Puts filters and methods with an end in place of the library's.
pub(super) fn bound(environment: &mut Environment<'static>) {
    for (name, filter) in [
        ("batch", Value::from_function(filters::batch)),
        ("groupby", Value::from_function(filters::groupby)),
        ("indent", Value::from_function(filters::indent)),
        ("list", Value::from_function(filters::list)),
        ("map", Value::from_function(filters::map)),
        ("reject", Value::from_function(filters::reject)),
        ("rejectattr", Value::from_function(filters::rejectattr)),
        ("reverse", Value::from_function(filters::reverse)),
        ("select", Value::from_function(filters::select)),
        ("selectattr", Value::from_function(filters::selectattr)),
        ("slice", Value::from_function(filters::slice)),
        ("sort", Value::from_function(filters::sort)),
        ("unique", Value::from_function(filters::unique)),
    ] {
        environment.add_filter(name, move |state: &State<'_, '_>, Rest(args): Rest<Value>| {
            args.first().map_or(Ok(()), check_length)?;
            check_size(&args)?;
            filter.call(state, &args)
        });
    }
    let format = Value::from_function(filters::format);
    environment.add_filter("format", move |state: &State<'_, '_>, Rest(args): Rest<Value>| {
        args.first().and_then(Value::as_str).map_or(Ok(()), check_numbers)?;
        format.call(state, &args)
    });
    for (name, filter, check) in [
        ("join", Value::from_function(filters::join), check_joined as fn(&[Value]) -> _),
        ("replace", Value::from_function(filters::replace), check_replaced),
    ] {
        environment.add_filter(name, move |state: &State<'_, '_>, Rest(args): Rest<Value>| {
            check(&args)?;
            filter.call(state, &args)
        });
    }
    environment.set_unknown_method_callback(|state, value, method, args| {
        match (method, args) {
            ("format", _) => value.as_str().map_or(Ok(()), check_numbers)?,
            ("join", [items, ..]) => check_joined(&[items.clone(), value.clone()])?,
            ("replace", [from, to, ..]) => check_replaced(&[value.clone(), from.clone(), to.clone()])?,
            _ => {}
        }
        unknown_method_callback(state, value, method, args)
    });
}

/// The length of what is filtered or printed: a list that is repeated takes no room until then.
pub(super) fn check_length(value: &Value) -> Result<(), Error> {
    match value.len() {
        Some(len) if len > MOST && value.as_str().is_none() => Err(too_large(len)),
        _ => Ok(()),
    }
}

/// The width or count that a filter is told, by its place or by its name.
fn check_size(args: &[Value]) -> Result<(), Error> {
    let named = args.last().filter(|value| value.is_kwargs()).and_then(|value| Kwargs::try_from(value.clone()).ok());
    let by_name = ["width", "count"].into_iter().filter_map(|name| named.as_ref()?.peek::<Value>(name).ok());
    let sizes = args.get(1).cloned().into_iter().chain(by_name).filter(Value::is_number);
    match sizes.filter_map(|size| f64::try_from(size).ok()).find(|size| *size > MOST as f64) {
        Some(size) => Err(too_large(size)),
        None => Ok(()),
    }
}

/// Numbers in a format, of which some are widths (`%08d`, `{:>8}`).
fn check_numbers(format: &str) -> Result<(), Error> {
    let numbers = format.split(|character: char| !character.is_ascii_digit()).filter(|digits| !digits.is_empty());
    // Too many digits for any number are too large.
    match numbers
        .map(|digits| (digits, digits.parse::<usize>()))
        .find(|(_, number)| !number.as_ref().is_ok_and(|n| *n <= MOST))
    {
        Some((digits, _)) => Err(too_large(digits.trim_start_matches('0'))),
        None => Ok(()),
    }
}

/// What is joined, and what is put between; texts that are joined in again and again grow by a factor each time.
fn check_joined(args: &[Value]) -> Result<(), Error> {
    let Some((items, Some(n_items))) = args.first().map(|items| (items, items.len())) else { return Ok(()) };
    let of_items = match items.as_str() {
        Some(text) => text.len(),
        None => {
            check_length(items)?;
            items.try_iter()?.map(|item| text_len(&item)).fold(0, usize::saturating_add)
        }
    };
    let between = args.get(1).map_or(0, text_len);
    check_text(of_items.saturating_add(n_items.saturating_mul(between)))
}

/// A text, what is looked for in it, and what is put in its place.
fn check_replaced(args: &[Value]) -> Result<(), Error> {
    let [text, from, to, ..] = args else { return Ok(()) };
    let n = match (text.as_str(), from.as_str()) {
        (Some(text), Some(from)) => text.matches(from).count(),
        // A list is replaced in as the text that it prints as, all of which may be found.
        _ => text_len(text),
    };
    let found = n.saturating_mul(from.as_str().map_or(0, str::len));
    check_text(text_len(text).saturating_sub(found).saturating_add(n.saturating_mul(text_len(to))))
}

/// Bytes of a value as a text, up to somewhat more than is allowed.
fn text_len(value: &Value) -> usize {
    struct Counted(usize);
    impl std::fmt::Write for Counted {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.0 += text.len();
            if self.0 > MAX_TEXT { Err(std::fmt::Error) } else { Ok(()) }
        }
    }
    let mut counted = Counted(0);
    match value.as_str() {
        Some(text) => text.len(),
        None => {
            // An error says that it is longer, and so does the count.
            let _ = write!(counted, "{value}");
            counted.0
        }
    }
}

/// A text of so many bytes at most.
fn check_text(most: usize) -> Result<(), Error> {
    if most > MAX_TEXT {
        return Err(Error::new(ErrorKind::InvalidOperation, TOO_LONG));
    }
    Ok(())
}

fn too_large(size: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("a size of {size}; up to {MOST} are allowed"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use minijinja::context;

    use super::*;

    fn rendered(template: &str) -> Result<String, Error> {
        let mut environment = Environment::new();
        bound(&mut environment);
        environment.set_formatter(crate::generate::chat::python_formatter);
        environment.render_str(template, context! {})
    }

    #[test]
    fn sizes_are_the_librarys_up_to_an_end() {
        for (template, expected) in [
            ("{{ '%05d and %.2f' | format(3, 1.5) }}", "00003 and 1.50"),
            ("{{ '%s of 100000 %%' | format(10000000) }}", "10000000 of 100000 %"),
            ("{{ '{:>4}|{}'.format('ab', 1000000) }}", "  ab|1000000"),
            ("{{ 'a\nb' | indent(2) }}", "a\n  b"),
            ("{{ 'a\nb' | indent(width=2, first=true) }}", "  a\n  b"),
            ("{{ [1000000, 2, 3] | batch(2, 1000000) | list }}", "[[1000000, 2], [3, 1000000]]"),
            ("{{ [1, 2, 3] | slice(2) | list }}", "[[1, 2], [3]]"),
            ("{{ ([1] * 100000) | list | length }}", "100000"),
            ("{{ [{'n': 2}, {'n': 1}] | map(attribute='n') | sort | reverse | unique | list }}", "[2, 1]"),
            ("{{ [1, 2] | select('odd') | list }}{{ [1, 2] | reject('odd') | list }}", "[1][2]"),
            ("{{ 'a b'.upper() }}", "A B"),
            ("{{ ['a', 1] | join(', ') }}{{ 'abc' | join }}{{ '-'.join(['a', 'b']) }}", "a, 1abca-b"),
            ("{{ [1, 2] | map('string') | join('+') }}{{ range(3) | join }}", "1+2012"),
            ("{{ [['a'], 1] | join(2) }}{{ [1, 2] | replace('1', 'x') }}", "[\"a\"]21[x, 2]"),
            ("{{ 'aba' | replace('a', 'cc') }}{{ 'aba'.replace('a', '', 1) }}", "ccbccba"),
        ] {
            assert_eq!(rendered(template).unwrap(), expected, "{template}");
        }
        for template in [
            "{{ '%0100001d' | format(3) }}",
            "{{ '%.100001f' | format(3.5) }}",
            "{{ '%(n)100001s' | format(n=3) }}",
            "{{ '{:>100001}'.format('ab') }}",
            "{{ '{:}>100001}'.format('ab') }}",
            "{{ 'a\nb' | indent(100001) }}",
            "{{ 'a\nb' | indent(width=100001) }}",
            "{{ [1] | batch(100001) | list }}",
            "{{ [1] | slice(100001) | list }}",
            "{{ [1] * 100001 }}",
            "{{ ([1] * 100001) | list }}",
            "{{ ([1] * 100001) | batch(1) }}",
            "{{ ([1] * 100001) | map('string') }}",
        ] {
            let said = rendered(template).unwrap_err().to_string();
            assert!(said.contains("a size of 100001; up to 100000 are allowed"), "{template}: {said}");
        }
        // 65 Mi bytes from 64 Ki texts of a KiB and what is between them, or in the place of each.
        let long = "{% set t = '0123456789abcdef' %}{% set k = ([t] * 64) | join %}";
        for put_together in [
            "([k] * 65536) | join('0123456789abcdef')",
            "'0123456789abcdef'.join([k] * 65536)",
            "(('x' | list) * 65536) | join | replace('x', k ~ t)",
            "((('x' | list) * 65536) | join).replace('x', k ~ t)",
            "[[k] * 65536] | join",
            "([k] * 65536) | replace('0', 'a')",
        ] {
            let said = rendered(&format!("{long}{{{{ {put_together} }}}}")).unwrap_err().to_string();
            assert!(said.contains(TOO_LONG), "{put_together}: {said}");
        }
        let digits = "9".repeat(30);
        let said = rendered(&format!("{{{{ '%0{digits}d' | format(3) }}}}")).unwrap_err().to_string();
        assert!(said.contains(&format!("a size of {digits}")), "{said}");
    }
}
