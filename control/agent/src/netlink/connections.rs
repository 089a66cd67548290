//! Connections to the kernel: one that is told of changes, and others that ask.
//!
//! Requests do not share a socket with notifications: where those overflow its receive buffer, the kernel drops the answers
//! to requests along with them, and says of which to nobody. So that whoever waits for an answer does not wait for ever, each
//! has a deadline all the same. Source: netlink(7), the kernel's `net/netlink/af_netlink.c`.

use std::pin::{Pin, pin};
use std::time::Duration;

use ethtool::EthtoolHandle;
use futures_util::{FutureExt, Stream, StreamExt};
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::{Handle, MulticastGroup};
use tokio::task::{JoinHandle, unconstrained};
use tokio::time::timeout;

use super::NetworkError;
use super::link::{self, Queues};

pub(super) type Message = NetlinkMessage<RouteNetlinkMessage>;

/// How long to wait for an answer: for each part of a dump, since the whole takes as long as a table is.
const DEADLINE: Duration = Duration::from_secs(2);

/// What the kernel tells of by itself.
pub(super) struct Notifications {
    messages: Pin<Box<dyn Stream<Item = Message> + Send>>,
    connection: JoinHandle<()>,
}

impl Drop for Notifications {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Notifications {
    /// Subscribes to these groups.
    pub fn open(groups: &[MulticastGroup]) -> Result<Self, NetworkError> {
        let (connection, _, messages) = rtnetlink::new_multicast_connection(groups)?;
        let messages = Box::pin(messages.map(|(message, _)| message));
        // After an overflow the kernel drops everything, and does not say so again, until the socket was read empty. What is
        // read anew must be read after that: an overrun is forwarded with all that was in the socket.
        Ok(Self { messages, connection: tokio::spawn(unconstrained(connection)) })
    }

    /// The next one; `None` when there will be no more.
    pub async fn next(&mut self) -> Option<Message> {
        self.messages.next().await
    }

    /// The next one that is there already.
    pub fn ready(&mut self) -> Option<Message> {
        self.messages.next().now_or_never().flatten()
    }
}

/// Asks the kernel. Who gets no answer asks again, over a connection that is opened anew: the former one may have a dump
/// under way, beside which the kernel begins no other.
pub(super) struct Requests {
    route: Option<Connection<Handle>>,
    ethtool: Option<Connection<EthtoolHandle>>,
}

impl Requests {
    pub fn open() -> Result<Self, NetworkError> {
        Ok(Self { route: Some(Connection::route()?), ethtool: None })
    }

    /// Makes a request. Gives what the kernel said.
    ///
    /// # Errors
    /// If it said nothing.
    pub async fn ask<T, A: Future<Output = Result<T, rtnetlink::Error>>>(
        &mut self,
        request: impl FnOnce(&Handle) -> A,
    ) -> Result<Result<T, rtnetlink::Error>, NetworkError> {
        let mut connection = self.take_route()?;
        let answer = connection.answer(request(&connection.handle)).await?;
        self.route = Some(connection);
        Ok(answer)
    }

    /// Reads all of a table.
    pub async fn dump<T, R: Stream<Item = Result<T, rtnetlink::Error>>>(
        &mut self,
        request: impl FnOnce(&Handle) -> R,
    ) -> Result<Vec<T>, NetworkError> {
        let mut connection = self.take_route()?;
        let mut replies = pin!(request(&connection.handle));
        let mut all = Vec::new();
        while let Some(reply) = connection.answer(replies.next()).await? {
            all.push(reply?);
        }
        self.route = Some(connection);
        Ok(all)
    }

    /// The numbers of queues of an interface; `None` where the kernel or its driver does not say.
    pub async fn channels(&mut self, interface: &str) -> Result<Option<Queues>, NetworkError> {
        let Some(mut connection) = self.ethtool.take().or_else(Connection::ethtool) else { return Ok(None) };
        let mut handle = connection.handle.clone();
        let queues = connection.answer(link::channels(&mut handle, interface)).await?;
        self.ethtool = Some(connection);
        Ok(queues)
    }

    /// Whoever takes it puts it back after an answer, and not without one.
    fn take_route(&mut self) -> Result<Connection<Handle>, NetworkError> {
        self.route.take().map_or_else(Connection::route, Ok)
    }
}

/// A connection that is driven by whoever waits for an answer.
struct Connection<H> {
    handle: H,
    driver: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Connection<Handle> {
    fn route() -> Result<Self, NetworkError> {
        let opened = rtnetlink::new_connection();
        let (connection, handle, _) = opened.map_err(|error| NetworkError::Unanswered(error.to_string()))?;
        Ok(Self { handle, driver: Box::pin(connection) })
    }
}

impl Connection<EthtoolHandle> {
    fn ethtool() -> Option<Self> {
        let (connection, handle, _) = ethtool::new_connection().ok()?;
        Some(Self { handle, driver: Box::pin(connection) })
    }
}

impl<H> Connection<H> {
    async fn answer<T>(&mut self, answer: impl Future<Output = T>) -> Result<T, NetworkError> {
        let answered = async {
            tokio::select! {
                // First what drives it: where a request was held up in the kernel, what is read now came in time.
                biased;
                () = &mut self.driver => Err(NetworkError::Unanswered("the connection ended".to_owned())),
                answer = answer => Ok(answer),
            }
        };
        let too_late = |_| Err(NetworkError::Unanswered(format!("not within {DEADLINE:?}")));
        timeout(DEADLINE, answered).await.unwrap_or_else(too_late)
    }
}

#[cfg(test)]
pub(super) mod silence {
    //! Connections whose answers do not come.

    use super::*;

    impl Notifications {
        /// Has no more of them come.
        pub fn end(&mut self) {
            self.messages = Box::pin(futures_util::stream::empty());
        }
    }

    impl Requests {
        /// Has no more answers come over the connection that is open.
        pub fn fall_silent(&mut self) {
            let connection = self.route.as_mut().expect("an open connection");
            let open = std::mem::replace(&mut connection.driver, Box::pin(std::future::pending()));
            connection.driver = Box::pin(async move {
                let _open = open;
                std::future::pending().await
            });
        }
    }
}
