//! gRPC's messages on a stream, in pieces (gRPC over HTTP/2, "Length-Prefixed-Message").
//!
//! The first response of a proxy has megabytes, and so has the first request of one that comes back; what follows is small.
//! tonic's own codec keeps buffers of the largest message for as long as a stream lives, which of a thousand proxies are
//! gigabytes. Here a message is written in pieces that the transport takes one after the other, and what was read is let
//! go.

use std::convert::Infallible;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};
use parking_lot::Mutex;
use prost::Message;
use prost::encoding::message;
use seine_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::sync::mpsc;
use tonic::Status;

/// Both directions: the initial versions of 100,000 resources are about 8 MB.
pub const MAX_MESSAGE: usize = 200 << 20;

/// Whether it is compressed, and its length.
const PREFIX: usize = 5;
/// A piece is sent when it has as much.
const PIECE: usize = 64 << 10;
/// The field of a response's resources.
const RESOURCES: u32 = 2;

/// What a client asks.
pub(super) struct Requests<B> {
    body: B,
    read: BytesMut,
}

impl<B> Requests<B>
where
    B: Body<Data = Bytes, Error = Status> + Unpin,
{
    pub(super) fn new(body: B) -> Self {
        Self {
            body,
            read: BytesMut::new(),
        }
    }

    /// The next request; `None` when the client has ended its direction. Nothing is lost if the future is dropped.
    pub(super) async fn next(&mut self) -> Result<Option<DeltaDiscoveryRequest>, Status> {
        loop {
            if let Some(request) = self.take()? {
                return Ok(Some(request));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.read.extend_from_slice(&data);
                    }
                }
                Some(Err(status)) => return Err(status),
                None if self.read.is_empty() => return Ok(None),
                None => return Err(Status::internal("the stream ends within a message")),
            }
        }
    }

    fn take(&mut self) -> Result<Option<DeltaDiscoveryRequest>, Status> {
        let Some((prefix, rest)) = self.read.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let [compressed, length @ ..] = *prefix;
        let length = u32::from_be_bytes(length) as usize;
        if compressed != 0 {
            return Err(Status::unimplemented("no compression was agreed on"));
        }
        if length > MAX_MESSAGE {
            let why = format!("a message of {length} bytes; {MAX_MESSAGE} are the most");
            return Err(Status::resource_exhausted(why));
        }
        let Some(message) = rest.get(..length) else {
            return Ok(None);
        };
        let request = DeltaDiscoveryRequest::decode(message);
        let request = request.map_err(|error| Status::internal(format!("a request: {error}")))?;
        self.read.advance(PREFIX + length);
        if self.read.is_empty() {
            self.read = BytesMut::new();
        }
        Ok(Some(request))
    }
}

/// Where responses are written to.
pub(super) struct Writer {
    pieces: mpsc::Sender<Bytes>,
    /// How the stream ends, if not in order.
    end: Arc<Mutex<Option<Status>>>,
    /// A message was begun and is not at its end.
    within: bool,
}

/// The other end of a [`Writer`]: the body of the answer.
pub(super) struct Responses {
    pieces: mpsc::Receiver<Bytes>,
    end: Arc<Mutex<Option<Status>>>,
    ended: bool,
}

/// The client is gone.
#[derive(Debug)]
pub(super) struct Gone;

/// One piece is on its way to the transport; everything later is made when it is needed.
pub(super) fn responses() -> (Writer, Responses) {
    let (sender, receiver) = mpsc::channel(1);
    let end = Arc::<Mutex<Option<Status>>>::default();
    let writer = Writer {
        pieces: sender,
        end: end.clone(),
        within: false,
    };
    let responses = Responses {
        pieces: receiver,
        end,
        ended: false,
    };
    (writer, responses)
}

impl Writer {
    /// Waits until the transport has taken what was sent.
    pub(super) async fn ready(&self) -> Result<(), Gone> {
        self.pieces.reserve().await.map(drop).map_err(|_| Gone)
    }

    /// Sends a response. If the future is dropped, the stream can only be ended.
    pub(super) async fn send(&mut self, mut response: DeltaDiscoveryResponse) -> Result<(), Gone> {
        let resources = mem::take(&mut response.resources);
        let each = resources.iter();
        let each = each.map(|resource| message::encoded_len(RESOURCES, resource));
        let length = response.encoded_len() + each.sum::<usize>();
        let Ok(prefix) = u32::try_from(length) else {
            return self.refuse(length);
        };
        if length > MAX_MESSAGE {
            return self.refuse(length);
        }
        let mut piece = BytesMut::with_capacity(PREFIX + length.min(PIECE));
        piece.put_u8(0);
        piece.put_u32(prefix);
        // Fields may come in any order; a buffer of bytes grows as it has to.
        let _ = response.encode(&mut piece);
        self.within = true;
        for resource in resources {
            message::encode(RESOURCES, &resource, &mut piece);
            if piece.len() >= PIECE {
                let full = mem::replace(&mut piece, BytesMut::with_capacity(PIECE));
                self.piece(full.freeze()).await?;
            }
        }
        if !piece.is_empty() {
            self.piece(piece.freeze()).await?;
        }
        self.within = false;
        Ok(())
    }

