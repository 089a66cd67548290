//! Against real listeners in a network namespace of their own.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use translate::{CheckKind, HealthCheck};

use super::*;
use crate::netlink::lab::{Namespace, until};

fn probe(endpoint: SocketAddr, kind: CheckKind) -> Probe {
    let (interval, timeout) = (Duration::from_millis(20), Duration::from_millis(500));
    Probe { endpoint, check: HealthCheck { kind, interval, timeout, up: 2, down: 3 } }
}

fn healthy(health: &Health, probe: &Probe) -> Option<bool> {
    health.state().get(probe).map(|state| state.healthy)
}

#[test]
fn a_listener_that_goes_away_and_comes_back_turns_the_endpoint_unhealthy_and_healthy() {
    Namespace::new().block_on(async || {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let probe = probe(listener.local_addr().unwrap(), CheckKind::Tcp);
        let (health, mut changes) = Health::start();
        health.set(vec![probe.clone()]);
        listener.accept().await.unwrap();
        drop(listener);
        until("unhealthy", &mut changes, || healthy(&health, &probe) == Some(false)).await;
        assert_eq!(health.state()[&probe].last, "connection refused");
        let listener = TcpListener::bind(probe.endpoint).await.unwrap();
        until("healthy again", &mut changes, || healthy(&health, &probe) == Some(true)).await;
        assert_eq!((*changes.borrow(), health.state()[&probe].last.as_str()), (2, "connected"));
        drop(listener);
    });
}

/// Answers every request with what the receiver says at the moment.
async fn serve(listener: TcpListener, status: watch::Receiver<u16>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        let got = stream.read(&mut request).await.unwrap();
        let head = String::from_utf8_lossy(&request[..got]).into_owned();
        assert!(got == 0 || head.starts_with("GET /healthz?full HTTP/1.1\r\n") && head.contains("host: "), "{head}");
        let answer = format!("HTTP/1.1 {} X\r\nContent-Length: 0\r\n\r\n", *status.borrow());
        let _ = stream.write_all(answer.as_bytes()).await;
    }
}

#[test]
fn http_statuses_from_200_to_399_are_healthy_and_503_is_not() {
    Namespace::new().block_on(async || {
        let listener = TcpListener::bind("[::1]:0").await.unwrap();
        let probe = probe(listener.local_addr().unwrap(), CheckKind::Http("/healthz?full".to_owned()));
        let (status, receiver) = watch::channel(503);
        tokio::spawn(serve(listener, receiver));
        let (health, mut changes) = Health::start();
        health.set(vec![probe.clone()]);
        for (answer, good) in [(503, false), (200, true), (500, false), (302, true), (404, false)] {
            status.send_replace(answer);
            until("a result", &mut changes, || healthy(&health, &probe) == Some(good)).await;
            assert_eq!(health.state()[&probe].last, answer.to_string());
        }
    });
}

#[test]
fn an_endpoint_that_never_answers_times_out() {
    Namespace::new().block_on(async || {
        // It accepts and stays silent.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut probe = probe(listener.local_addr().unwrap(), CheckKind::Http("/".to_owned()));
        probe.check.timeout = Duration::from_millis(30);
        let (health, mut changes) = Health::start();
        health.set(vec![probe.clone()]);
        until("unhealthy", &mut changes, || healthy(&health, &probe) == Some(false)).await;
        assert_eq!(health.state()[&probe].last, "timed out after 30ms");
    });
}

#[test]
fn probes_that_stay_keep_their_state_and_those_that_go_end() {
    Namespace::new().block_on(async || {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stays = probe("127.0.0.1:1".parse().unwrap(), CheckKind::Tcp);
        let goes = probe(listener.local_addr().unwrap(), CheckKind::Tcp);
        let (health, mut changes) = Health::start();
        health.set(vec![stays.clone(), goes.clone()]);
        until("unhealthy", &mut changes, || healthy(&health, &stays) == Some(false)).await;
        listener.accept().await.unwrap();
        health.set(vec![stays.clone()]);
        assert_eq!(health.state().keys().collect::<Vec<_>>(), [&stays]);
        assert_eq!(healthy(&health, &stays), Some(false), "kept although nothing was probed since");
        health.set(vec![]);
        assert!(health.state().is_empty());
    });
}
