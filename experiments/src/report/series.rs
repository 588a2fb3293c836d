//! What tells the lines of a figure apart: the method, and whatever else differs between rows.

use super::frame::BlockCurve;
use super::row::Row;

/// What a line of a figure is the line of.
pub(super) trait Named {
    /// Registry name of the method.
    fn key(&self) -> &str;
    /// Label of the method.
    fn method(&self) -> &str;
    /// Label of the grid.
    fn grid(&self) -> &str;
    /// What blocks saw during calibration.
    fn propagation(&self) -> Option<&str>;
    /// Name of the calibration, where several are compared.
    fn calibration(&self) -> Option<&str>;
}

impl Named for Row {
    fn key(&self) -> &str {
        self.method_key.as_deref().unwrap_or_default()
    }

    fn method(&self) -> &str {
        &self.method
    }

    fn grid(&self) -> &str {
        self.grid.as_deref().unwrap_or_default()
    }

    fn propagation(&self) -> Option<&str> {
        self.propagation.as_deref()
    }

    fn calibration(&self) -> Option<&str> {
        self.calibration.as_deref()
    }
}

impl Named for BlockCurve {
    fn key(&self) -> &str {
        &self.method_key
    }

    fn method(&self) -> &str {
        &self.method
    }

    fn grid(&self) -> &str {
        &self.grid
    }

    fn propagation(&self) -> Option<&str> {
        self.propagation.as_deref()
    }

    fn calibration(&self) -> Option<&str> {
        self.calibration.as_deref()
    }
}

/// The name of a line without its grid: the method, what its blocks saw where that differs between lines of the method, and
/// the calibration where it has a name.
pub(super) fn name(one: &dyn Named, all: &[&dyn Named]) -> String {
    let differs = all.iter().any(|other| other.method() == one.method() && other.propagation() != one.propagation());
    let propagation = match one.propagation().filter(|_| differs) {
        Some("full_precision") => ", unquantized inputs",
        Some("quantized") => ", per block",
        Some("quantized_per_stage") => ", per stage",
        _ => "",
    };
    let calibration = one.calibration().map(|name| format!(", {name}")).unwrap_or_default();
    format!("{}{propagation}{calibration}", one.method())
}

/// What a caption says of names that tell how a method was calibrated, after a blank.
pub(super) fn explanation<'a>(mut names: impl Iterator<Item = &'a String>) -> &'static str {
    let tells = |name: &String| name.contains(", per block") || name.contains(", per stage");
    if names.any(tells) {
        " Per block, per stage: how often the inputs of calibration are computed again with what is quantized already."
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Line(&'static str, Option<&'static str>, Option<&'static str>);

    impl Named for Line {
        fn key(&self) -> &str {
            ""
        }

        fn method(&self) -> &str {
            self.0
        }

        fn grid(&self) -> &str {
            ""
        }

        fn propagation(&self) -> Option<&str> {
            self.1
        }

        fn calibration(&self) -> Option<&str> {
            self.2
        }
    }

    #[test]
    fn lines_are_named_by_what_differs() {
        let lines = [
            Line("GPTQ", Some("quantized"), None),
            Line("GPTQ", Some("quantized_per_stage"), None),
            Line("AWQ", Some("full_precision"), Some("few")),
            Line("RTN", None, None),
        ];
        let all: Vec<&dyn Named> = lines.iter().map(|line| line as &dyn Named).collect();
        let names: Vec<String> = all.iter().map(|line| name(*line, &all)).collect();
        assert_eq!(names, ["GPTQ, per block", "GPTQ, per stage", "AWQ, few", "RTN"]);
    }
}
