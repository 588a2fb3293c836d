//! Requests to the hub: limits of time, attempts, redirects. The token goes to the hub's own address and nowhere else.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, anyhow};
use ureq::http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, ETAG, HeaderName, LOCATION, RANGE};
use ureq::http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use ureq::{Agent, Body};

use super::super::progress::Progress;
use super::layout::{HubRepo, is_plain_name};
use super::refusal::refusal;

/// Redirects that are followed for one file.
const MAX_REDIRECTS: usize = 10;
/// An attempt that brought so many bytes is no failure of the network as such: attempts are counted anew.
const PROGRESS_BYTES: u64 = 8 << 20;
/// The longest pause that a server may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// What shows the hub who asks. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The text without white space around it; `None` if nothing is left.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    fn header(&self) -> anyhow::Result<HeaderValue> {
        let bearer = HeaderValue::from_str(&format!("Bearer {}", self.0));
        let mut bearer =
            bearer.ok().context("the hub's token holds characters that no token has; set HF_TOKEN again")?;
        bearer.set_sensitive(true);
        Ok(bearer)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// How long a server may be silent, and how often it is asked again.
#[derive(Clone, Debug)]
pub(crate) struct Patience {
    /// To find and reach a server.
    pub(crate) connect: Duration,
    /// Between two pieces of an answer.
    pub(crate) silence: Duration,
    /// Before each new attempt.
    pub(crate) pauses: Vec<Duration>,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(20),
            silence: Duration::from_secs(60),
            pauses: [1, 4, 15].map(Duration::from_secs).to_vec(),
        }
    }
}

/// How an attempt failed: whether another one makes sense.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It may go better next time.
    Passing {
        error: anyhow::Error,
        /// What the server asks to wait.
        after: Option<Duration>,
        /// How many bytes nearer to the end this attempt came.
        n_bytes: u64,
    },
    Final(anyhow::Error),
}

impl Failure {
    pub(super) fn passing(error: anyhow::Error) -> Self {
        Self::Passing { error, after: None, n_bytes: 0 }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Final(error)
    }
}

/// Scheme, host and port: what a token belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    is_https: bool,
    host: String,
    port: u16,
}

impl Origin {
    /// `None` for what is no http or https address.
    fn of(uri: &Uri) -> Option<Self> {
        let is_https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        Some(Self { is_https, host: uri.host()?.to_ascii_lowercase(), port })
    }
}

/// What the hub says of a file before it is sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Announced {
    /// The commit that the revision stands for.
    pub(super) commit: String,
    /// The name of the content: of large files their sha256, of small ones git's hash.
    pub(super) etag: String,
    /// Size in bytes, where it is said.
    pub(super) n_bytes: Option<u64>,
}

/// A client of one hub.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    pub(super) endpoint: String,
    origin: Origin,
    bearer: Option<HeaderValue>,
    pauses: Vec<Duration>,
    pub(super) progress: Progress,
}

