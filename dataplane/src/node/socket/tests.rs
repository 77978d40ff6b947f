use std::io::{BufRead as _, BufReader, Read as _};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use overlane_api::client::{Client, ClientError};
use overlane_api::protocol::{MAX_REQUEST_BYTES, Op, Reply};

use super::*;

const WAIT: Duration = Duration::from_secs(10);

/// A server with a slow thread behind it that answers `Hello` with the number of calls so far.
struct Bench {
    server: Option<Server>,
    slow: Option<JoinHandle<usize>>,
    stop: Arc<AtomicBool>,
    directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (sender, receiver) = mailbox().unwrap();
        let server = Server::start(&directory.path().join("run/d.sock"), None, sender).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let slow = std::thread::spawn(move || answer_all(&receiver, &seen));
        Self { server: Some(server), slow: Some(slow), stop, directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("run/d.sock")
    }

    fn client(&self) -> Client {
        Client::connect(&self.path(), WAIT).unwrap()
    }

    fn raw(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        stream
    }

    /// Sends `text` as it is and reads one answer.
    fn say(&self, text: &[u8]) -> Response {
        let mut stream = self.raw();
        stream.write_all(text).unwrap();
        read(&stream)
    }

    fn refusal(&self, text: &str) -> (u64, ApiError) {
        let response = self.say(text.as_bytes());
        assert_eq!(response.version, VERSION);
        (response.id, response.result.unwrap_err())
    }

