//! A text in pieces: that of a large cluster's metrics is some ten megabytes, which need not be in one.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};

/// How long a piece is at least, but for the last one.
const PIECE: usize = 64 << 10;

/// A text that is written, then sent as the body of an answer.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    whole: VecDeque<Bytes>,
    last: String,
}

impl From<String> for Pieces {
    fn from(last: String) -> Self {
        Self { whole: VecDeque::new(), last }
    }
}

impl Pieces {
    fn octets(&self) -> usize {
        self.whole.iter().map(Bytes::len).sum::<usize>() + self.last.len()
    }
}

impl fmt::Write for Pieces {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.last.capacity() == 0 {
            self.last.reserve(PIECE + 1024);
        }
        self.last.push_str(text);
        if self.last.len() >= PIECE {
            self.whole.push_back(std::mem::take(&mut self.last).into());
        }
        Ok(())
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let own = self.get_mut();
        let next = own.whole.pop_front().or_else(|| {
            let last = std::mem::take(&mut own.last);
            (!last.is_empty()).then(|| last.into())
        });
        Poll::Ready(next.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.octets() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.octets() as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn what_is_written_comes_out_whole_and_in_order_whatever_its_length() {
        for lines in [0, 1, 40_000] {
            let (mut pieces, mut expected) = (Pieces::default(), String::new());
            for line in 0..lines {
                writeln!(pieces, "line {line}").unwrap();
                writeln!(expected, "line {line}").unwrap();
            }
            assert_eq!(pieces.size_hint().exact(), Some(expected.len() as u64));
            assert_eq!(pieces.is_end_stream(), lines == 0);
            assert_eq!(pieces.whole.len() > 1, lines > 1);
            let whole = pieces.collect().await.unwrap().to_bytes();
            assert_eq!(String::from_utf8(whole.into()).unwrap(), expected);
        }
    }
}
