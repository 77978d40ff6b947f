//! Tells load balancers whether this node has ready endpoints of a service
//! (`healthCheckNodePort`): HTTP through the host's own stack, for services of type LoadBalancer
//! with externalTrafficPolicy Local. Any path is answered; 200 means: send clients here.
//!
//! One thread waits for all ports. A connection has a thread of its own for the moment that it
//! takes, so that a client that sends nothing holds up no other.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

use crate::desired::Health;

/// Longest head of a request, bytes.
const MAX_HEAD: usize = 8 << 10;
/// Time for a client to send its request and take the answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Most connections at a time; more are closed unanswered.
const MAX_CONNECTIONS: usize = 64;
/// How often a port that could not be opened is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What the server and its thread share.
#[derive(Debug, Default)]
struct Shared {
    wanted: Mutex<Wanted>,
    /// Does the dataplane answer?
    healthy: AtomicBool,
    stop: AtomicBool,
    connections: AtomicUsize,
}

#[derive(Debug, Default)]
struct Wanted {
    services: BTreeMap<String, Health>,
    /// The service that each port answers for: the first by name.
    ports: BTreeMap<u16, String>,
    /// Ports that could not be opened, and why.
    failures: BTreeMap<u16, String>,
}

/// Answers for services until it is dropped.
#[derive(Debug)]
pub struct HealthServer {
    shared: Arc<Shared>,
    wake: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl HealthServer {
    /// A server without ports.
    ///
    /// # Errors
    /// When the system gives no thread or socket pair.
    pub fn start() -> Result<Self, std::io::Error> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let shared = Arc::new(Shared::default());
        let seen = Arc::clone(&shared);
        let serve = move || serve(&woken, &seen);
        let thread = std::thread::Builder::new().name("health".into()).spawn(serve)?;
        Ok(Self { shared, wake, thread: Some(thread) })
    }

    /// Sets the services that are asked for, by `namespace/name`.
    pub fn set(&self, services: &BTreeMap<String, Health>) {
        let mut wanted = lock(&self.shared);
        if wanted.services == *services {
            return;
        }
        wanted.services.clone_from(services);
        wanted.ports.clear();
        for (name, health) in services {
            wanted.ports.entry(health.port).or_insert_with(|| name.clone());
        }
        drop(wanted);
        self.wake();
    }

    /// Says whether the dataplane is there to serve anyone.
    pub fn set_healthy(&self, healthy: bool) {
        self.shared.healthy.store(healthy, Ordering::Relaxed);
    }

    /// What could not be done, in plain words.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let wanted = lock(&self.shared);
        let mut warnings: Vec<String> = wanted.failures.values().cloned().collect();
        for (name, Health { port, .. }) in &wanted.services {
            if let Some(owner) = wanted.ports.get(port).filter(|owner| *owner != name) {
                warnings.push(format!(
                    "healthCheckNodePort {port} of service {name} answers for {owner}: give each service its own"
                ));
            }
        }
        warnings
    }

    fn wake(&self) {
        // A full pipe wakes as well.
        let _ = (&self.wake).write(&[0]);
    }
}

impl Drop for HealthServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(shared: &Shared) -> MutexGuard<'_, Wanted> {
    shared.wanted.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(mut woken: &UnixStream, shared: &Arc<Shared>) {
    let mut open: BTreeMap<u16, Vec<TcpListener>> = BTreeMap::new();
    while !shared.stop.load(Ordering::Relaxed) {
        let failed = open_wanted(&mut open, shared);
        let timeout = if failed { RETRY } else { Duration::MAX };
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::NONE);
        let listeners: Vec<(u16, &TcpListener)> =
            open.iter().flat_map(|(port, all)| all.iter().map(|one| (*port, one))).collect();
        let fds = std::iter::once(woken.as_fd());
        let fds = fds.chain(listeners.iter().map(|(_, listener)| listener.as_fd()));
        let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        if let Err(error) = poll(&mut fds, timeout)
            && error != nix::errno::Errno::EINTR
        {
            tracing::error!(%error, "cannot wait for load balancers");
            std::thread::sleep(RETRY);
        }
        let mut drain = [0; 64];
        while woken.read(&mut drain).is_ok_and(|count| count > 0) {}
        for ((port, listener), _) in
            listeners.iter().zip(fds.iter().skip(1)).filter(|(_, fd)| fd.any() == Some(true))
        {
            while let Ok((stream, _)) = listener.accept() {
                begin(stream, *port, shared);
            }
        }
    }
}