    /// Ends the server and returns how many calls reached the slow thread.
    fn end(mut self) -> usize {
        self.server.take();
        self.stop.store(true, Ordering::Relaxed);
        self.slow.take().unwrap().join().unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn read(stream: &UnixStream) -> Response {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line:?}"))
}

fn answer_all(receiver: &CallReceiver, stop: &AtomicBool) -> usize {
    let mut count = 0;
    loop {
        let mut fds = [PollFd::new(receiver.fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::try_from(50).unwrap()).unwrap();
        while let Some(call) = receiver.next() {
            count += 1;
            let answer = match call.op {
                Op::Hello => Ok(Reply::Hello { version: "t".into(), instance: count as u64 }),
                Op::Drops => continue,
                _ => Err(ApiError::new(ErrorCode::Failed, "not today")),
            };
            call.reply.send(answer).unwrap();
        }
        if stop.load(Ordering::Relaxed) {
            return count;
        }
    }
}

#[test]
fn calls_are_answered_in_order_over_one_connection() {
    let bench = Bench::new();
    let mut client = bench.client();
    for expected in 1..=3 {
        match client.call(Op::Hello).unwrap() {
            Reply::Hello { instance, .. } => assert_eq!(instance, expected),
            other => panic!("{other:?}"),
        }
    }
    match client.call(Op::Status).unwrap_err() {
        ClientError::Refused(error) => assert_eq!(error.what, "not today"),
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.end(), 4);
}

#[test]
fn a_call_that_nobody_answers_fails() {
    let bench = Bench::new();
    match bench.client().call(Op::Drops).unwrap_err() {
        ClientError::Refused(error) => assert_eq!(error.code, ErrorCode::Failed),
        other => panic!("{other:?}"),
    }
}

#[test]
fn malformed_lines_are_answered_with_the_place_and_the_connection_goes_on() {
    let bench = Bench::new();
    let (id, error) = bench.refusal("{\"version\":1,\"id\":7,\"op\":hello}\n");
    assert_eq!((id, error.code), (0, ErrorCode::Malformed));
    assert_eq!(error.place.as_deref(), Some("byte 25"), "{error}");
    let (id, error) = bench.refusal("{\"version\":1,\"id\":7,\"op\":\"hello\",\"colour\":1}\n");
    assert_eq!((id, error.code), (7, ErrorCode::Malformed));
    assert!(error.what.contains("colour"), "{error}");
    assert_eq!(bench.refusal("\u{0}\n").1.code, ErrorCode::Malformed);
    assert_eq!(bench.say(b"\xff\xfe\n").result.unwrap_err().code, ErrorCode::Malformed);

    let mut stream = bench.raw();
    stream.write_all(b"nonsense\n\n{\"version\":1,\"id\":8,\"op\":\"hello\"}\n").unwrap();
    let mut lines = BufReader::new(&stream).lines().map(Result::unwrap);
    assert!(lines.next().unwrap().contains("malformed"));
    assert!(lines.next().unwrap().contains("\"id\":8"));
    drop(lines);
    assert_eq!(bench.end(), 1, "nothing malformed reached the slow thread");
}

#[test]
fn unknown_operations_are_named() {
    let bench = Bench::new();
    for op in ["\"fly\"", "{\"fly\":{\"to\":\"the moon\"}}"] {
        let (id, error) = bench.refusal(&format!("{{\"version\":1,\"id\":3,\"op\":{op}}}\n"));
        assert_eq!((id, error.code), (3, ErrorCode::Malformed));
        assert_eq!(error.what, "unknown operation \"fly\"");
        assert!(error.hint.unwrap().contains("`hello`"));
    }
}

#[test]
fn another_version_is_refused_by_number_even_when_nothing_else_is_understood() {
    let bench = Bench::new();
    for request in ["\"op\":\"hello\"", "\"op\":{\"new\":[1]},\"token\":\"x\"", "\"verb\":1"] {
        let (id, error) = bench.refusal(&format!("{{\"version\":2,\"id\":4,{request}}}\n"));
        assert_eq!((id, error.code), (4, ErrorCode::Version), "{request}");
        assert!(error.to_string().contains("version 2"), "{error}");
    }
    assert_eq!(bench.end(), 0);
}

#[test]
fn too_many_changes_are_refused_with_the_number() {
    let bench = Bench::new();
    let changes = vec![r#"{"remove":"node"}"#; 1001].join(",");
    let text =
        format!("{{\"version\":1,\"id\":5,\"op\":{{\"apply\":{{\"changes\":[{changes}]}}}}}}\n");
    let (id, error) = bench.refusal(&text);
    assert_eq!((id, error.code), (5, ErrorCode::Refused));
    assert!(error.what.contains("1001"), "{error}");
}

#[test]
fn an_endless_line_is_refused_and_the_connection_closed() {
    let bench = Bench::new();
    let stream = bench.raw();
    let writer = stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        let (mut writer, block) = (writer, vec![b' '; 1 << 20]);
        (0..=(MAX_REQUEST_BYTES >> 20)).all(|_| writer.write_all(&block).is_ok())
    });
    let error = read(&stream).result.unwrap_err();
    assert_eq!(error.code, ErrorCode::Malformed);
    assert!(error.to_string().contains("16777216"), "{error}");
    assert!(writing.join().unwrap(), "the client could write to the end");
    drop(stream);
    assert!(bench.client().call(Op::Hello).is_ok());
}

#[test]
fn a_line_of_the_full_length_is_served() {
    let bench = Bench::new();
    let mut text = br#"{"version":1,"id":6,"op":"hello"}"#.to_vec();
    text.resize(MAX_REQUEST_BYTES, b' ');
    text.push(b'\n');
    let response = bench.say(&text);
    assert!(response.result.is_ok(), "{response:?}");
}

#[test]
fn a_request_broken_off_in_the_middle_does_nothing() {
    let bench = Bench::new();
    let mut stream = bench.raw();
    stream.write_all(br#"{"version":1,"id":1,"op":"hello"}"#).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
    assert!(bench.client().call(Op::Hello).is_ok());
    assert_eq!(bench.end(), 1);
}

#[test]
fn clients_do_not_wait_for_one_who_does_not_read() {
    let bench = Bench::new();
    // Fills the answer buffer of one connection until its thread is stuck in writing.
    let mut stuck = bench.raw();
    stuck.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let block = "{\"version\":1,\"id\":1,\"op\":\"status\"}\n".repeat(1000);
    while stuck.write_all(block.as_bytes()).is_ok() {}
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = bench.client();
                for _ in 0..50 {
                    assert!(client.call(Op::Hello).is_ok());
                }
            });
        }
    });
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    drop(stuck);
    bench.end();
}

