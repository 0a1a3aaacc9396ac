//! Bodies of requests on their way to backends: passed on as they come, and where a route asks for it remembered for
//! another attempt, or copied to mirrors. Neither ever holds up the request itself, and both are bounded.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::upload::{ClientBody, Upload};

/// How much of a body is remembered. A request with a longer one is sent once.
const MAX_REPLAY: usize = 64 << 10;
/// Frames that wait for a mirror that is slower than the backend; it gets no more then.
const MIRROR_FRAMES: usize = 64;

/// The body of a request to a backend.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// As it comes from the client.
    Plain(ClientBody),
    /// One reading of a body that may be read again, or that is copied.
    Shared(Reading),
    /// A mirror's.
    Copy(Copy),
    /// One of our own.
    Own(Full<Bytes>),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("{0}")]
    Client(#[from] hyper::Error),
    #[error("the client sends nothing more")]
    Silent,
    #[error("the attempt was given up")]
    GivenUp,
    #[error("the copy fell behind, or the request broke off")]
    Behind,
}

#[derive(Clone, Debug)]
enum Part {
    Data(Bytes),
    Trailers(HeaderMap),
}

/// A body of which several readings may be made, one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Source(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    client: ClientBody,
    hint: SizeHint,
    /// What was read so far; `None`: more than is remembered.
    read: Option<Vec<Part>>,
    bytes: usize,
    /// The client's body is at its end.
    ended: bool,
    /// Which reading is in force; earlier ones get nothing any more.
    reading: u64,
    copies: Vec<mpsc::Sender<Option<Part>>>,
}

/// One reading of a source.
#[derive(Debug)]
pub(crate) struct Reading {
    source: Source,
    number: u64,
    /// What is to be read before more comes from the client.
    again: VecDeque<Part>,
}

/// What a mirror is sent.
#[derive(Debug)]
pub(crate) struct Copy {
    parts: mpsc::Receiver<Option<Part>>,
    hint: SizeHint,
    ended: bool,
}

impl Source {
    /// A body that is remembered for other attempts if `again`.
    pub(crate) fn new(client: ClientBody, again: bool) -> Self {
        let hint = client.size_hint();
        let too_long = hint.lower() > MAX_REPLAY as u64;
        Self(Arc::new(Mutex::new(State {
            ended: client.is_end_stream(),
            client,
            hint,
            read: (again && !too_long).then(Vec::new),
            bytes: 0,
            reading: 0,
            copies: Vec::new(),
        })))
    }

    /// All of the body from its beginning; `None` if that is not remembered. Earlier readings are at an end.
    pub(crate) fn again(&self) -> Option<Outgoing> {
        let mut state = self.0.lock();
        let first = state.reading == 0;
        if state.client.upload().is_broken() || (state.read.is_none() && !first) {
            return None;
        }
        state.reading += 1;
        Some(Outgoing::Shared(Reading {
            source: self.clone(),
            number: state.reading,
            again: state.read.iter().flatten().cloned().collect(),
        }))
    }

    /// A copy, which has to be asked for before anything is read.
    pub(crate) fn copy(&self) -> Outgoing {
        let (send, parts) = mpsc::channel(MIRROR_FRAMES);
        let mut state = self.0.lock();
        let copy = Copy {
            parts,
            hint: state.hint,
            ended: state.ended,
        };
        if !state.ended {
            state.copies.push(send);
        }
        Outgoing::Copy(copy)
    }
}

impl State {
    /// The next part from the client.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Part, BodyError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let part = match ready!(self.client.poll(cx)) {
            None => {
                self.end();
                return Poll::Ready(None);
            }
            Some(Err(error)) => {
                self.copies.clear();
                return Poll::Ready(Some(Err(error)));
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => Part::Data(data),
                Err(frame) => match frame.into_trailers() {
                    Ok(trailers) => Part::Trailers(trailers),
                    // There are no other frames.
                    Err(_) => Part::Data(Bytes::new()),
                },
            },
        };
        self.remember(&part);
        self.copies
            .retain(|copy| copy.try_send(Some(part.clone())).is_ok());
        if self.client.is_end_stream() {
            self.end();
        }
        Poll::Ready(Some(Ok(part)))
    }

    fn end(&mut self) {
        self.ended = true;
        for copy in self.copies.drain(..) {
            // One that is full has lost its end, and breaks off.
            let _ = copy.try_send(None);
        }
    }

    fn remember(&mut self, part: &Part) {
        self.bytes += match part {
            Part::Data(data) => data.len(),
            Part::Trailers(_) => 0,
        };
        match &mut self.read {
            Some(read) if self.bytes <= MAX_REPLAY => read.push(part.clone()),
            read => *read = None,
        }
    }
}

impl Part {
    fn frame(self) -> Frame<Bytes> {
        match self {
            Self::Data(data) => Frame::data(data),
            Self::Trailers(trailers) => Frame::trailers(trailers),
        }
    }
}

impl Outgoing {
    /// What is known of the client's part of it, also after it was sent.
    pub(crate) fn upload(&self) -> Upload {
        match self {
            Self::Plain(client) => client.upload(),
            Self::Shared(reading) => reading.source.0.lock().client.upload(),
            Self::Copy(_) | Self::Own(_) => Upload::default(),
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Plain(client) => client.poll(cx),
            Self::Shared(reading) => {
                let mut state = reading.source.0.lock();
                if state.reading != reading.number {
                    return Poll::Ready(Some(Err(BodyError::GivenUp)));
                }
                if let Some(part) = reading.again.pop_front() {
                    return Poll::Ready(Some(Ok(part.frame())));
                }
                state
                    .poll(cx)
                    .map(|part| part.map(|part| part.map(Part::frame)))
            }
            Self::Own(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(|never| match never {}))),
            Self::Copy(copy) => {
                if copy.ended {
                    return Poll::Ready(None);
                }
                Poll::Ready(match ready!(copy.parts.poll_recv(cx)) {
                    Some(Some(part)) => Some(Ok(part.frame())),
                    Some(None) => {
                        copy.ended = true;
                        None
                    }
                    None => Some(Err(BodyError::Behind)),
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Plain(client) => client.is_end_stream(),
            Self::Shared(reading) => reading.again.is_empty() && reading.source.0.lock().ended,
            Self::Copy(copy) => copy.ended,
            Self::Own(body) => body.is_end_stream(),
        }
    }

    /// Looked at before anything is read.
    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Plain(client) => client.size_hint(),
            Self::Shared(reading) => reading.source.0.lock().hint,
            Self::Copy(copy) => copy.hint,
            Self::Own(body) => body.size_hint(),
        }
    }
}

impl From<Bytes> for Outgoing {
    fn from(body: Bytes) -> Self {
        Self::Own(Full::new(body))
    }
}
