//! What fuzz targets share.

use std::future::Future;

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