impl Client {
    /// # Errors
    /// An endpoint that is no address, a token that is none.
    pub(super) fn new(
        endpoint: String,
        token: Option<&Token>,
        patience: Patience,
        progress: Progress,
    ) -> anyhow::Result<Self> {
        let origin = endpoint.parse::<Uri>().ok().as_ref().and_then(Origin::of);
        let origin = origin
            .with_context(|| format!("HF_ENDPOINT: `{endpoint}` is no address such as https://huggingface.co"))?;
        let Patience { connect, silence, pauses } = patience;
        let config = Agent::config_builder()
            .user_agent(concat!("awq-experiments/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            // Redirects are followed here, so that each address is looked at before a token goes there.
            .max_redirects(0)
            .timeout_resolve(Some(connect))
            .timeout_connect(Some(connect))
            .timeout_recv_response(Some(silence))
            .timeout_per_read(Some(silence))
            .timeout_per_write(Some(silence))
            .build();
        let bearer = token.map(Token::header).transpose()?;
        Ok(Self { agent: config.into(), endpoint, origin, bearer, pauses, progress })
    }

    /// Runs `attempt` until it succeeds, fails for good, or has failed as often as there are pauses.
    ///
    /// # Errors
    /// The last failure, with `place` before it.
    pub(super) fn persist<T>(&self, place: &str, mut attempt: impl FnMut() -> Result<T, Failure>) -> anyhow::Result<T> {
        let mut n_failed = 0;
        loop {
            let (error, after) = match attempt() {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error.context(place.to_owned())),
                Err(Failure::Passing { error, after, n_bytes }) => {
                    if n_bytes >= PROGRESS_BYTES {
                        n_failed = 0;
                    }
                    (error, after)
                }
            };
            let Some(&pause) = self.pauses.get(n_failed) else {
                return Err(error.context(format!(
                    "{place}: gave up after {} attempts; run again to go on where it stopped",
                    n_failed + 1
                )));
            };
            let pause = pause.max(after.unwrap_or_default());
            if pause > LONGEST_PAUSE {
                let seconds = pause.as_secs();
                return Err(error.context(format!("{place}: the server asks to wait {seconds} s; run again then")));
            }
            n_failed += 1;
            self.progress.note(&format!("{place}: {error:#}; again in {} s", pause.as_secs_f64().round()));
            std::thread::sleep(pause);
        }
    }

    /// What the hub says of a file of `repo`.
    pub(super) fn announced(&self, repo: &HubRepo, name: &str) -> Result<Announced, Failure> {
        let mut uri = self.uri(&repo.file_url(&self.endpoint, name))?;
        let mut linked = Linked::default();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.request(&Method::HEAD, &uri, 0, repo)?;
            linked.add(response.headers());
            match self.redirect(&uri, &response)? {
                // The hub names a large file's content beside the way to it.
                Some(_) if linked.is_complete() => return Ok(linked.finish(&HeaderMap::new(), repo)?),
                Some(next) => uri = next,
                None => return Ok(linked.finish(response.headers(), repo)?),
            }
        }
        Err(self.too_many_redirects())
    }

    /// The answer to a GET of the hub's address `url`, from byte `first` on if the server can.
    pub(super) fn get(&self, repo: &HubRepo, url: &str, first: u64) -> Result<Response<Body>, Failure> {
        let mut uri = self.uri(url)?;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.request(&Method::GET, &uri, first, repo)?;
            match self.redirect(&uri, &response)? {
                Some(next) => uri = next,
                None => return Ok(response),
            }
        }
        Err(self.too_many_redirects())
    }

    fn request(&self, method: &Method, uri: &Uri, first: u64, repo: &HubRepo) -> Result<Response<Body>, Failure> {
        let by_hub = Origin::of(uri).as_ref() == Some(&self.origin);
        let mut request =
            Request::builder().method(method.clone()).uri(uri.clone()).header(ACCEPT_ENCODING, "identity");
        if first > 0 {
            request = request.header(RANGE, format!("bytes={first}-"));
        }
        if let Some(bearer) = self.bearer.as_ref().filter(|_| by_hub) {
            request = request.header(AUTHORIZATION, bearer);
        }
        let request = request.body(()).map_err(|error| anyhow!(error))?;
        let host = uri.host().unwrap_or_default();
        let response = self.agent.run(request).map_err(|error| {
            let reason = format!("cannot get it from {host}; check the network and HF_ENDPOINT");
            Failure::passing(anyhow!(error).context(reason))
        })?;
        let status = response.status();
        if status.is_success() || status.is_redirection() {
            return Ok(response);
        }
        // The address elsewhere is new with each attempt: one that has expired is no last word.
        Err(if by_hub {
            refusal(status, response.headers(), repo, &self.endpoint, self.bearer.is_some())
        } else {
            Failure::passing(anyhow!("{host}, where the hub keeps it, answers {status}"))
        })
    }

    /// Where `response` sends the client, if it does.
    fn redirect(&self, from: &Uri, response: &Response<Body>) -> Result<Option<Uri>, Failure> {
        if !response.status().is_redirection() {
            return Ok(None);
        }
        let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
        let location = location.context("the server redirects to nowhere; check HF_ENDPOINT")?;
        let next = joined(from, location).context("the server redirects to what is no address; check HF_ENDPOINT")?;
        let (Some(here), Some(there)) = (Origin::of(from), Origin::of(&next)) else {
            return Err(anyhow!("the server redirects to what is no http address; check HF_ENDPOINT").into());
        };
        if here.is_https && !there.is_https {
            let host = there.host;
            return Err(anyhow!("the server redirects from https to http ({host}); check HF_ENDPOINT").into());
        }
        Ok(Some(next))
    }

    fn uri(&self, url: &str) -> anyhow::Result<Uri> {
        url.parse().with_context(|| format!("`{url}` is no address; check HF_ENDPOINT"))
    }

    fn too_many_redirects(&self) -> Failure {
        anyhow!("{} redirects without end; check HF_ENDPOINT", self.endpoint).into()
    }
}