/// Opens the ports that are wanted and closes the others. Did any fail?
fn open_wanted(open: &mut BTreeMap<u16, Vec<TcpListener>>, shared: &Shared) -> bool {
    let mut wanted = lock(shared);
    open.retain(|port, _| wanted.ports.contains_key(port));
    let missing: Vec<(u16, String)> = wanted
        .ports
        .iter()
        .filter(|(port, _)| !open.contains_key(*port))
        .map(|(port, name)| (*port, name.clone()))
        .collect();
    let before = std::mem::take(&mut wanted.failures);
    for (port, name) in missing {
        match listen(port) {
            Ok(listeners) => {
                open.insert(port, listeners);
            }
            Err(error) => {
                let text = format!(
                    "cannot serve healthCheckNodePort {port} of service {name}: {error}; trying again"
                );
                if before.get(&port) != Some(&text) {
                    tracing::error!("{text}");
                }
                wanted.failures.insert(port, text);
            }
        }
    }
    !wanted.failures.is_empty()
}

/// Listens at all of the host's addresses: at those of both families at once where the system
/// does that, else at each apart.
fn listen(port: u16) -> std::io::Result<Vec<TcpListener>> {
    let bind = |address: IpAddr| {
        let listener = TcpListener::bind(SocketAddr::new(address, port))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    let v6: std::io::Result<TcpListener> = bind(Ipv6Addr::UNSPECIFIED.into());
    let v4: std::io::Result<TcpListener> = bind(Ipv4Addr::UNSPECIFIED.into());
    match (v6, v4) {
        (Ok(v6), Ok(v4)) => Ok(vec![v6, v4]),
        (Ok(both), Err(error)) if error.kind() == std::io::ErrorKind::AddrInUse => Ok(vec![both]),
        (Err(_), Ok(v4)) => Ok(vec![v4]),
        (_, Err(error)) => Err(error),
    }
}

fn begin(stream: TcpStream, port: u16, shared: &Arc<Shared>) {
    if shared.connections.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
        shared.connections.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let counted = Arc::clone(shared);
    let talk = move || {
        if let Err(error) = converse(stream, port, &counted) {
            tracing::debug!(port, %error, "a health check broke off");
        }
        counted.connections.fetch_sub(1, Ordering::Relaxed);
    };
    if std::thread::Builder::new().name("health-check".into()).spawn(talk).is_err() {
        shared.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

fn converse(mut stream: TcpStream, port: u16, shared: &Shared) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let head = read_head(&mut stream)?;
    let answer = answer(&head, port, shared);
    stream.write_all(answer.as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)
}

/// Reads up to the empty line that ends the head of a request (RFC 9112 section 2.1).
fn read_head(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let end = Instant::now() + PATIENCE;
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    let is_whole = |head: &[u8]| {
        head.windows(4).any(|window| window == b"\r\n\r\n")
            || head.windows(2).any(|window| window == b"\n\n")
    };
    while !is_whole(&head) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || head.len() > MAX_HEAD {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut piece)? {
            0 => break,
            count => head.extend_from_slice(piece.get(..count).unwrap_or_default()),
        }
    }
    Ok(head)
}

/// The body, as kube-proxy writes it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: Named<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Named<'a> {
    namespace: &'a str,
    name: &'a str,
}