    async fn piece(&self, piece: Bytes) -> Result<(), Gone> {
        self.pieces.send(piece).await.map_err(|_| Gone)
    }

    fn refuse(&self, length: usize) -> Result<(), Gone> {
        let why = format!("a response of {length} bytes; {MAX_MESSAGE} are the most");
        self.end(Status::resource_exhausted(why));
        Err(Gone)
    }

    /// With which reason the stream ends when this is dropped.
    pub(super) fn end(&self, status: Status) {
        *self.end.lock() = Some(status);
    }

    /// Whether the client has a part of a message alone.
    pub(super) fn is_within_message(&self) -> bool {
        self.within
    }
}

impl Body for Responses {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(piece) = ready!(self.pieces.poll_recv(cx)) {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        self.ended = true;
        let status = self.end.lock().take().unwrap_or_else(|| Status::ok(""));
        let mut trailers = HeaderMap::new();
        // Fails for a message that no header can be made of; the code is there then.
        let _ = status.add_header(&mut trailers);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{Full, StreamBody};
    use seine_proto::discovery::Resource;
    use tokio_stream::StreamExt;

    fn request(name: &str) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: name.into(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn prefixed(request: &DeltaDiscoveryRequest) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.put_u32(request.encoded_len() as u32);
        bytes.extend(request.encode_to_vec());
        bytes
    }

    /// However the bytes are cut.
    fn body(bytes: Vec<u8>, cut: usize) -> impl Body<Data = Bytes, Error = Status> + Unpin {
        let pieces: Vec<_> = bytes.chunks(cut).map(Bytes::copy_from_slice).collect();
        StreamBody::new(tokio_stream::iter(pieces).map(|piece| Ok(Frame::data(piece))))
    }

    #[tokio::test]
    async fn requests_are_read_however_they_are_cut_and_their_buffer_is_let_go() {
        let (long, short) = (request(&"a".repeat(1000)), request(""));
        let bytes = [prefixed(&long), prefixed(&short), prefixed(&long)].concat();
        for cut in [1, 3, 7, 1024, usize::MAX] {
            let mut requests = Requests::new(body(bytes.clone(), cut.min(bytes.len())));
            for expected in [&long, &short, &long] {
                let found = requests.next().await.unwrap();
                assert_eq!(found.as_ref(), Some(expected), "cut {cut}");
            }
            assert_eq!(requests.next().await.unwrap(), None);
            assert_eq!(requests.read.capacity(), 0);
        }
    }

    #[tokio::test]
    async fn what_is_no_message_is_refused() {
        let refused = async |bytes: Vec<u8>| {
            let full = Full::new(Bytes::from(bytes)).map_err(|never| match never {});
            let error = Requests::new(full).next().await.unwrap_err();
            (error.code(), error.message().to_owned())
        };
        let (cut, whole) = (prefixed(&request("abc")), prefixed(&request("abc")));
        let code = refused(cut[..cut.len() - 1].to_vec()).await;
        assert_eq!(code.1, "the stream ends within a message");
        let compressed = [&[1], &whole[1..]].concat();
        assert_eq!(refused(compressed).await.0, tonic::Code::Unimplemented);
        let endless = vec![0, 255, 255, 255, 255];
        assert_eq!(refused(endless).await.0, tonic::Code::ResourceExhausted);
        let garbage = vec![0, 0, 0, 0, 2, 255, 255];
        assert_eq!(refused(garbage).await.0, tonic::Code::Internal);
    }

    #[tokio::test]
    async fn a_response_leaves_in_pieces_that_are_one_message() {
        let resource = |number: usize| Resource {
            name: format!("resource-{number}"),
            version: "x".repeat(number % 300),
            ..Resource::default()
        };
        let response = DeltaDiscoveryResponse {
            type_url: "type".into(),
            nonce: "7".into(),
            resources: (0..5000).map(resource).collect(),
            removed_resources: vec!["gone".into()],
            ..DeltaDiscoveryResponse::default()
        };
        let (mut writer, mut responses) = responses();
        let sent = response.clone();
        tokio::spawn(async move {
            writer.send(sent).await.unwrap();
            writer
                .send(DeltaDiscoveryResponse::default())
                .await
                .unwrap();
            writer.end(Status::unavailable("bye"));
        });
        let (mut bytes, mut pieces, mut trailers) = (BytesMut::new(), 0, None);
        while let Some(Ok(frame)) = responses.frame().await {
            match frame.into_data() {
                Ok(data) => {
                    assert!(data.len() < PIECE + 1024, "{}", data.len());
                    pieces += 1;
                    bytes.extend_from_slice(&data);
                }
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        assert!(pieces > 5, "{pieces}");
        assert_eq!(bytes.get_u8(), 0);
        let length = bytes.get_u32() as usize;
        let first = DeltaDiscoveryResponse::decode(bytes.split_to(length)).unwrap();
        assert_eq!(first, response);
        assert_eq!(bytes.as_ref(), [0, 0, 0, 0, 0], "an empty message");
        assert_eq!(trailers.unwrap()["grpc-message"], "bye");
    }
}
