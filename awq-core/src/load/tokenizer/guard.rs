//! The tokenizers library panics on some files that contradict themselves. A stranger's file must not end the program.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use super::{LoadError, tokenizer_error};

/// What the library says of `file`; a panic of it is an error as any other.
pub(super) fn guarded<T, E: Display>(file: &Path, ask: impl FnOnce() -> Result<T, E>) -> Result<T, LoadError> {
    // What a panic leaves half done are the library's caches: it finds their locks poisoned, and panics again at worst.
    match catch_unwind(AssertUnwindSafe(ask)) {
        Ok(said) => said.map_err(|error| tokenizer_error(file, error)),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
            let said = said.unwrap_or("no message");
            Err(tokenizer_error(file, format!("the tokenizers library panics on it: {said}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_that_names_the_file() {
        let said = guarded(Path::new("tokenizer.json"), || -> Result<(), String> { panic!("index 3") });
        let expected = "the tokenizers library panics on it: index 3";
        assert!(said.is_err_and(|error| error.to_string().contains(expected)));
    }
}
