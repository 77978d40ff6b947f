//! One client: lines in, lines out, in order.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use overlane_api::protocol::{
    ApiError, ErrorCode, MAX_CHANGES, MAX_REQUEST_BYTES, Op, Request, Response, VERSION,
};
use serde::Deserialize;

use super::CallSender;

/// How long a client may leave its answer unread before it is let go.
const WRITE_WAIT: Duration = Duration::from_secs(10);

/// How long, and how much, an overlong request is read on after it was refused, so that a client
/// that is still writing gets to the refusal.
const DRAIN_WAIT: Duration = Duration::from_secs(2);
const DRAIN_BYTES: usize = 4 * MAX_REQUEST_BYTES;

/// A response as a line.
pub(super) fn line(response: &Response) -> Vec<u8> {
    let mut line = serde_json::to_vec(response).unwrap_or_else(|error| {
        tracing::error!(%error, "an answer cannot be written as JSON");
        // Plain text without anything to escape.
        format!(
            r#"{{"version":{VERSION},"id":{},"result":{{"Err":{{"code":"failed","what":"the answer cannot be written as JSON"}}}}}}"#,
            response.id
        )
        .into_bytes()
    });
    line.push(b'\n');
    line
}

/// Serves a client until it leaves.
///
/// # Errors
/// When the connection broke, or the client did not take its answer in time.
pub(super) fn serve(stream: &UnixStream, calls: &CallSender) -> std::io::Result<()> {
    stream.set_write_timeout(Some(WRITE_WAIT))?;
    let mut reader = BufReader::new(stream);
    let mut text = Vec::new();
    loop {
        // A fresh buffer after a large request: an idle client must not hold megabytes.
        text.clear();
        text.shrink_to(64 << 10);
        let limit = MAX_REQUEST_BYTES as u64 + 1;
        let read = reader.by_ref().take(limit).read_until(b'\n', &mut text)?;
        if read == 0 {
            return Ok(());
        }
        let complete = text.last() == Some(&b'\n');
        if !complete && text.len() > MAX_REQUEST_BYTES {
            let error = too_long();
            write(stream, &Response { version: VERSION, id: 0, result: Err(error) })?;
            return drain(reader.into_inner());
        }
        if !complete {
            // Broken off in the middle of a request: it may be half an order, so nothing is done.
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        text.pop();
        if text.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        write(stream, &answer(&text, calls))?;
    }
}

fn write(mut stream: &UnixStream, response: &Response) -> std::io::Result<()> {
    stream.write_all(&line(response))
}

/// Reads on without looking, for a while.
fn drain(mut stream: &UnixStream) -> std::io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(DRAIN_WAIT))?;
    let (end, mut left, mut waste) = (Instant::now() + DRAIN_WAIT, DRAIN_BYTES, vec![0; 64 << 10]);
    while Instant::now() < end && left > 0 {
        match stream.read(&mut waste)? {
            0 => break,
            read => left = left.saturating_sub(read),
        }
    }
    Ok(())
}

fn too_long() -> ApiError {
    ApiError::new(ErrorCode::Malformed, format!("request longer than {MAX_REQUEST_BYTES} bytes"))
        .at(format!("byte {MAX_REQUEST_BYTES}"))
        .hint(format!("send at most {MAX_CHANGES} changes in one request"))
}

fn answer(text: &[u8], calls: &CallSender) -> Response {
    let (id, result) = match parse(text) {
        Ok(Request { id, op, .. }) => (id, calls.ask(op)),
        Err((id, error)) => (id, Err(error)),
    };
    Response { version: VERSION, id, result }
}

/// What every version of the protocol has in a request.
#[derive(Deserialize)]
struct Envelope {
    version: u32,
    #[serde(default)]
    id: u64,
}

/// Reads a request; an error comes with the request's id as far as that could be read.
fn parse(text: &[u8]) -> Result<Request, (u64, ApiError)> {
    let wrong_version = |id, version| {
        let what = format!("the request is of protocol version {version}");
        let hint =
            format!("this dataplane speaks version {VERSION}; use the client of its release");
        Err((id, ApiError::new(ErrorCode::Version, what).at("version").hint(hint)))
    };
    let error = match serde_json::from_slice::<Request>(text) {
        Ok(request) if request.version != VERSION => {
            return wrong_version(request.id, request.version);
        }
        Ok(request) => return check(request),
        Err(error) => error,
    };
    // Another version may look different: its number comes before all other complaints.
    let id = match serde_json::from_slice::<Envelope>(text) {
        Ok(envelope) if envelope.version != VERSION => {
            return wrong_version(envelope.id, envelope.version);
        }
        Ok(envelope) => envelope.id,
        Err(_) => 0,
    };
    Err((id, malformed(text, &error)))
}

fn check(request: Request) -> Result<Request, (u64, ApiError)> {
    match &request.op {
        Op::Apply { changes } if changes.len() > MAX_CHANGES => {
            let what = format!("{} changes in one request", changes.len());
            let hint = format!("send at most {MAX_CHANGES} at a time");
            let error = ApiError::new(ErrorCode::Refused, what).at("op.apply.changes").hint(hint);
            Err((request.id, error))
        }
        _ => Ok(request),
    }
}

/// Says what is wrong and at which byte of the line (the first is byte 0).
fn malformed(text: &[u8], error: &serde_json::Error) -> ApiError {
    let lines_before = text
        .split_inclusive(|byte| *byte == b'\n')
        .take(error.line().saturating_sub(1))
        .map(<[u8]>::len)
        .sum::<usize>();
    let place = format!("byte {}", lines_before + error.column().saturating_sub(1));
    let full = error.to_string();
    let words = full.rsplit_once(" at line ").map_or(full.as_str(), |(words, _)| words);
    let error = match unknown_op(text, words) {
        Some((name, known)) => {
            ApiError::new(ErrorCode::Malformed, format!("unknown operation {name:?}")).hint(known)
        }
        None => ApiError::new(ErrorCode::Malformed, format!("not a request: {words}")),
    };
    error.at(place)
}

/// If the complaint is about the operation's name: the name, and which there are.
fn unknown_op(text: &[u8], words: &str) -> Option<(String, String)> {
    let request: serde_json::Value = serde_json::from_slice(text).ok()?;
    let op = request.get("op")?;
    let name = op.as_str().or_else(|| op.as_object()?.keys().next().map(String::as_str))?;
    let known = words.strip_prefix(&format!("unknown variant `{name}`, "))?;
    Some((name.to_owned(), known.to_owned()))
}
