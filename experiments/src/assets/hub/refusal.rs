//! What a status of the hub means, and what to do about it.

use std::time::Duration;

use anyhow::anyhow;
use ureq::http::header::RETRY_AFTER;
use ureq::http::{HeaderMap, StatusCode};

use super::client::Failure;
use super::layout::HubRepo;

/// Characters of the hub's own words that are shown.
const MAX_SHOWN: usize = 200;

/// The failure that a refused request is.
pub(super) fn refusal(
    status: StatusCode,
    headers: &HeaderMap,
    repo: &HubRepo,
    endpoint: &str,
    has_token: bool,
) -> Failure {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let log_in = "set HF_TOKEN or run `hf auth login`";
    let remedy = match (header("x-error-code"), status.as_u16()) {
        (Some("RepoNotFound"), _) => {
            format!("has no such repository, or a private one; correct `{}`, or {log_in} if it is private", repo.id())
        }
        (Some("GatedRepo"), _) => {
            format!(
                "gives it only to those who accepted its terms; do so at {endpoint}/{}, then {log_in}",
                repo.address()
            )
        }
        (Some("RevisionNotFound"), _) => {
            format!("has no revision `{}` of it; correct the key `revision`", repo.revision())
        }
        (Some("EntryNotFound"), _) => "has no such file in this revision; choose another revision or repository".into(),
        (_, 401 | 403) if has_token => {
            "refuses the token; it may have expired, or may not read this repository: make another and set HF_TOKEN"
                .into()
        }
        (_, 401 | 403) => format!(
            "refuses access: there is no such repository, or it is private or gated; check its name, accept its terms there, then \
             {log_in}"
        ),
        (_, 404) => "does not have it; check repository, revision and file name".into(),
        (_, 429) if has_token => "is asked too often; wait a few minutes and run again".into(),
        (_, 429) => format!("is asked too often; wait a few minutes and run again, or {log_in} to be allowed more"),
        _ => "has a fault; run again later, or check HF_ENDPOINT".into(),
    };
    let said = header("x-error-message").map_or_else(String::new, |said| format!(": {}", printable(said)));
    let error = anyhow!("{endpoint} {remedy} (status {status}{said})");
    let passes = matches!(status.as_u16(), 408 | 425 | 429 | 500..=599);
    if passes {
        Failure::Passing { error, after: header(RETRY_AFTER.as_str()).and_then(wait), n_bytes: 0 }
    } else {
        Failure::Final(error)
    }
}

/// What Retry-After asks: seconds, or a point in time.
fn wait(retry_after: &str) -> Option<Duration> {
    if let Ok(seconds) = retry_after.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = chrono::DateTime::parse_from_rfc2822(retry_after).ok()?;
    until.signed_duration_since(chrono::Utc::now()).to_std().ok()
}

/// A server's words, without what would steer a terminal.
fn printable(said: &str) -> String {
    said.chars().filter(|c| !c.is_control()).take(MAX_SHOWN).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("Wed, 21 Oct 2015 07:28:00 GMT"), None, "it is over");
        let soon = (chrono::Utc::now() + chrono::TimeDelta::seconds(100)).format("%a, %d %b %Y %H:%M:%S GMT");
        let asked = wait(&soon.to_string()).unwrap();
        assert!((90..=100).contains(&asked.as_secs()), "{asked:?}");
        assert_eq!(wait("soon"), None);
    }

    #[test]
    fn words_of_a_server_cannot_steer_the_terminal() {
        assert_eq!(printable("no\u{1b}[2J\r\n!"), "no[2J!");
        assert_eq!(printable(&"x".repeat(1000)).len(), MAX_SHOWN);
    }
}
