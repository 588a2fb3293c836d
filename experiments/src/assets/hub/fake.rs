//! A server on this machine that plays the hub, with its habits and its failures.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server does.
#[derive(Default)]
pub(super) struct Play {
    pub(super) files: BTreeMap<&'static str, Vec<u8>>,
    /// Files announced with a sha256, and which.
    pub(super) announced: BTreeMap<&'static str, String>,
    /// Where announced files are redirected to, with their name behind it.
    pub(super) elsewhere: Option<String>,
    /// How the next requests go wrong.
    pub(super) faults: VecDeque<Fault>,
    /// How every request is refused.
    pub(super) refusal: Option<Fault>,
    /// After how many bytes to cut each of the next transfers off.
    pub(super) cuts: VecDeque<usize>,
    /// How ranges are answered.
    pub(super) ranges: Ranges,
    /// Before the bytes of each transfer.
    pub(super) pause: Duration,
    /// Method and path of each request.
    pub(super) requests: Vec<String>,
    /// First byte and file of each transfer asked for.
    pub(super) transfers: Vec<(usize, String)>,
    /// What each request showed.
    pub(super) tokens: Vec<Option<String>>,
}

#[derive(Clone)]
pub(super) enum Fault {
    /// A status with headers.
    Status(u16, &'static [(&'static str, &'static str)]),
    /// Nothing is ever said.
    Silence,
}

#[derive(Default, PartialEq, Eq)]
pub(super) enum Ranges {
    #[default]
    Right,
    /// The whole file with status 200.
    Ignored,
    /// One byte later than asked.
    Wrong,
}

pub(super) struct Server {
    pub(super) endpoint: String,
    pub(super) play: Arc<Mutex<Play>>,
}

impl Server {
    pub(super) fn start(play: Play) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let play = Arc::new(Mutex::new(play));
        let shared = Arc::clone(&play);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || {
                    // A client that goes away early is part of the play.
                    let _ = answer(stream.unwrap(), &shared);
                });
            }
        });
        Self { endpoint, play }
    }

    pub(super) fn hub(&self, cache: &Path, offline: bool) -> Hub {
        let settings =
            HubSettings { endpoint: self.endpoint.clone(), cache: cache.to_owned(), token: Token::new("secret") };
        let patience = Patience {
            connect: Duration::from_secs(10),
            silence: Duration::from_secs(1),
            pauses: vec![Duration::ZERO; 3],
        };
        Hub::new(settings, offline, patience, Progress::Quiet).unwrap()
    }

    pub(super) fn transfers(&self) -> Vec<(usize, String)> {
        std::mem::take(&mut self.play.lock().unwrap().transfers)
    }

    pub(super) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.play.lock().unwrap().requests)
    }

    pub(super) fn tokens(&self) -> Vec<Option<String>> {
        std::mem::take(&mut self.play.lock().unwrap().tokens)
    }
}

fn head(stream: &mut TcpStream, status: u16, headers: &[(&str, String)]) -> std::io::Result<()> {
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    write!(stream, "HTTP/1.1 {status} Said\r\n{lines}Connection: close\r\n\r\n")
}

fn answer(mut stream: TcpStream, play: &Mutex<Play>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap()?;
    let (mut first, mut token) = (0, None);
    for line in lines {
        let line = line?;
        match line.to_lowercase().split_once(": ") {
            Some(("range", range)) => {
                first = range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap();
            }
            Some(("authorization", _)) => token = Some(line.split_once(": ").unwrap().1.to_owned()),
            _ if line.is_empty() => break,
            _ => {}
        }
    }
    let (method, path) = request.strip_suffix(" HTTP/1.1").unwrap().split_once(' ').unwrap();
    let (pause, body) = {
        let mut play = play.lock().unwrap();
        play.requests.push(format!("{method} {path}"));
        play.tokens.push(token);
        match play.faults.pop_front().or_else(|| play.refusal.clone()) {
            Some(Fault::Status(status, headers)) => {
                let headers: Vec<_> = headers.iter().map(|&(name, value)| (name, value.to_owned())).collect();
                return head(&mut stream, status, &[&headers[..], &[("Content-Length", "0".into())]].concat());
            }
            Some(Fault::Silence) => {
                drop(play);
                std::thread::sleep(Duration::from_secs(10));
                return Ok(());
            }
            None => {}
        }
        match said(&mut play, &mut stream, method, path, first)? {
            Some(body) => (play.pause, body),
            None => return Ok(()),
        }
    };
    std::thread::sleep(pause);
    stream.write_all(&body)
}

/// Sends the headers, and gives the body that goes after them.
fn said(
    play: &mut Play,
    stream: &mut TcpStream,
    method: &str,
    path: &str,
    first: usize,
) -> std::io::Result<Option<Vec<u8>>> {
    if path.starts_with("/api/models/owner/name/revision/") {
        let siblings: Vec<_> = play.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let body = serde_json::json!({"siblings": siblings, "sha": COMMIT}).to_string();
        head(stream, 200, &[("Content-Length", body.len().to_string())])?;
        return Ok(Some(body.into_bytes()));
    }
    let kept = path.strip_prefix("/kept/").map(str::to_owned);
    let name = kept.clone().or_else(|| {
        let revision = path.strip_prefix("/owner/name/resolve/")?;
        Some(revision.split_once('/')?.1.to_owned())
    });
    let Some((name, body)) = name.and_then(|name| Some((name.clone(), play.files.get(name.as_str())?.clone()))) else {
        head(stream, 404, &[("Content-Length", "0".into())])?;
        return Ok(None);
    };
    let announced = play.announced.get(name.as_str());
    let etag = announced.cloned().unwrap_or_else(|| format!("{:040x}", body.len()));
    let mut headers = match &kept {
        Some(_) => vec![("ETag", "\"of-another-server\"".to_owned())],
        None => vec![("X-Repo-Commit", COMMIT.to_owned()), ("ETag", format!("\"{etag}\""))],
    };
    if let (Some(elsewhere), Some(_), None) = (&play.elsewhere, announced, &kept) {
        headers[1] = ("X-Linked-Etag", format!("\"{etag}\""));
        let length = "0".to_owned();
        headers.extend([("X-Linked-Size", body.len().to_string()), ("Content-Length", length)]);
        headers.push(("Location", format!("{elsewhere}{name}")));
        head(stream, 302, &headers)?;
        return Ok(None);
    }
    if method == "HEAD" {
        headers.push(("Content-Length", body.len().to_string()));
        head(stream, 200, &headers)?;
        return Ok(None);
    }
    play.transfers.push((first, name));
    let first = match play.ranges {
        Ranges::Right => first,
        Ranges::Ignored => 0,
        Ranges::Wrong if first > 0 => first + 1,
        Ranges::Wrong => 0,
    };
    let mut rest = body[first..].to_vec();
    headers.push(("Content-Length", rest.len().to_string()));
    if first > 0 {
        headers.push(("Content-Range", format!("bytes {first}-{}/{}", body.len() - 1, body.len())));
    }
    head(stream, if first > 0 { 206 } else { 200 }, &headers)?;
    rest.truncate(play.cuts.pop_front().unwrap_or(rest.len()));
    Ok(Some(rest))
}
