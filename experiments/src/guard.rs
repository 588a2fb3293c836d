//! Work whose panic costs a pass and not the sweep.

/// What `compute` says; a panic in it (a bug, a device out of memory) is an error.
pub(crate) fn guarded<T>(compute: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    // What a panic leaves half done is dropped with the error: nothing that is used afterwards is shared with `compute`.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(compute)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(anyhow::anyhow!("panicked: {}", said.unwrap_or("no message")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_message() {
        let said = |result: anyhow::Result<u8>| result.map_err(|error| error.to_string());
        assert_eq!(said(guarded(|| Ok(1))), Ok(1));
        assert_eq!(said(guarded(|| panic!("out of memory"))), Err("panicked: out of memory".into()));
        assert_eq!(said(guarded(|| panic!("block {}", 3))), Err("panicked: block 3".into()));
    }
}
