//! `healthCheckNodePort`: load balancers outside ask each node whether it has endpoints of a Service of policy Local.
//!
//! Each port has listeners on all of the node's addresses, with SO_REUSEPORT: a successor's are there before its predecessor's
//! go, and keep who comes meanwhile in their queue, so that nobody is refused. Who binds without that, as kube-proxy does,
//! keeps others out and is kept out. Connections and their time are bounded, those of one listener apart, so that a
//! peer of one port keeps no other port from answering; and each has one request: who asks again meets who is there
//! then. What is answered is what kube-proxy answers. Source: kube-proxy's `pkg/proxy/healthcheck`, KEP-1669.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use translate::HealthCheckNodePort;

use crate::instance::Instance;
use crate::metrics;

/// How soon a port that somebody else has is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Connections at a time at one listener: more wait.
const CONNECTIONS: usize = 32;
/// Connections at a time at all of them, for each is an open file.
const ALL_CONNECTIONS: usize = 1024;
/// Connections that wait at one port.
const BACKLOG: u32 = 128;
/// How long a connection may last.
const TIME: Duration = Duration::from_secs(5);
/// How long the head of a request may take: who says nothing is not to have a place for long.
const HEAD_TIME: Duration = Duration::from_secs(1);
/// Octets of a request's head.
const HEAD: usize = 8192;

const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// What is to be answered, of which port.
#[derive(Debug, Default)]
pub struct NodeHealth {
    checks: watch::Sender<Vec<HealthCheckNodePort>>,
}

impl NodeHealth {
    /// Has these answered from now on, and no others.
    pub fn tell(&self, checks: &[HealthCheckNodePort]) {
        self.checks.send_if_modified(|known| {
            let differs = *known != checks;
            if differs {
                *known = checks.to_vec();
            }
            differs
        });
    }
}

/// Ports that are listened on, and not answered yet.
#[derive(Debug, Default)]
pub struct Listening(BTreeMap<u16, Vec<TcpListener>>);

/// Listens on what is to be answered, as far as nobody else does. Needs tokio's runtime.
#[must_use]
pub fn listen(instance: &Instance) -> Listening {
    let checks = instance.node_health.checks.borrow();
    Listening(checks.iter().filter_map(|check| Some((check.port, bind(check.port).ok()?))).collect())
}

/// Answers until it is dropped; listeners come and go with what is to be answered.
pub async fn serve(instance: Arc<Instance>, Listening(mut bound): Listening) {
    let mut checks = instance.node_health.checks.subscribe();
    let places = Arc::new(Semaphore::new(ALL_CONNECTIONS));
    let mut serving: BTreeMap<u16, JoinSet<()>> = BTreeMap::new();
    let mut taken: BTreeSet<u16> = BTreeSet::new();
    loop {
        let wanted: BTreeMap<u16, String> = {
            let checks = checks.borrow_and_update();
            checks.iter().map(|check| (check.port, format!("{}/{}", check.namespace, check.name))).collect()
        };
        serving.retain(|port, _| wanted.contains_key(port));
        taken.retain(|port| wanted.contains_key(port));
        let lacking: Vec<(&u16, &String)> = wanted.iter().filter(|(port, _)| !serving.contains_key(port)).collect();
        for (&port, service) in lacking {
            match bound.remove(&port).map_or_else(|| bind(port), Ok) {
                Ok(listeners) => {
                    let each = listeners.into_iter();
                    let tasks = each.map(|one| {
                        let instance = Arc::clone(&instance);
                        accept(one, Arc::clone(&places), move || answer_of(&instance, port))
                    });
                    serving.insert(port, tasks.collect());
                    taken.remove(&port);
                }
                Err(error) if taken.insert(port) => tracing::warn!(
                    port, %service, %error,
                    "healthCheckNodePort is not answered here; trying again. Where it is kube-proxy's: \
                     `kubernetes: {{healthCheckNodePorts: off}}`"
                ),
                Err(_) => {}
            }
        }
        bound.clear();
        tokio::select! {
            changed = checks.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if !taken.is_empty() => {}
        }
    }
}

/// Listens on a port of every address. IPv4 has a socket of its own, for one of IPv6 may not be for both.
fn bind(port: u16) -> io::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for address in [SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))] {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => match TcpSocket::new_v6() {
                Err(error) if error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => continue,
                socket => socket?,
            },
        };
        socket.set_reuseaddr(true)?;
        socket.set_reuseport(true)?;
        socket.bind(address)?;
        listeners.push(socket.listen(BACKLOG)?);
    }
    Ok(listeners)
}

