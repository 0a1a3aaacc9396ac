//! What fuzz targets share.

use std::future::Future;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy, sink, split};
use tokio::runtime::Builder;

/// Runs to its end what handles one input. Nothing of it is left for the next one; what waits for ever is found by
/// libFuzzer's own limit.
pub fn run<F: Future>(input: F) -> F::Output {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(input)
}

/// Lets the other tasks do what they can do by now.
pub async fn pause() {
    for _ in 0..16 {
        tokio::task::yield_now().await;
    }
}

/// Says `opening`, and `bytes` when the other side had its turn; hears all and understands nothing.
pub async fn say(stream: impl AsyncRead + AsyncWrite, opening: &[u8], bytes: &[u8]) {
    let (mut from, mut to) = split(stream);
    let say = async {
        to.write_all(opening).await?;
        to.flush().await?;
        pause().await;
        to.write_all(bytes).await?;
        to.flush().await?;
        pause().await;
        to.shutdown().await
    };
    let mut nowhere = sink();
    // However it ends: the other side is what is looked at.
    let _ = tokio::join!(say, copy(&mut from, &mut nowhere));
}