#[test]
fn connections_are_bounded_and_the_last_one_is_told() {
    let bench = Bench::new();
    let mut clients: Vec<Client> = (0..MAX_CONNECTIONS).map(|_| bench.client()).collect();
    for client in &mut clients {
        assert!(client.call(Op::Hello).is_ok());
    }
    match bench.client().call(Op::Hello).unwrap_err() {
        ClientError::Refused(error) => assert!(error.what.starts_with("64 connections"), "{error}"),
        other => panic!("{other:?}"),
    }
    clients.clear();
    let deadline = Instant::now() + WAIT;
    while bench.client().call(Op::Hello).is_err() {
        assert!(Instant::now() < deadline, "no room after all clients left");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_socket_file_has_mode_0660_and_goes_with_the_server() {
    let bench = Bench::new();
    let path = bench.path();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let mut client = bench.client();
    assert!(client.call(Op::Hello).is_ok());
    assert_eq!(bench.end(), 1);
    assert!(!path.exists());
    assert!(client.call(Op::Hello).is_err());
}

#[test]
fn a_second_server_is_refused_and_the_first_stays() {
    let bench = Bench::new();
    let (sender, _receiver) = mailbox().unwrap();
    let error = Server::start(&bench.path(), None, sender).unwrap_err();
    match &error {
        SocketError::AlreadyRunning { pid, .. } => {
            assert_eq!(u32::try_from(*pid).unwrap(), std::process::id());
        }
        other => panic!("{other}"),
    }
    assert!(error.to_string().contains("another dataplane is running at"));
    assert!(bench.client().call(Op::Hello).is_ok());
}

#[test]
fn a_stale_socket_is_replaced_and_a_file_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("d.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a listener leaves its file behind");
    let (sender, _receiver) = mailbox().unwrap();
    drop(Server::start(&path, None, sender.clone()).unwrap());

    std::fs::write(&path, "precious").unwrap();
    let error = Server::start(&path, None, sender).unwrap_err();
    assert!(matches!(error, SocketError::NotASocket(_)), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_successors_socket_is_not_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("d.sock");
    let (sender, _receiver) = mailbox().unwrap();
    let first = Server::start(&path, None, sender.clone()).unwrap();
    std::fs::remove_file(&path).unwrap();
    let second = Server::start(&path, None, sender).unwrap();
    drop(first);
    assert!(path.exists());
    drop(second);
    assert!(!path.exists());
}

#[test]
fn the_one_who_answers_may_stop_the_server_with_calls_unanswered() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("d.sock");
    let (sender, receiver) = mailbox().unwrap();
    let server = Server::start(&path, None, sender).unwrap();
    let asking = std::thread::spawn(move || {
        Client::connect(&path, WAIT).unwrap().call(Op::Hello).unwrap_err()
    });
    let mut fds = [PollFd::new(receiver.fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::try_from(5000).unwrap()), Ok(1));
    let start = Instant::now();
    drop(server);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    asking.join().unwrap();
    drop(receiver);
}

/// Names the socket for the copy of this test program that runs as somebody else.
const STRANGERS_SOCKET: &str = "OVERLANE_TEST_STRANGERS_SOCKET";

#[test]
#[ignore = "needs root"]
fn somebody_else_is_denied_whatever_the_files_mode() {
    use std::os::unix::process::CommandExt as _;
    if let Some(path) = std::env::var_os(STRANGERS_SOCKET) {
        let mut client = Client::connect(Path::new(&path), WAIT).unwrap();
        match client.call(Op::Hello).unwrap_err() {
            ClientError::Refused(error) => {
                assert_eq!(error.code, ErrorCode::Denied);
                assert!(error.what.contains("65534"), "{error}");
            }
            other => panic!("{other:?}"),
        }
        return;
    }
    let bench = Bench::new();
    let program = bench.directory.path().join("test-program");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    for (path, mode) in [(bench.directory.path(), 0o755), (&bench.path(), 0o666)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let name = std::thread::current().name().unwrap().to_owned();
    let output = std::process::Command::new(program)
        .args(["--exact", &name, "--ignored", "--nocapture"])
        .env(STRANGERS_SOCKET, bench.path())
        .current_dir("/")
        .gid(65_534)
        .uid(65_534)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{error}");
    assert!(bench.client().call(Op::Hello).is_ok());
    assert_eq!(bench.end(), 1, "the stranger's call was not passed on");
}