/// Answers what comes to one listener, which has `CONNECTIONS` of the places that all have.
async fn accept<A>(listener: TcpListener, all: Arc<Semaphore>, answer: A)
where
    A: Fn() -> Response<Full<Bytes>> + Clone + Send + 'static,
{
    let own = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        // Its own place first: who waits for one here keeps none from other listeners. Neither is ever closed.
        let Ok(place) = Arc::clone(&own).acquire_owned().await else { return };
        let Ok(place_of_all) = Arc::clone(&all).acquire_owned().await else { return };
        let answer = answer.clone();
        connections.spawn(async move {
            // A peer that takes too long, or goes away, is its own affair.
            let _ = tokio::time::timeout(TIME, converse(answer, stream)).await;
            drop((place, place_of_all));
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn converse<A>(answer: A, stream: TcpStream) -> hyper::Result<()>
where
    A: Fn() -> Response<Full<Bytes>>,
{
    let service = hyper::service::service_fn(move |_: Request<Incoming>| {
        let response = answer();
        async move { Ok::<_, Infallible>(response) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(HEAD).keep_alive(false);
    server.serve_connection(TokioIo::new(stream), service).await
}

/// What is to be said at a port now.
fn answer_of(instance: &Instance, port: u16) -> Response<Full<Bytes>> {
    // What was released is a successor's, which serves already or is about to.
    let serves = || instance.ready() && metrics::unhealthy(instance.silent_for()).is_none();
    let healthy = instance.released.load(Ordering::Relaxed) || serves();
    let checks = instance.node_health.checks.borrow();
    answer(checks.iter().find(|check| check.port == port), healthy)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'c> {
    service: Named<'c>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Named<'c> {
    namespace: &'c str,
    name: &'c str,
}

/// The same whatever is asked for: 200 where new connections are served by endpoints of this node.
fn answer(check: Option<&HealthCheckNodePort>, healthy: bool) -> Response<Full<Bytes>> {
    let endpoints = check.map_or(0, |check| check.endpoints);
    let body = check.map(|HealthCheckNodePort { namespace, name, .. }| {
        let service = Named { namespace, name };
        serde_json::to_string(&Body { service, local_endpoints: endpoints, service_proxy_healthy: healthy })
    });
    // A value with plain fields is always written.
    let body = body.and_then(Result::ok).unwrap_or_default() + "\n";
    let mut response = Response::new(Full::new(Bytes::from(body)));
    let serves = healthy && endpoints > 0;
    *response.status_mut() = if serves { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(WEIGHT, HeaderValue::from(endpoints));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn a_node_with_endpoints_that_serves_is_good_and_any_other_is_not() {
        for (endpoints, healthy, status) in [(2, true, 200), (0, true, 503), (2, false, 503)] {
            let check = HealthCheckNodePort { namespace: "shop".into(), name: "web".into(), port: 32001, endpoints };
            let response = answer(Some(&check), healthy);
            assert_eq!(response.status(), status, "{endpoints} {healthy}");
            let header = |name: &str| response.headers()[name].to_str().expect("text").to_owned();
            assert_eq!(header("X-Load-Balancing-Endpoint-Weight"), endpoints.to_string());
            assert_eq!(
                (header("X-Content-Type-Options").as_str(), header("Content-Type").as_str()),
                ("nosniff", "application/json")
            );
        }
        assert_eq!(answer(None, true).status(), 503, "one that is gone");
    }

    #[tokio::test]
    async fn who_says_nothing_at_one_port_keeps_no_other_from_answering() {
        let all = Arc::new(Semaphore::new(CONNECTIONS + 1));
        let mut serving = JoinSet::new();
        let mut ports = Vec::new();
        for _ in 0..2 {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            ports.push(listener.local_addr().expect("an address"));
            serving.spawn(accept(listener, Arc::clone(&all), || answer(None, true)));
        }
        let mut silent = Vec::new();
        for _ in 0..2 * CONNECTIONS {
            silent.push(TcpStream::connect(ports[0]).await.expect("a place in the queue"));
        }
        while all.available_permits() > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let ask = async {
            let mut stream = TcpStream::connect(ports[1]).await?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n").await?;
            let mut said = String::new();
            stream.read_to_string(&mut said).await?;
            io::Result::Ok(said)
        };
        // Before those at the other port are out of time.
        let said = tokio::time::timeout(HEAD_TIME / 2, ask).await.expect("an answer in time").expect("an answer");
        assert!(said.starts_with("HTTP/1.1 503 "), "{said}");
    }

    #[tokio::test]
    async fn who_shares_a_port_may_listen_beside_and_who_does_not_keeps_us_out() {
        let plain = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = plain.local_addr().expect("an address").port();
        assert_eq!(bind(port).expect_err("somebody's").kind(), io::ErrorKind::AddrInUse);
        drop(plain);
        let (first, second) = (bind(port).expect("it is free"), bind(port).expect("a successor"));
        assert!(std::net::TcpListener::bind(("0.0.0.0", port)).is_err());
        drop(first);
        for host in ["127.0.0.1", "::1"] {
            std::net::TcpStream::connect((host, port)).expect(host);
        }
        drop(second);
    }
}