fn answer(head: &[u8], port: u16, shared: &Shared) -> String {
    let method = head.split(|byte| *byte == b' ').next().unwrap_or_default();
    let with_body = match method {
        b"GET" => true,
        b"HEAD" => false,
        _ => return "HTTP/1.1 405 Method Not Allowed\r\nAllow: GET, HEAD\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned(),
    };
    let wanted = lock(shared);
    let service = wanted.ports.get(&port);
    let known = service.and_then(|name| Some((name, wanted.services.get(name)?)));
    let Some((name, health)) = known else {
        return "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            .to_owned();
    };
    let healthy = shared.healthy.load(Ordering::Relaxed);
    let (namespace, own) = name.split_once('/').unwrap_or(("", name));
    let body = Body {
        service: Named { namespace, name: own },
        local_endpoints: health.local_endpoints,
        service_proxy_healthy: healthy,
    };
    // Plain data is always JSON.
    let body = serde_json::to_string(&body).unwrap_or_default();
    let status =
        if healthy && health.local_endpoints > 0 { "200 OK" } else { "503 Service Unavailable" };
    let length = body.len();
    let shown = if with_body { body.as_str() } else { "" };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{shown}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free_port() -> u16 {
        TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port()
    }

    fn ask(address: &str, port: u16, request: &str) -> Option<String> {
        let mut stream = TcpStream::connect((address, port)).ok()?;
        // A port that closes resets whom it has not accepted yet.
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(5);
        while !is_so() {
            assert!(Instant::now() < end, "in vain: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn services(port: u16, local_endpoints: usize) -> BTreeMap<String, Health> {
        BTreeMap::from([("shop/web".to_owned(), Health { port, local_endpoints })])
    }

    const GET: &str = "GET /anything HTTP/1.1\r\nHost: x\r\n\r\n";

    #[test]
    fn ports_open_answer_and_close_as_services_come_and_go() {
        let server = HealthServer::start().unwrap();
        let port = free_port();
        server.set(&services(port, 2));
        wait_until("the port opens", || ask("127.0.0.1", port, GET).is_some());
        let answer = ask("127.0.0.1", port, GET).unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "no dataplane yet: {answer}");
        server.set_healthy(true);
        let answer = ask("127.0.0.1", port, GET).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        let body = r#"{"service":{"namespace":"shop","name":"web"},"localEndpoints":2,"serviceProxyHealthy":true}"#;
        assert!(
            answer.ends_with(&format!(
                "Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            )),
            "{answer}"
        );
        server.set(&services(port, 0));
        let answer = ask("127.0.0.1", port, GET).unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 503 ") && answer.contains("\"localEndpoints\":0"),
            "{answer}"
        );
        let answer = ask("127.0.0.1", port, "HEAD / HTTP/1.0\r\n\r\n").unwrap();
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
        let answer = ask("127.0.0.1", port, "POST / HTTP/1.0\r\n\r\n").unwrap();
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
        server.set(&BTreeMap::new());
        wait_until("the port closes", || ask("127.0.0.1", port, GET).is_none());
    }

    #[test]
    fn silent_client_holds_up_no_other() {
        let server = HealthServer::start().unwrap();
        let port = free_port();
        server.set(&services(port, 1));
        server.set_healthy(true);
        wait_until("the port opens", || ask("127.0.0.1", port, GET).is_some());
        let silent: Vec<TcpStream> =
            (0..8).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
        let start = Instant::now();
        assert!(ask("127.0.0.1", port, GET).unwrap().contains("200 OK"));
        assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
        drop(silent);
    }

    #[test]
    fn port_that_is_taken_is_reported_and_tried_again() {
        let taken = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let server = HealthServer::start().unwrap();
        server.set(&services(port, 1));
        wait_until("the failure is said", || {
            server.warnings().iter().any(|text| text.contains("shop/web"))
        });
        drop(taken);
        wait_until("it is opened after all", || server.warnings().is_empty());
        assert!(ask("127.0.0.1", port, GET).is_some());
        let mut two = services(port, 1);
        two.insert("shop/web2".to_owned(), Health { port, local_endpoints: 1 });
        server.set(&two);
        assert!(server.warnings()[0].contains("shop/web2 answers for shop/web"));
    }
}
