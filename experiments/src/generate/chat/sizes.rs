//! Filters and methods of templates that take a size: the library makes room for whatever they are asked for, in one piece, and a program
//! that cannot have it ends at once. Here a size has an end.

use minijinja::value::{Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, filters};
use minijinja_contrib::pycompat::unknown_method_callback;

/// The largest; a text is no wider, and a list no longer.
const MOST: u32 = 100_000;

/// Puts filters and methods with an end to their sizes in place of the library's.
pub(super) fn bound(environment: &mut Environment<'static>) {
    let with_sizes = [
        ("indent", Value::from_function(filters::indent)),
        ("batch", Value::from_function(filters::batch)),
        ("slice", Value::from_function(filters::slice)),
    ];
    for (name, filter) in with_sizes {
        environment.add_filter(name, move |state: &State<'_, '_>, Rest(args): Rest<Value>| {
            // The first is what is filtered.
            args.iter().skip(1).try_for_each(check_size)?;
            filter.call(state, &args)
        });
    }
    let format = Value::from_function(filters::format);
    environment.add_filter("format", move |state: &State<'_, '_>, Rest(args): Rest<Value>| {
        args.first().and_then(Value::as_str).map_or(Ok(()), check_widths)?;
        format.call(state, &args)
    });
    environment.set_unknown_method_callback(|state, value, method, args| {
        if method == "format" {
            value.as_str().map_or(Ok(()), check_widths)?;
        }
        unknown_method_callback(state, value, method, args)
    });
}

/// An argument of a filter, by place or by name.
fn check_size(argument: &Value) -> Result<(), Error> {
    if argument.is_kwargs() {
        return argument.try_iter()?.try_for_each(|name| check_size(&argument.get_item(&name)?));
    }
    let is_number = argument.kind() == ValueKind::Number;
    match f64::try_from(argument.clone()) {
        Ok(size) if is_number && size > f64::from(MOST) => Err(too_large(size)),
        _ => Ok(()),
    }
}

/// Widths and precisions of a format, `%08d` as well as `{:>8}`: numbers between such a sign and its end.
fn check_widths(format: &str) -> Result<(), Error> {
    let mut characters = format.chars().peekable();
    while let Some(character) = characters.next() {
        let is_end: fn(char) -> bool = match character {
            '%' => |character| character.is_ascii_alphabetic() || character == '%',
            '{' => |character| character == '}',
            _ => continue,
        };
        // `%(name)d`: a name is no end.
        if character == '%' && characters.next_if_eq(&'(').is_some() {
            characters.by_ref().find(|&character| character == ')');
        }
        let mut number: f64 = 0.0;
        while let Some(character) = characters.next_if(|&character| !is_end(character)) {
            number = character.to_digit(10).map_or(0.0, |digit| 10.0 * number + f64::from(digit));
            if number > f64::from(MOST) {
                return Err(too_large(number));
            }
        }
    }
    Ok(())
}

fn too_large(size: f64) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("a size of {size} or more; up to {MOST} are written"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use minijinja::context;

    use super::*;

    fn rendered(template: &str) -> Result<String, Error> {
        let mut environment = Environment::new();
        bound(&mut environment);
        environment.render_str(template, context! {})
    }

    #[test]
    fn sizes_are_the_librarys_up_to_an_end() {
        for (template, expected) in [
            ("{{ '%05d and %.2f' | format(3, 1.5) }}", "00003 and 1.50"),
            ("{{ '%(n)s of 1234567 %%' | format(n='one') }}", "one of 1234567 %"),
            ("{{ '{:>4}|{}'.format('ab', 1000000) }}", "  ab|1000000"),
            ("{{ 'a\nb' | indent(2) }}", "a\n  b"),
            ("{{ 'a\nb' | indent(width=2, first=true) }}", "  a\n  b"),
            ("{{ [1000000, 2, 3] | batch(2, 0) | list }}", "[[1000000, 2], [3, 0]]"),
            ("{{ [1, 2, 3] | slice(2) | list }}", "[[1, 2], [3]]"),
            ("{{ 'a b'.upper() }}", "A B"),
        ] {
            assert_eq!(rendered(template).unwrap(), expected, "{template}");
        }
        for template in [
            "{{ '%0100001d' | format(3) }}",
            "{{ '%.100001f' | format(3.5) }}",
            "{{ '%(n)100001s' | format(n=3) }}",
            "{{ '{:>100001}'.format('ab') }}",
            "{{ 'a\nb' | indent(100001) }}",
            "{{ 'a\nb' | indent(width=100001) }}",
            "{{ [1] | batch(100001) | list }}",
            "{{ [1] | slice(100001) | list }}",
        ] {
            let said = rendered(template).unwrap_err().to_string();
            assert!(said.contains("a size of 100001 or more"), "{template}: {said}");
        }
    }
}