/// What headers on the way to a file tell of it.
#[derive(Default)]
struct Linked {
    commit: Option<String>,
    etag: Option<String>,
    n_bytes: Option<u64>,
}

impl Linked {
    fn add(&mut self, headers: &HeaderMap) {
        let text = |name: &str| Some(headers.get(HeaderName::try_from(name).ok()?)?.to_str().ok()?.to_owned());
        self.commit = self.commit.take().or_else(|| text("x-repo-commit"));
        self.etag = self.etag.take().or_else(|| text("x-linked-etag"));
        self.n_bytes = self.n_bytes.or_else(|| text("x-linked-size")?.parse().ok());
    }

    fn is_complete(&self) -> bool {
        self.commit.is_some() && self.etag.is_some() && self.n_bytes.is_some()
    }

    /// With the headers of the file itself, where the way there ends.
    fn finish(self, last: &HeaderMap, repo: &HubRepo) -> anyhow::Result<Announced> {
        let text = |name: HeaderName| Some(last.get(name)?.to_str().ok()?.to_owned());
        let no_hub = "the server is no hub and no mirror of one: it does not say";
        let etag = self.etag.or_else(|| text(ETAG)).with_context(|| format!("{no_hub} ETag; check HF_ENDPOINT"))?;
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        let commit = self.commit.or_else(|| repo.commit().map(str::to_owned));
        let commit = commit.with_context(|| format!("{no_hub} X-Repo-Commit; check HF_ENDPOINT"))?;
        for name in [&etag, &commit] {
            // Both become names in the cache.
            anyhow::ensure!(is_plain_name(name), "the server announces `{name}`, which is no hash; check HF_ENDPOINT");
        }
        let n_bytes = self.n_bytes.or_else(|| text(CONTENT_LENGTH)?.parse().ok());
        Ok(Announced { commit, etag, n_bytes })
    }
}

/// The address that `location` means, seen from `from`.
fn joined(from: &Uri, location: &str) -> Option<Uri> {
    if location.contains("://") {
        return location.parse().ok();
    }
    let (scheme, authority) = (from.scheme_str()?, from.authority()?);
    if location.starts_with("//") {
        return format!("{scheme}:{location}").parse().ok();
    }
    let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
    let path = if location.starts_with('/') { location.to_owned() } else { format!("{folder}/{location}") };
    format!("{scheme}://{authority}{path}").parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let origin = |url: &str| Origin::of(&url.parse().unwrap()).unwrap();
        assert_eq!(origin("https://Hub.example/a"), origin("https://hub.example:443/b?c"));
        for other in
            ["http://hub.example", "https://hub.example:8443", "https://hub.example.evil", "https://cdn.hub.example"]
        {
            assert_ne!(origin(other), origin("https://hub.example"));
        }
        assert_eq!(origin("https://hub.example@evil.example/").host, "evil.example");
        assert_eq!(Origin::of(&"ftp://hub.example/".parse().unwrap()), None);
    }

    #[test]
    fn locations_are_joined_to_where_they_were_said() {
        let joined = |location: &str| joined(&"https://h:1/a/b?c".parse().unwrap(), location).unwrap().to_string();
        assert_eq!(joined("https://other/x?y=z"), "https://other/x?y=z");
        assert_eq!(joined("//other/x"), "https://other/x");
        assert_eq!(joined("/x?y"), "https://h:1/x?y");
        assert_eq!(joined("x"), "https://h:1/a/x");
    }

    #[test]
    fn no_redirect_leads_from_https_to_http() {
        let client = Client::new("https://hub.example".into(), None, Patience::default(), Progress::Quiet).unwrap();
        let from = "https://hub.example/a".parse().unwrap();
        let redirect = |location: &str| {
            let body = Body::builder().data("");
            client.redirect(&from, &Response::builder().status(302).header(LOCATION, location).body(body).unwrap())
        };
        assert_eq!(redirect("https://cdn.example/a").unwrap(), Some("https://cdn.example/a".parse().unwrap()));
        let Failure::Final(error) = redirect("http://hub.example/a").unwrap_err() else { panic!("is tried again") };
        assert_eq!(error.to_string(), "the server redirects from https to http (hub.example); check HF_ENDPOINT");
    }
}
